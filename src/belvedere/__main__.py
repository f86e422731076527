"""`python -m belvedere`, which torchrun needs, is the command `belvedere`."""

import sys

from belvedere.cli import main

if __name__ == "__main__":
    sys.exit(main())
