"""The examples of docs/extending.md, run as they stand there."""

import re
from pathlib import Path

import pytest

from adversarial.attacks import ATTACKS
from adversarial.classifier import CLASSIFIERS
from latent_arith.datasets.face_data import DATASETS

TEXT = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", TEXT, re.M | re.S))
EXPECTED = {
    "An own encoder": "(1, 28, 28, 1)",
    "An own data set of faces": "('Bright', 'Large')",
    "An own classifier": "(1, 5)",
    "An own attack": "False",
}

pytestmark = pytest.mark.lenient


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries that are what they were after the test."""
    for registry in (ATTACKS, CLASSIFIERS, DATASETS):
        for name in ("noise", "colours", "squares"):
            monkeypatch.setitem(registry, name, None)  # type: ignore[misc]
            del registry[name]


@pytest.mark.parametrize("title", EXPECTED)
def test_an_example_runs_and_is_short(title: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = EXAMPLES[title]
    assert len(example.splitlines()) < 40
    exec(compile(example, title, "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.splitlines()[-1] == EXPECTED[title]


def test_every_example_is_expected() -> None:
    assert EXAMPLES.keys() == EXPECTED.keys()
