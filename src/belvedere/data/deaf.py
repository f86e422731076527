"""For the server that starts loader workers alone: it and whatever it starts hear no Ctrl-C and no SIGTERM.

A worker sets this for itself once it runs. Before that, while it is being started, a Ctrl-C that goes to the
whole process group would end it with a traceback, in a run that is about to save. To import this module is
what sets it.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
