"""`python -m latentlab`; Python searches the working directory first, so in a stranger's folder use `latentlab`."""

import sys

from latentlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
