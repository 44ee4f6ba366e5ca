"""Times FGSM on MobileNetV2, side by side with others: the gradient, a sweep over ε, and a sweep in chunks.

python benchmarks/fgsm.py [--rounds 5] [--repeats 6] [--parts gradient_1 gradient_16 sweep memory] [--output FILE.json]
python benchmarks/fgsm.py --contestant gradient_16_torch

Images are 224×224, the network is MobileNetV2 with α = 1 and 1,000 classes, the same random weights for all. How
contestants take turns and what is summed up: `side_by_side`.
"""

import argparse
import json
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fgsm_work
import side_by_side
from face_vae import TENSORFLOW, TORCH, Part
from side_by_side import JAX, Contestant

NORM, MOVED, TEMPORARY = "‖∇L‖₁", "mean change, grey levels", "temporary memory, MB"
AGREEMENT = 0.01  # ReLU6 has corners: where rounding puts an activation on the other side, a gradient differs


@dataclass(frozen=True)
class CheckedPart(Part):
    """One kind of work, who does it, and a number beside the time.

    Attributes:
        check: What that number is called.
        agrees: Whether it must be the same for all.
    """

    check: str
    agrees: bool


def _gradients(count: int) -> CheckedPart:
    prefix = f"gradient_{count}"
    torch, tensorflow = (*TORCH, *JAX), (*TENSORFLOW, *JAX)  # they take the shapes of the weights from our network
    return CheckedPart(
        f"FGSM, {count} image{'s' if count > 1 else ''}",
        "seconds",
        count,
        {
            f"{prefix}_ours": Contestant("latentlab", "fgsm_ours", JAX, "gradient_seconds"),
            f"{prefix}_torch": Contestant(
                "PyTorch, eager, channels last", "fgsm_peer_torch", torch, "gradient_seconds"
            ),
            f"{prefix}_tensorflow": Contestant(
                "Keras on TensorFlow, tf.function", "fgsm_peer_tensorflow", tensorflow, "gradient_seconds"
            ),
            f"{prefix}_xla": Contestant("plain Flax, jitted", "fgsm_ours", JAX, "xla_gradient_seconds", 1, 3),
        },
        NORM,
        True,
    )


PARTS = {
    "gradient_1": _gradients(1),
    "gradient_16": _gradients(16),
    "sweep": CheckedPart(
        "FGSM for 10 ε, untargeted and towards 3 classes, 16 images",
        "seconds",
        16,
        {
            "sweep_ours": Contestant("latentlab", "fgsm_ours", JAX, "sweep_seconds"),
            "sweep_foolbox": Contestant("foolbox", "fgsm_ours", (*JAX, "foolbox"), "foolbox_sweep_seconds"),
        },
        MOVED,
        True,
    ),
    "memory": CheckedPart(
        "FGSM for 3 ε on 64 images in chunks",
        "seconds",
        64,
        {
            f"memory_{chunk}": Contestant(f"chunks of {chunk}", "fgsm_ours", JAX, f"chunks_of_{chunk}", 1, 2)
            for chunk in (4, 16, 64)
        },
        TEMPORARY,
        False,
    ),
}
CONTESTANTS = {name: contestant for part in PARTS.values() for name, contestant in part.contestants.items()}


def main() -> None:
    """Runs one contestant, or all of them against each other, part by part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=side_by_side.positive, default=5, help="times that every contestant runs")
    parser.add_argument(
        "--repeats", type=side_by_side.positive, default=6, help="repeats of the work in a run, the first not counted"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is timed")
    parser.add_argument("--output", type=Path, help="JSON file of the measurements")
    parser.add_argument("--contestant", choices=CONTESTANTS, help="run only this one, here, and print its JSON")
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error("--repeats is 1, expected 2 or more: the first repeat holds compilation and is not counted")
    if options.contestant:
        print(json.dumps(run(options.contestant, options.repeats)))
        return
    result = {"machine": side_by_side.machine(CONTESTANTS.values()), "repeats": options.repeats, "parts": {}}
    for name in options.parts:
        part = PARTS[name]
        reference = next(iter(part.contestants))
        compared = side_by_side.compare(
            __file__, part.contestants, options.rounds, options.repeats, "--repeats", reference
        )
        table = side_by_side.table(compared, part.contestants, reference, part.seconds)
        print(
            f"\n{part.title}\n\n{table.replace('| loss |', f'| {part.check} |')}\n\nPeak memory, MB: {peaks(compared)}"
        )
        if part.agrees:
            verify(summary["final_loss"]["median"] for summary in compared["contestants"].values())
        result["parts"][name] = compared
        side_by_side.write(result, options.output)


def run(name: str, repeats: int) -> dict[str, list[float]]:
    """Lets one contestant do its work in this process.

    Returns:
        Seconds of every repeat but the first, seconds of the first, what is checked of every repeat as `losses`, and
        the most memory that the process held, in megabytes.
    """
    (part,) = (part for part in PARTS.values() if name in part.contestants)
    seconds, checks = CONTESTANTS[name].load()(fgsm_work.images(part.images), repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # Linux counts in kilobytes
    return {"seconds": seconds[1:], "first_seconds": seconds[:1], "losses": checks, "peak_megabytes": [peak]}


def peaks(compared: dict[str, Any]) -> str:
    """The most memory that each contestant's process held in any round."""
    most = {
        name: max(peak for run in summary["runs"] for peak in run["peak_megabytes"])
        for name, summary in compared["contestants"].items()
    }
    return ", ".join(f"{name} {peak:.0f}" for name, peak in most.items())


def verify(checks: Iterable[float]) -> None:
    """Refuses measurements of work that was not the same.

    Raises:
        RuntimeError: What is checked differs by more than a hundredth.
    """
    found = list(checks)
    if max(found) - min(found) > AGREEMENT * max(found):
        raise RuntimeError(f"contestants found {found}, expected one number: they did not do the same work")


if __name__ == "__main__":
    main()
