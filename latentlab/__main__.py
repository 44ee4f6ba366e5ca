"""`python -m latentlab`, for which Python searches the working directory first; here that ends before anything else."""

import os  # these two are built into the interpreter, so that the working directory cannot replace them
import sys

# Before this module runs, Python has already looked for the package itself in the working directory.
if os.path.realpath(os.curdir) != os.path.dirname(os.path.dirname(os.path.realpath(__file__))):
    sys.path = [path for path in sys.path if path and os.path.realpath(path) != os.path.realpath(os.curdir)]

from latentlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
