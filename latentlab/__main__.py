"""`python -m latentlab`, for which Python searches the working directory first; here that ends before anything else."""

import sys
from pathlib import Path

# Before this module runs, Python has already looked for the package itself in the working directory.
if Path.cwd() != Path(__file__).resolve().parents[1]:
    sys.path = [path for path in sys.path if path and Path(path).resolve() != Path.cwd()]

from latentlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
