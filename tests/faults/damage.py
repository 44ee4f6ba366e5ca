"""Files of our own that are damaged on the disk, again and again, and what is read from them.

python -m tests.faults.damage [--tries 25] [--seed 0] tries as many of each kind and prints a table; `test_damage` tries
a few. A try flips one bit of a file, sets 512 bytes to zero, cuts the file short or removes it. It is lost if what is
whole beside the damage cannot be had any more, and wrong if anything else comes out than what had been written. Where
nothing whole is left, one line that says so is right.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from latent_arith import weights
from latent_arith.datasets import celeba
from latent_arith.model import FaceVae
from latentlab.errors import UserError
from latentlab.storage.checkpoints import Checkpoints, digest
from latentlab.storage.metrics import MetricsLog
from tests.faults.kills import ROOT, Tally, command, differences, digits, state, whole_run

ZEROS = 512
COMPILING = """
from latentlab.storage import compilation_cache
compilation_cache.enable()
import jax, jax.numpy as jnp
@jax.jit
def function(x):
    for index in range(60):
        x = jnp.sin(jnp.cumsum(x @ x.T, axis=index % 2)) + index
    return jnp.sum(x)
print(float(function(jnp.eye(3))).hex())
"""


def damaged(directory: Path, chance: random.Random) -> str:
    """Damages one file below a directory, large ones more often than small ones, and says how."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    (path,) = chance.choices(files, [path.stat().st_size ** 0.5 for path in files])
    content, how = bytearray(path.read_bytes()), chance.choice(["bit flipped", "zeros", "cut", "removed"])
    at = chance.randrange(len(content))
    if how == "bit flipped":
        content[at] ^= 1 << chance.randrange(8)
    elif how == "zeros":
        length = len(content[at : at + ZEROS])
        content[at : at + ZEROS] = bytes(length)
    elif how == "cut":
        del content[at:]
    path.write_bytes(content)
    if how == "removed":
        path.unlink()
    return how


def checkpoint(tries: int, place: Path, chance: random.Random) -> Tally:
    """The newest of two checkpoints: it is whole, or the one before it is used, and that is said."""
    checkpoints, tally = Checkpoints(place / "whole"), Tally()
    for step in (1, 2):
        checkpoints.save(step, state(step), extra={"losses": [step]})
    checkpoints.close()
    like = {name: jnp.asarray(array) for name, array in state(0).items()}
    for index in range(tries):
        copy, said = place / str(index), list[str]()
        shutil.copytree(place / "whole", copy)
        damaged(copy / "2", chance)
        restored = Checkpoints(copy).restore(like, said.append)
        tally.tried += 1
        tally.lost += restored is None
        if restored:
            same = digest(restored.state) == digest(state(restored.step)) and restored.extra == {
                "losses": [restored.step]
            }
            tally.wrong += not same or (restored.step == 1 and not said)
            tally.moments["the one before it used" if restored.step == 1 else "not needed to read it"] += 1
    return tally


