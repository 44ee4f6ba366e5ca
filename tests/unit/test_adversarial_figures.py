"""Figures of attacks: what stands over a picture is true of it, and no picture is drawn twice."""

from typing import Any

import numpy as np

from adversarial import figures

GENERATOR = np.random.default_rng(0)
CLASSES = ("cat", "bull_mastiff", "pug", "owl", "fox", "bee")


def entry(objective: str, target: str | None, success: bool, top: str) -> dict[str, Any]:
    return {
        "attack": "fgsm", "objective": objective, "target_name": target, "success_after_png": success,
        "top1_name_after_png": top, "confidence_after_png": 0.75, "epsilon": 0.01, "epsilon_range": "[0, 1]",
        "epsilon_grey_levels": 2.55,
    }  # fmt: skip


def test_titles_say_what_was_reached_and_the_photo_stands_once() -> None:
    photo = GENERATOR.integers(3, 252, (8, 8, 3), dtype=np.uint8)
    attacked = np.stack([photo + 1, photo + 2]).astype(np.uint8)
    before = np.asarray([0.0, 0.9, 0.05, 0.03, 0.02, 0.0])
    after = np.asarray([[0.0, 0.75, 0.25, 0.0, 0.0, 0.0], [0.0, 0.25, 0.0, 0.0, 0.0, 0.75]])
    entries = [entry("untargeted", None, False, "bull_mastiff"), entry("rank 2", "bee", True, "bee")]
    figure = figures.attacks(photo, attacked, before, after, CLASSES, entries)
    (first, missed, reached), (note, *differences), (_, *bars) = np.reshape(figure.axes, (3, 3))
    assert first.get_title() == "photo: bull mastiff\n90.0%"
    assert missed.get_title() == "untargeted\nmissed: bull mastiff 75.0%"
    assert reached.get_title() == "2nd class: bee\nreached: bee 75.0%" and reached.title.get_color() == figures.GREEN
    for axes, picture in ((first, photo), (missed, attacked[0]), (reached, attacked[1])):
        np.testing.assert_array_equal(axes.images[0].get_array(), picture)
    assert "∓2\ngrey levels" in note.texts[0].get_text()
    assert [int(axes.images[0].get_array().max()) for axes in differences] == [191, 255]  # on one scale
    shown = [text.get_text() for text in bars[0].get_yticklabels()]
    assert shown == ["bull mastiff", "pug", "owl", "fox", "bee"]  # the four before, and the one after an attack
    for axes, probabilities in zip(bars, after, strict=True):
        widths = [patch.get_width() for patch in axes.patches]
        np.testing.assert_allclose(widths[:5], before[[1, 2, 3, 4, 5]])
        np.testing.assert_allclose(widths[5:], probabilities[[1, 2, 3, 4, 5]])
        assert axes.get_xlabel() == "probability" and axes.get_xlim() == (0, 1)
