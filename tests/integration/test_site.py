"""The documentation: it builds without a warning, needs no network to be read, and axe finds nothing serious."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]
PAGES = ("index", "tutorials/digits", "results", "glossary", "reference/api", "howto/export")
README_LINES, README_WIDTH = 150, 120


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(path)]
    built = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    return path


def test_every_page_and_picture_is_there(site: Path) -> None:
    pages = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    assert set(PAGES) <= pages
    for page in site.rglob("*.html"):
        for source in re.findall(r'<img[^>]* src="([^":]+)"', page.read_text("utf-8")):
            assert (page.parent / source).exists(), (page, source)
    api = (site / "reference" / "api.html").read_text("utf-8")
    for name in ("negative_elbo", "wrap_classifier", "find_directions", "measure_disentanglement", "objective_samples"):
        assert name in api


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_a_network_and_nothing_serious_is_amiss(browser: Browser, site: Path, name: str) -> None:
    shown = browser.new_context(offline=True).new_page()
    asked: list[str] = []
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto((site / f"{name}.html").as_uri())
    shown.wait_for_load_state("load")
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    serious = [
        (fault["id"], fault["nodes"][0]["html"][:200])
        for fault in Axe().run(shown).response["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    lines = text.splitlines()
    assert len(lines) <= README_LINES and max(map(len, lines)) <= README_WIDTH
    for target in re.findall(r"\]\(([^)#:]+)", text):
        assert (ROOT / target).exists(), target
