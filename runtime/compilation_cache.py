"""What XLA compiled is kept in the user's cache, so that a program's second run starts at once.

JAX's own persistent cache does it. Its key knows versions, flags and the kind of device, but of a CPU not the
instructions that it has, and a home directory may be shared: so every kind of CPU has a directory of its own.
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
"""Bytes that the cache may take; what was used least recently goes first."""


def enable() -> Path | None:
    """Keeps what is compiled from now on, unless JAX was told where or that it shall not.

    `JAX_COMPILATION_CACHE_DIR` names another directory, `JAX_ENABLE_COMPILATION_CACHE=false` turns every cache off.

    Returns:
        The directory; None where JAX has its own orders or none can be made, which standard error says.
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
    """Where this machine's programs are kept."""
    return user_cache_path("latentlab") / "compiled" / _instructions()


def _instructions() -> str:
    """A name for what the CPU can execute."""
    named = f"{platform.machine()} {platform.processor()}"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        named += "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return f"{platform.machine()}-{hashlib.sha256(named.encode()).hexdigest()[:12]}"
