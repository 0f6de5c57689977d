"""`python -m neurontune_peft`: the command line without the installed script."""

import sys

from neurontune_peft.cli import main

if __name__ == "__main__":
    sys.exit(main())
