"""For the server that starts loader workers alone: it and whatever it starts hear no Ctrl-C and no SIGTERM.

A worker sets this for itself once it runs. Before that, while it is being started, a Ctrl-C that goes to the
whole process group would end it with a traceback, in a run that is about to save. The server can only be told
to import a module; anywhere else an import changes nothing.
"""

import signal
import sys

if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
