"""The README's picture: one strip of each experiment, out of a finished run of `all` or three runs of its parts.

python -m benchmarks.overview --vae RUN --faces RUN --attack RUN --out docs/figures/overview.png
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from adversarial.figures import words
from latentlab.figures import Format, save, tile
from latentlab.storage.run_directory import read_json, read_npz
from vae.figures import pick_colours

DOTS_PER_INCH = 100
SHOWN = ("Smiling", "Eyeglasses", "Blond_Hair")
STEPS = (2, 4, 6, 8)
"""Strengths -2, 0, +2 and +4 of a run whose strengths are -4 to 4."""


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("vae", "faces", "attack"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="directory of the experiment")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    print(save(options.out, lambda: draw(options.vae, options.faces, options.attack), Format("png", DOTS_PER_INCH)))


def draw(vae: Path, faces: Path, attack: Path) -> Figure:
    """Draw the three experiments side by side, at most 900×500 pixels."""
    figure = Figure(figsize=(8.7, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.25, 0.8))
    latents = read_npz(vae / "latents.npz")
    points, labels = latents["vae_z"][:2000], latents["labels"][:2000]
    left.scatter(*points.T, c=np.asarray(pick_colours(10))[labels], s=5, linewidths=0, alpha=0.7)
    left.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    left.spines[["top", "right"]].set_visible(False)
    left.set_title("digits in a latent plane", fontsize=11)

    names, pictures = read_npz(faces / "directions.npz")["names"].tolist(), read_npz(faces / "figures.npz")
    rows = [pictures["edits"][names.index(name), 0][list(STEPS)] for name in SHOWN]
    size = rows[0].shape[1]
    middle.imshow(tile(np.concatenate(rows), len(STEPS), 4, 255))
    middle.set_xticks((np.arange(len(STEPS)) + 0.5) * (size + 4), ["-2", "0", "+2", "+4"])
    middle.set_yticks((np.arange(len(SHOWN)) + 0.5) * (size + 4), [name.replace("_", "\n") for name in SHOWN])
    middle.set_title("a face moved along attributes", fontsize=11)

    results, swept = read_json(attack / "results.json"), read_npz(attack / "figures.npz")
    entry = results["attacks"][1]
    radii = sorted({row["epsilon"] for row in results["sweep"]})
    after = swept["adversarial"][1, radii.index(entry["epsilon"])]
    right.imshow(np.concatenate([swept["original"], np.full_like(after[:6], 255), after]))
    height = len(after)
    taken = results["top4"][0]
    labels_of = [
        f"{words(taken['name'])}\n{taken['probability']:.0%}",
        f"{words(entry['top1_name_after_png'])}\n{entry['confidence_after_png']:.0%}",
    ]
    right.set_yticks([height / 2, 1.5 * height + 6], labels_of)
    right.set_title(f"a photo, ±{entry['linf_grey_levels']} grey levels", fontsize=11)
    right.set_xticks([])
    for axes in (middle, right):
        axes.tick_params(length=0, labelsize=9)
        axes.spines[:].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
