"""Auto-Attack here against the authors' code, on two networks of digits, member by member.

    python -m benchmarks.auto_attack [--members apgd-ce square] [--digits 500]

attacks the networks of `tests/data/auto_attack`, and prints robust accuracies beside those that the authors' code found
on the same digits (`tests/oracles/auto_attack.py`), and the seconds, which include compilation at a member's first ε.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro

from adversarial.attacks import ATTACKS, Ensemble, SweptAttack
from adversarial.classifier import Class, Classifier
from adversarial.digits import DigitsNetwork
from adversarial.ensemble import attack_in_stages
from adversarial.pixels import RANGES, Epsilon
from latentlab.labeled_images import open_dataset

DATA = Path(__file__).parents[1] / "tests" / "data" / "auto_attack"
NAMES = {"standard": "trained on digits", "pgd": "trained on attacked digits"}
MEMBERS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", "auto")
EPSILONS = {"linf": (0.1, 0.2, 0.3), "l2": (1.5,)}


@dataclass(frozen=True)
class Options:
    """Auto-Attack against the authors' code."""

    members: tuple[str, ...] = MEMBERS
    """Attacks to compare."""
    networks: tuple[str, ...] = tuple(NAMES)
    """Networks to attack."""
    digits: int = 500
    """How many digits, at most 500."""
    out: Path | None = None
    """Where to write the numbers as JSON."""


def read_classifier(name: str) -> Classifier:
    """Return a network of the comparison."""
    params: dict[str, Any] = {}
    for key, value in np.load(DATA / "networks.npz").items():
        network, layer, variable = key.split("/")
        if network == name:
            params.setdefault(layer, {})[variable] = jnp.asarray(value, jnp.float32)
    classes = tuple(Class("", str(digit)) for digit in range(10))
    return Classifier(DigitsNetwork(filters=(8, 16), hidden=50), {"params": params}, RANGES["zero-one"], classes)


def main(options: Options) -> None:
    """Print a row for every network, norm, ε and member."""
    expected, test = np.load(DATA / "expected.npz"), open_dataset("packaged").test
    photos, labels = test.images[: options.digits], test.labels[: options.digits]
    rows = []
    for name in options.networks:
        classifier = read_classifier(name)
        for norm, epsilons in EPSILONS.items():
            for member in options.members:
                attack: Any = ATTACKS[member] if member == "auto" else Ensemble(((member, ATTACKS[member]),))
                for epsilon in epsilons:
                    swept = SweptAttack(attack, norm)  # type: ignore[arg-type]
                    radii = [Epsilon(epsilon, RANGES["zero-one"])]
                    start = time.perf_counter()
                    found = attack_in_stages(classifier, swept, 0, photos, labels, radii, len(photos))
                    seconds = time.perf_counter() - start
                    theirs = expected[f"robust/{name}/{norm}/{epsilon}/{'standard' if member == 'auto' else member}"]
                    row = {
                        "network": name, "norm": norm, "epsilon": epsilon, "attack": member,
                        "ours": float(found.as_floats.mean()), "theirs": float(theirs[: options.digits].mean()),
                        "seconds": seconds, "compiled": epsilon == epsilons[0],
                    }  # fmt: skip
                    rows.append(row)
                    print(
                        f"{name:8} {norm:4} {epsilon:3g} {member:8} ours {row['ours']:.3f} theirs {row['theirs']:.3f} "
                        f"{seconds:6.1f} s{', compilation included' if row['compiled'] else ''}",
                        flush=True,
                    )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