def training(tries: int, place: Path, chance: random.Random) -> Tally:
    """The newest checkpoint of a stopped training of digits: the resumed run ends bit-equal to one never disturbed."""
    tally, arguments = Tally(), digits(place, "mlp")
    whole_run(arguments, place / "whole")
    stopped = place / "stopped"
    process = subprocess.Popen(command(arguments, stopped), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while len(MetricsLog(stopped / "metrics.jsonl").rows()) < 4:
        time.sleep(0.01)
    process.terminate()
    process.communicate()
    assert not (stopped / "results.json").exists(), "it was over before it could be stopped"
    for index in range(tries):
        copy = place / str(index)
        shutil.copytree(stopped, copy)
        saved = copy / "checkpoints" / "autoencoder"
        damaged(saved / max((path.name for path in saved.iterdir() if path.name.isdecimal()), key=int), chance)
        done = subprocess.run(command(arguments, copy), cwd=ROOT, capture_output=True, text=True)
        tally.tried += 1
        tally.lost += done.returncode != 0
        tally.wrong += done.returncode == 0 and bool(differences(place / "whole", copy))
        tally.moments["the one before it used" if "is damaged" in done.stdout + done.stderr else "not needed"] += 1
        shutil.rmtree(copy)
    return tally


def file_of_weights(tries: int, place: Path, chance: random.Random) -> Tally:
    """`weights.npz` of a face VAE: the arrays that were written, or one line."""
    weights.save(place / "whole" / "weights.npz", FaceVae(), jax.jit(FaceVae().init)(jax.random.key(0)))
    written = digest(weights.load(place / "whole" / "weights.npz", FaceVae()))

    def read(copy: Path) -> bool:
        return digest(weights.load(copy / "weights.npz", FaceVae())) == written

    return _refused_or_right(tries, place, chance, read)


def cache_of_celeba(tries: int, place: Path, chance: random.Random) -> Tally:
    """CelebA's decoded images and their record: every pixel as it was, decoded anew, or one line."""
    images, noise = place / "celeba" / "img_align_celeba", np.random.default_rng(0)
    images.mkdir(parents=True)
    names = [f"{index:06d}.jpg" for index in range(20)]
    for name in names:
        Image.fromarray(noise.integers(0, 256, (27, 22, 3), np.uint8)).resize((178, 218)).save(images / name)
    rows = "".join(f"{name} 1 -1\n" for name in names)
    (place / "celeba" / "list_attr_celeba.txt").write_text(f"{len(names)}\nSmiling Male\n{rows}")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(celeba, "CHUNK", 8)
        first = celeba.open_folder(place / "celeba", place / "whole")
        pixels = first[:].copy()

        def read(copy: Path) -> bool:
            again = celeba.open_folder(place / "celeba", copy)
            return again.sha256 == first.sha256 and np.array_equal(again[:], pixels)

        return _refused_or_right(tries, place, chance, read)


def cache_of_compilations(tries: int, place: Path, chance: random.Random) -> Tally:
    """A program that XLA has compiled: what it computes is the same, for a damaged one is compiled anew."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}

    def run(cache: Path) -> str:
        variables = {**kept, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        return subprocess.run(
            [sys.executable, "-c", COMPILING], env=variables, cwd=ROOT, capture_output=True, text=True
        ).stdout

    (place / "whole").mkdir()
    first, tally = run(place / "whole"), Tally()
    assert re.match(r"-?0x", first), "the whole program does not run"
    for index in range(tries):
        copy = place / str(index)
        shutil.copytree(place / "whole", copy)
        tally.moments[damaged(copy, chance)] += 1
        found = run(copy)
        tally.tried += 1
        tally.lost += not found
        tally.wrong += bool(found) and found != first
    return tally


def _refused_or_right(tries: int, place: Path, chance: random.Random, read: Callable[[Path], bool]) -> Tally:
    """Copies of `whole` are damaged; `read` says whether what it reads is right, or raises a UserError."""
    tally = Tally()
    for index in range(tries):
        copy = place / str(index)
        shutil.copytree(place / "whole", copy)
        damaged(copy, chance)
        tally.tried += 1
        try:
            tally.wrong += not read(copy)
            tally.moments["right all the same"] += 1
        except UserError as error:
            assert len(str(error).splitlines()) == 1
            tally.moments["refused"] += 1
        shutil.rmtree(copy)
    return tally


KINDS = {
    "newest checkpoint": checkpoint,
    "newest checkpoint of a stopped training": training,
    "`weights.npz`": file_of_weights,
    "CelebA's cache": cache_of_celeba,
    "compiled programs": cache_of_compilations,
}


def main() -> None:
    """Tries every kind and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| damaged | tried | lost | wrong | what came of it |\n| --- | --- | --- | --- | --- |")
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as place:
            print(kind(options.tries, Path(place), random.Random(options.seed)).row(name), flush=True)


if __name__ == "__main__":
    main()
