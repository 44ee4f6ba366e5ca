"""Memory in pages of 2 MB, where Linux gives them on request.

XLA on CPU takes memory for a call's temporary arrays from malloc and gives it back after every call. Large pieces come
fresh from the system each time, page by page, which takes up to a third of a training step; huge pages are 512 times
fewer (`benchmarks/README.md`). Glibc asks for them if it is told so before the process starts.
"""

import os
import sys

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def ask() -> None:
    """Starts this process anew, with glibc's malloc told to ask for huge pages, unless it was told about them already.

    `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` keeps it from that. Elsewhere than on Linux it does nothing; where the C
    library is another or older one, nothing comes of the variable.
    """
    told = os.environ.get(VARIABLE, "")
    if sys.platform == "linux" and TUNABLE not in told:
        os.environ[VARIABLE] = ":".join(filter(None, [told, f"{TUNABLE}=1"]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
