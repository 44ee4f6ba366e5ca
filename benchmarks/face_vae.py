"""Times a training step, encoding and the pass for attribute directions of the face VAE, side by side with others.

python benchmarks/face_vae.py [--rounds 5] [--repeats 4] [--parts step encode directions] [--output FILE.json]
python benchmarks/face_vae.py --contestant step_torch

How contestants take turns and what is summed up: `side_by_side`.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import side_by_side
from side_by_side import JAX, Contestant

TORCH, TENSORFLOW = ("torch",), ("tensorflow", "keras")


@dataclass(frozen=True)
class Part:
    """One kind of work and who does it.

    Attributes:
        title: What is timed.
        seconds: What the column of seconds is called.
        images: Images that it is done with.
        contestants: Who does it, by name; the first is what the others are compared with.
    """

    title: str
    seconds: str
    images: int
    contestants: dict[str, Contestant]


PARTS = {
    "step": Part(
        "Training step, batch 32",
        "seconds a step",
        320,
        {
            "step_ours": Contestant("latentlab", "face_ours", JAX, "step_seconds"),
            "step_torch": Contestant("PyTorch, eager, channels last", "face_peer_torch", TORCH, "step_seconds"),
            "step_tensorflow": Contestant(
                "Keras on TensorFlow, step in tf.function", "face_peer_tensorflow", TENSORFLOW, "step_seconds"
            ),
            "step_flax": Contestant("plain Flax, jitted step", "face_peer_flax", JAX, "step_seconds", 1, 2),
        },
    ),
    "encode": Part(
        "Posterior means of 500 images",
        "seconds",
        500,
        {
            "encode_ours": Contestant("latentlab", "face_ours", JAX, "encode_seconds"),
            "encode_torch": Contestant("PyTorch, 25 at a time", "face_peer_torch", TORCH, "encode_seconds"),
            "encode_tensorflow": Contestant(
                "keras.Model.predict, batch 500", "face_peer_tensorflow", TENSORFLOW, "encode_seconds"
            ),
            "encode_tensorflow_32": Contestant(
                "keras.Model.predict, batch 32", "face_peer_tensorflow", TENSORFLOW, "encode_seconds_in_small_batches"
            ),
        },
    ),
    "directions": Part(
        "Directions from 2,000 images",
        "seconds",
        2000,
        {
            "directions_all": Contestant("all attributes", "face_ours", JAX, "all_directions_seconds"),
            "directions_one": Contestant("one attribute", "face_ours", JAX, "one_direction_seconds"),
        },
    ),
}
CONTESTANTS = {name: contestant for part in PARTS.values() for name, contestant in part.contestants.items()}


def main() -> None:
    """Runs one contestant, or all of them against each other, part by part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=side_by_side.positive, default=5, help="times that every contestant runs")
    parser.add_argument(
        "--repeats",
        type=side_by_side.positive,
        default=4,
        help="repeats of the work in a run (of ten steps, where steps are timed), the first one not counted",
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
        print(f"\n{part.title}\n\n{side_by_side.table(compared, part.contestants, reference, part.seconds)}")
        result["parts"][name] = compared
        side_by_side.write(result, options.output)


def run(name: str, repeats: int) -> dict[str, list[float]]:
    """Lets one contestant do its work in this process.

    Returns:
        Seconds of every repeat but the first, seconds of the first, and, where steps are timed, the mean loss of
        every repeat.
    """
    (part,) = (part for part in PARTS.values() if name in part.contestants)
    # Patches of colour: something to learn, and the same for all, whatever is installed.
    colours = np.random.default_rng(0).integers(0, 256, (part.images, 8, 8, 3), np.uint8)
    seconds, losses = CONTESTANTS[name].load()(colours.repeat(16, axis=1).repeat(16, axis=2), repeats)
    result = {"seconds": seconds[1:], "first_seconds": seconds[:1]}
    return result | ({"losses": losses} if losses else {})


if __name__ == "__main__":
    main()
