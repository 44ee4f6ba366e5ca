"""Keep what XLA compiles in the user's cache, so that the second run of a program starts at once.

This is JAX's own persistent cache. Its key has versions, flags and the kind of device, but not the instructions of a
CPU, and machines may share a home directory. Therefore every kind of CPU has a directory of its own.
"""

import contextlib
import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

LARGEST = 2 * 1024**3
"""Most bytes in the cache; the least recently used entries are deleted first."""


def enable() -> Path | None:
    """Keep what is compiled from now on, unless the environment says where or that nothing is kept.

    `JAX_COMPILATION_CACHE_DIR` names another directory, `JAX_ENABLE_COMPILATION_CACHE=false` turns every cache off.

    Returns:
        The directory; None where the environment decides, or where none can be made, which standard error says.
    """
    import jax

    settings: Any = jax.config
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return None
    path = directory()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        print(f"{path}: nothing compiled is kept ({error.strerror or error})", file=sys.stderr)
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return path


def directory() -> Path:
    """Return the directory of this machine's programs."""
    return user_cache_path("latentlab") / "compiled" / _hash_instructions()


def _hash_instructions() -> str:
    """Return a name for what the CPU can execute."""
    described = f"{platform.machine()} {platform.processor()}"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        described += "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
