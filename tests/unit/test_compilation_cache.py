"""What was compiled is found again by the next process, and nothing depends on its being whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentlab import cli
from latentlab.storage import compilation_cache

ROOT = Path(__file__).parents[2]
PROGRAM = """
from latentlab.storage import compilation_cache
print(compilation_cache.enable())
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
@jax.jit
def function(x):
    for index in range(60):
        x = jnp.sin(jnp.cumsum(x @ x.T, axis=index % 2)) + index
    return jnp.sum(x)
print(round(float(function(jnp.eye(3))), 2))
print(len(hits))
"""


def process(cache: Path, **environment: str) -> tuple[str, float, int, str]:
    """Directory, result and cache hits of a new process, and what it complained of."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    variables = {**kept, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=variables, cwd=ROOT, capture_output=True, text=True, check=True
    )
    directory, result, hits = done.stdout.split()
    return directory, float(result), int(hits), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the user's cache is elsewhere on other systems")
def test_a_second_process_compiles_nothing_and_a_damaged_entry_is_compiled_anew(tmp_path: Path) -> None:
    directory, result, hits, _ = process(tmp_path)
    entries = list(Path(directory).glob("*-cache"))
    assert Path(directory).parent == tmp_path / "latentlab" / "compiled" and hits == 0 and entries
    assert process(tmp_path)[1:3] == (result, len(entries))
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])
    assert process(tmp_path)[1:3] == (result, 0)


def test_it_can_be_turned_off_and_sent_elsewhere(tmp_path: Path) -> None:
    assert process(tmp_path / "a", JAX_ENABLE_COMPILATION_CACHE="false")[0] == "None"
    assert process(tmp_path / "b", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "c"))[0] == "None"
    assert (tmp_path / "c").is_dir() and not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_where_no_directory_can_be_made_it_says_so_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    directory, _, _, complaint = process(tmp_path / "file")
    assert directory == "None" and "nothing compiled is kept (Not a directory)" in complaint


@pytest.mark.parametrize(("flags", "calls"), [([], 1), (["--no-compilation-cache"], 0)])
def test_the_command_line_turns_it_off(
    flags: list[str], calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[None] = []
    monkeypatch.setattr(compilation_cache, "enable", lambda: called.append(None))
    (tmp_path / "taken").write_text("no run")
    assert cli.main(["vae", "--out", str(tmp_path / "taken"), *flags]) == 2
    assert len(called) == calls
