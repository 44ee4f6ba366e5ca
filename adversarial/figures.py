"""Figures of the attack experiment: arrays in, PNG out. `draw` redraws them all from a run directory."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from adversarial.config import describe_attack
from latentlab.figures import BLUE, ORANGE, PNG, Format, save
from latentlab.storage.run_directory import read_json, read_npz

BARS = 4
SHOWN_RADII = 6
LONGEST = 28  # characters of a name
AIMED = "class aimed at; top class if untargeted"
BANDS = "bands: 95 % intervals"
GREY = "0.55"
GREEN = "#2a9d5c"
TRAININGS = {
    "standard": "trained on digits",
    "pgd": "trained on attacked digits (PGD)",
    "trades": "trained on both (TRADES)",
}

Picture = UInt8[np.ndarray, "h w 3"]
Entry = Mapping[str, Any]


def draw(run_dir: Path, form: Format = PNG) -> list[Path]:
    """Draw every figure of a run from the files in its directory, and return their paths.

    Raises:
        UserError: A file of the run is missing or damaged, or a figure cannot be written.
    """
    results = read_json(run_dir / "results.json")
    figures: dict[str, Callable[[], Figure]] = {}
    if "trainings" in results:
        figures["robust_accuracy"] = lambda: trainings(results)
    elif "robust_accuracy" in results:
        figures["robust_accuracy"] = lambda: robust_accuracy(results)
    else:
        pictures, swept = read_npz(run_dir / "figures.npz"), read_npz(run_dir / "sweep.npz")
        radii = sorted({entry["epsilon"] for entry in results["sweep"]})
        shown = radii.index(results["attacks"][0]["epsilon"])
        names = tuple(dict.fromkeys(entry["attack"] for entry in results["attacks"]))
        for name, figure in zip(names, of_a_photo(names), strict=False):
            rows = [row for row, entry in enumerate(results["attacks"]) if entry["attack"] == name]
            figures[figure] = partial(
                attacks,
                pictures["original"],
                pictures["adversarial"][rows, shown],
                swept["before"],
                swept["after_png"][rows, shown],
                swept["classes"].tolist(),
                [results["attacks"][row] for row in rows],
            )
        figures["confidence"] = lambda: confidence(results["sweep"], results["attacks"], results["true_class"]["name"])
        figures["untargeted"] = lambda: untargeted(
            pictures["adversarial"][0],
            [entry for entry in results["sweep"][: len(radii)] if entry["objective"] == "untargeted"],
        )
    return [save(run_dir / "figures" / f"{name}.png", make, form) for name, make in figures.items()]


def of_a_photo(names: Sequence[str]) -> tuple[str, ...]:
    """Return the figures of a photo under some attacks, the main one first."""
    return ("attacks", *(f"attacks_{name}" for name in names[1:]), "confidence", "untargeted")


def attacks(
    original: Picture,
    adversarial: UInt8[np.ndarray, "objectives h w 3"],
    before: Float[np.ndarray, " classes"],
    after: Float[np.ndarray, "objectives classes"],
    classes: Sequence[str],
    entries: Sequence[Entry],
) -> Figure:
    """Draw the photo, and a column for each objective: the saved picture, the enlarged difference, and probabilities.

    A title is green where the saved picture reaches the objective, and says that it does not where it does not.
    """
    columns = len(entries) + 1
    figure = Figure(figsize=(2.5 * columns, 7.6), layout="constrained")
    grid = figure.subplots(3, columns, height_ratios=(1, 1, 0.9), squeeze=False)
    chosen = _select_classes(before, after)
    differences = adversarial.astype(int) - original
    most = max(int(np.abs(differences).max()), 1)
    _show(grid[0, 0], original)
    top = int(np.argmax(before))
    grid[0, 0].set_title(f"photo: {words(classes[top])}\n{before[top]:.1%}", fontsize=10)
    for axes in grid[1:, 0]:
        axes.set_axis_off()
    signs = f"black, white: ∓{most}\ngrey levels in all"
    note = f"difference × {127.5 / most:.0f},\neach colour by itself\n\ngrey: no change\n{signs}"
    grid[1, 0].text(0.98, 0.5, note, ha="right", va="center", fontsize=10)
    for axes, picture, difference, probabilities, entry in zip(
        grid[:, 1:].T, adversarial, differences, after, entries, strict=True
    ):
        _show(axes[0], picture)
        reached = entry["success_after_png"]
        taken = f"{words(entry['top1_name_after_png'])} {entry['confidence_after_png']:.1%}"
        title = f"{_aim(entry).replace(chr(10), ' ')}\n{'reached' if reached else 'missed'}: {taken}"
        axes[0].set_title(title, fontsize=10, color=GREEN if reached else "0.2")
        _show(axes[1], (127.5 + difference * (127.5 / most)).round().astype(np.uint8))
        _bars(axes[2], before[chosen], probabilities[chosen])
    grid[2, 1].set_yticks(range(len(chosen)), [words(classes[index]) for index in chosen], fontsize=9)
    handles = [Patch(color=colour, label=label) for label, colour in (("photo", GREY), ("attacked", ORANGE))]
    grid[2, 0].legend(handles=handles, frameon=False, loc="upper left", fontsize=10)
    epsilon, unit, levels = (entries[0][f"epsilon{end}"] for end in ("", "_range", "_grey_levels"))
    attack = str(entries[0]["attack"]).upper()
    size = f"ε = {epsilon:g} of {unit}, {levels:.3g} grey levels"
    figure.suptitle(f"{attack}, {size}; saved with 8 bits, that is at most {most}", fontsize=12)
    return figure


def confidence(sweep: Sequence[Entry], shown: Sequence[Entry], true_name: str) -> Figure:
    """Draw a panel for each attack and objective: the probability of the true class and the target against ε.

    Without a target it is that of the top class. Marks above tell the ε at which the objective is reached by the
    picture as it was saved.
    """
    names = tuple(dict.fromkeys(entry["attack"] for entry in shown))
    columns = len(shown) // len(names)
    figure = Figure(figsize=(3.1 * columns + 0.6, 3.0 * len(names) + 0.6), layout="constrained")
    panels = figure.subplots(len(names), columns, sharey=True, squeeze=False)
    for axes, one in zip(panels.flat, shown, strict=True):
        rows = [entry for entry in sweep if (entry["attack"], entry["objective"]) == (one["attack"], one["objective"])]
        levels = [entry["epsilon_grey_levels"] for entry in rows]
        aimed = "target_probability" if one["target_name"] else "confidence"
        true = f"true class, {words(true_name)}"
        for key, label, colour in ((aimed, AIMED, ORANGE), ("true_class_probability", true, BLUE)):
            axes.plot(levels, [entry[key] for entry in rows], color=colour, label=label, marker="o", markersize=3.5)
        reached = [entry["epsilon_grey_levels"] for entry in rows if entry["success_after_png"]]
        axes.plot(reached, [1.07] * len(reached), "v", color="0.25", markersize=4, label="reached, as PNG")
        axes.axvline(one["epsilon_grey_levels"], color="0.7", linewidth=1, zorder=0, label="ε of the pictures shown")
        _radii(axes, levels)
        axes.set(ylim=(-0.02, 1.12), yticks=np.linspace(0, 1, 6))
        attack = f"{one['attack'].upper()}, " if len(names) > 1 else ""
        axes.set_title(attack + _aim(one).replace("\n", " "), fontsize=11)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4, fontsize=10)
    for axes in panels[:, 0]:
        axes.set_ylabel("probability")
    return figure


def untargeted(pictures: UInt8[np.ndarray, "epsilons h w 3"], entries: Sequence[Entry]) -> Figure:
    """Draw the saved photo after the untargeted attack, for some ε from the first to the last."""
    chosen = np.unique(np.linspace(0, len(entries) - 1, min(SHOWN_RADII, len(entries))).round().astype(int))
    figure = Figure(figsize=(2.3 * len(chosen), 2.95), layout="constrained")
    for axes, index in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        entry = entries[index]
        _show(axes, pictures[index])
        axes.set_title(f"ε = {entry['epsilon']:g} ({entry['epsilon_grey_levels']:.3g} levels)", fontsize=10)
        axes.set_xlabel(f"{words(entry['top1_name_after_png'])}\n{entry['confidence_after_png']:.1%}", fontsize=10)
    return figure


def robust_accuracy(results: Mapping[str, Any]) -> Figure:
    """Share of photos that are still recognised against ε, with 95 % intervals."""
    figure = Figure(figsize=(7, 4.3), layout="constrained")
    axes, entries = figure.subplots(), results["robust_accuracy"]
    levels = [entry["epsilon_grey_levels"] for entry in entries]
    for key, label, colour in (("accuracy", "as computed", BLUE), ("accuracy_8_bit", "saved with 8 bits", ORANGE)):
        values, low, high = ([entry[f"{key}{end}"] for entry in entries] for end in ("", "_low", "_high"))
        axes.plot(levels, values, color=colour, label=label, marker="o", markersize=4)
        axes.fill_between(levels, low, high, color=colour, alpha=0.15, linewidth=0)
    _radii(axes, levels)
    keeping = results.get("labels") == "predictions"  # then what the network says at ε = 0 is right by definition
    axes.set(ylim=(-0.02, 1.02), ylabel="photos that keep their class" if keeping else "photos recognised")
    axes.set_title(f"{results['photos']:,} photos, {describe_attack(results)}: an upper bound", fontsize=12)
    axes.legend(frameon=False, title=BANDS)
    return figure


def trainings(results: Mapping[str, Any]) -> Figure:
    """Draw the share of digits that is still recognised against ε, a curve for every training, with 95 % intervals."""
    figure = Figure(figsize=(7, 4.3), layout="constrained")
    axes = figure.subplots()
    for (training, found), colour in zip(results["trainings"].items(), (BLUE, ORANGE, GREEN), strict=False):
        entries = found["robust_accuracy"]
        radii = [entry["epsilon"] for entry in entries]
        values, low, high = ([entry[f"accuracy{end}"] for entry in entries] for end in ("", "_low", "_high"))
        axes.plot(radii, values, color=colour, label=TRAININGS[training], marker="o", markersize=4)
        axes.fill_between(radii, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(ylim=(-0.02, 1.02), xlabel=f"ε, of {entries[0]['epsilon_range']}", ylabel="digits recognised")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.spines[["top", "right"]].set_visible(False)
    seeds = f", {results['seeds']} seeds" if results["seeds"] > 1 else ""
    axes.set_title(f"{results['photos']:,} digits{seeds}, {describe_attack(results)}: an upper bound", fontsize=12)
    axes.legend(frameon=False, title=BANDS)
    return figure


def words(name: str) -> str:
    """Return a readable class name, cut where it is long, without characters that Matplotlib would interpret."""
    shown = name.replace("_", " ")
    return (shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…").replace("$", r"\$")


def _aim(entry: Entry) -> str:
    if not entry["target_name"]:
        return "untargeted"
    rank = entry["objective"].removeprefix("rank ")
    ordinal = {"2": "2nd", "3": "3rd"}.get(rank, f"{rank}th") if rank.lstrip("-").isdecimal() else ""
    what = f"{ordinal} class" if ordinal else ("least likely" if entry["objective"] == "least likely" else "target")
    return f"{what}:\n{words(entry['target_name'])}"


def _show(axes: Any, picture: Picture) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _select_classes(before: np.ndarray, after: np.ndarray) -> list[int]:
    """Return the classes that bars are drawn of: the top ones before, and the top one after each attack."""
    tops = [*np.argsort(-before, kind="stable")[:BARS], *after.argmax(axis=1)]
    return list(dict.fromkeys(map(int, tops)))


def _bars(axes: Any, before: np.ndarray, after: np.ndarray) -> None:
    """Draw a pair of bars for each class."""
    for values, shift, colour in ((before, -0.2, GREY), (after, 0.2, ORANGE)):
        axes.barh(np.arange(len(values)) + shift, values, 0.38, color=colour)
    axes.set(xlim=(0, 1), ylim=(len(before) - 0.5, -0.5), yticks=[], xlabel="probability")
    axes.set_xticks([0, 0.5, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(left=False, labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


def _radii(axes: Any, levels: Sequence[float]) -> None:
    """Label an axis of ε, fine near 0, and one of percentages."""
    ticks = [tick for tick in (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 255) if tick <= max(levels)]
    axes.set_xscale("symlog", linthresh=1, linscale=0.7)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlim=(0, max(levels) * 1.15 or 1), xlabel="ε in grey levels, logarithmic from 1 on")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.spines[["top", "right"]].set_visible(False)
