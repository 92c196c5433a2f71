"""`python -m saelab`: the command line without the installed script."""

import sys

from saelab.cli import main

if __name__ == "__main__":
    sys.exit(main())
