"""The page of a run: what is in it, that a stranger's run cannot act in it, and that all of it works in a browser."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from adversarial.section import accuracy_curves
from latentlab import cli
from latentlab.experiment import Run, presets
from latentlab.report import page as report_page
from latentlab.report.values import sprite
from latentlab.storage.run_directory import read_json, read_npz, write_npz

pytestmark = pytest.mark.lenient

SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
NAMES = ("latent", "faces", "attack", "made")
MOST_BYTES = 15_000_000
EVIL = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def painted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `all` whose moved faces are of one colour each, for a network of a few steps decodes the same grey."""
    path = tmp_path_factory.mktemp("painted") / "run"
    shutil.copytree(finished, path, ignore=shutil.ignore_patterns("checkpoints"))
    arrays = read_npz(path / "latent_arith" / "figures.npz")
    for name in ("edits", "pair_edits"):
        indices = np.indices(arrays[name].shape[:3], np.uint8)  # of attribute or face, of face or factor, of factor
        arrays[name] = np.broadcast_to(np.moveaxis(indices, 0, -1)[..., None, None, :] * 12, arrays[name].shape)
    write_npz(path / "latent_arith" / "figures.npz", arrays)
    return path


@pytest.fixture(scope="module")
def written(painted: Path) -> Path:
    """The page of that run."""
    assert cli.main(["report", str(painted)]) == 0
    return painted / "report" / "index.html"


def test_a_run_ends_with_its_page(finished: Path) -> None:
    assert tuple(data_of(finished / "report" / "index.html")["sections"]) == NAMES


def opened(browser: Browser, path: Path, size: str = "desktop", **context: Any) -> tuple[Page, list[str]]:
    """A page in a new window, without a network, and what it complains of."""
    shown = browser.new_context(viewport=SIZES[size], offline=True, **context).new_page()
    complaints: list[str] = []

    def complain(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "willReadFrequently" not in message.text:  # the tests' own reading
            complaints.append(message.text)

    shown.on("console", complain)
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on("requestfailed", lambda request: complaints.append(request.url))
    shown.goto(path.as_uri())
    return shown, complaints


def picture(shown: Page, selector: str, index: int = 0) -> str:
    """What a canvas shows, as a data URI, once it has been drawn."""
    canvas = shown.locator(selector).nth(index)
    return str(
        canvas.evaluate("async (canvas) => { await new Promise(requestAnimationFrame); return canvas.toDataURL() }")
    )


def changed(shown: Page, selector: str, before: str, index: int = 0) -> str:
    """The same, once it is another picture; an error if it stays the same."""
    shown.wait_for_function(
        "([selector, index, before]) => document.querySelectorAll(selector)[index].toDataURL() !== before",
        arg=[selector, index, before],
        timeout=5000,
    )
    return picture(shown, selector, index)


def data_of(path: Path) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.S)
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_word_and_fits(browser: Browser, written: Path, size: str, scheme: Any) -> None:
    """Pictures of every section are left in the run's directory, to be looked at."""
    shown, complaints = opened(browser, written, size, color_scheme=scheme)
    shown.wait_for_load_state("networkidle")
    assert shown.locator("section").count() == len(NAMES)
    assert shown.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    for name in NAMES:
        section = shown.locator(f"#{name}")
        section.scroll_into_view_if_needed()
        section.screenshot(path=written.parent / "screenshots" / f"{name}-{size}-{scheme}.png")
    assert complaints == []
    assert written.stat().st_size < MOST_BYTES


def test_numbers_are_those_of_the_results(browser: Browser, written: Path, finished: Path) -> None:
    shown, _ = opened(browser, written)
    results = read_json(finished / "vae" / "results.json")
    row = shown.locator("#latent tr", has_text="squared error")
    for index, model in enumerate(("autoencoder", "vae")):
        value = results[model]["test_mse"]
        expect(row.locator("td").nth(index)).to_have_text(f"{value['mean']:.4g} ± {value['standard_deviation']:.2g}")
    stored = read_json(finished / "latent_arith" / "results.json")["face_in_800_bytes"]["float32"]
    expect(shown.locator("#faces tr", has_text="32-bit floats").locator("td").first).to_have_text(
        f"{stored['bytes']:.0f}"
    )


def test_the_plane_shows_what_is_decoded_under_the_pointer(browser: Browser, written: Path, finished: Path) -> None:
    shown, complaints = opened(browser, written)
    plane, tile = shown.locator("canvas.plane").nth(1), "#latent figure:has(.plane) canvas.tile"
    before = picture(shown, tile, 1)
    plane.scroll_into_view_if_needed()
    box = plane.bounding_box()
    assert box
    shown.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.9)
    changed(shown, tile, before, 1)
    extent = float(read_npz(finished / "vae" / "latents.npz")["vae_extent"])
    told = shown.locator("#latent figure:has(.plane) output").nth(1).text_content() or ""
    z = [float(number.replace("−", "-")) for number in re.findall(r"[+−]?\d+\.\d+", told)]
    np.testing.assert_allclose(z, [-0.8 * extent, -0.8 * extent], atol=0.02 * extent)
    expected = read_npz(finished / "vae" / "figures.npz")["vae_plane"][36, 4, ..., 0]
    pixels = (
        shown.locator(tile)
        .nth(1)
        .evaluate(
            "(canvas) => Array.from(canvas.getContext('2d').getImageData(0, 0, 28, 28).data).filter((_, i) => !(i % 4))"
        )
    )
    assert np.abs(np.reshape(pixels, (28, 28)) - expected.astype(float)).mean() < 8, "WebP loses a little"
    assert complaints == []


def test_a_digit_is_chosen_with_the_pointer_and_with_the_keyboard(browser: Browser, written: Path) -> None:
    shown, complaints = opened(browser, written)
    plane, told = shown.locator("canvas.plane").first, shown.locator("#latent output").last
    chosen = "#latent .row:has(> figure + figure) canvas"
    expect(told).to_contain_text(re.compile(r"digit \d; Autoencoder z"))  # it opens with a digit
    before = picture(shown, chosen)
    plane.click()
    first = changed(shown, chosen, before)
    plane.focus()
    for _ in range(9):
        shown.keyboard.press("ArrowRight")
        shown.keyboard.press("ArrowUp")
    shown.keyboard.press("Enter")
    changed(shown, chosen, first)
    buttons = shown.locator("#latent button")
    buttons.filter(has_text="samples").click()
    expect(shown.locator("#latent .two").last).to_be_visible()
    before = picture(shown, "canvas.plane", 1)
    buttons.filter(has_text="same axes").click()
    changed(shown, "canvas.plane", before, 1)
    before = picture(shown, "canvas.plane", 0)
    buttons.filter(has_text="3").first.click()
    changed(shown, "canvas.plane", before, 0)
    assert complaints == []


def test_a_finger_chooses_a_digit_and_moves_a_slider(browser: Browser, written: Path) -> None:
    shown, complaints = opened(browser, written, "phone", has_touch=True, is_mobile=True)
    shown.locator("canvas.plane").nth(1).tap()
    expect(shown.locator("#latent output").last).to_contain_text(re.compile(r"digit \d"))
    slider = shown.locator("#faces input[type=range]").first
    box = slider.bounding_box()
    assert box
    slider.tap(position={"x": box["width"] - 4, "y": box["height"] / 2})
    expect(shown.locator("#faces .slider output").first).to_have_text("+4")
    assert complaints == []


def test_sliders_move_a_face_and_the_marker(browser: Browser, written: Path) -> None:
    shown, complaints = opened(browser, written)
    sliders, faces = shown.locator("#faces input[type=range]"), shown.locator("#faces canvas.face")

    def seen(label: str, *colour: int) -> None:
        expect(faces.nth(1)).to_have_attribute("aria-label", label)
        shown.wait_for_function(
            "(wanted) => { const [r, g, b] = document.querySelectorAll('#faces canvas.face')[1].getContext('2d')"
            ".getImageData(32, 32, 1, 1).data; return [r, g, b].every((value, i) => Math.abs(value - wanted[i]) < 5) }",
            arg=[12 * level for level in colour],
            timeout=5000,
        )

    seen("face 1, Smiling +3", 0, 0, 7)  # it opens on an edit
    sliders.first.focus()
    shown.keyboard.press("End")
    expect(shown.locator("#faces .slider output").first).to_have_text("+4")
    expect(shown.locator("#faces svg[data-marked]").first).to_have_attribute("data-marked", "8")
    seen("face 1, Smiling +4", 0, 0, 8)
    shown.keyboard.press("ArrowLeft")
    seen("face 1, Smiling +3", 0, 0, 7)
    shown.locator("#faces select").nth(1).select_option("Eyeglasses")
    seen("face 1, Smiling +3, Eyeglasses 0", 0, 7, 4)
    sliders.nth(1).focus()
    shown.keyboard.press("Home")
    seen("face 1, Smiling +3, Eyeglasses −4", 0, 7, 0)
    shown.locator("#faces .choices input").first.focus()
    shown.keyboard.press("ArrowRight")
    seen("face 2, Smiling +3, Eyeglasses −4", 1, 7, 0)
    shown.locator("#faces select").first.select_option("Big_Lips")
    seen("face 2, Big Lips +3", 3, 1, 7)
    expect(shown.locator("#faces select").nth(1)).to_be_hidden()
    assert complaints == []


def test_the_matrix_tells_what_the_pointer_and_the_keyboard_are_at(
    browser: Browser, written: Path, finished: Path
) -> None:
    shown, _ = opened(browser, written)
    told, cells = shown.locator("output.told"), shown.locator(".matrix td[tabindex]")
    scores = read_npz(finished / "latent_arith" / "scorecard.npz")
    cells.nth(1).hover()
    points = scores["leakage_balanced"][0, 1]
    sign = "+" if points > 0.05 else "−" if points < -0.05 else ""
    expect(told).to_contain_text(f"Smiling +3 changes Mouth Slightly Open by {sign}{abs(points):.1f} percentage points")
    cells.first.focus()
    shown.keyboard.press("ArrowDown")
    expect(told).to_contain_text("Mouth Slightly Open +3 changes Smiling")


def test_the_attack_follows_its_slider(browser: Browser, written: Path, finished: Path) -> None:
    shown, complaints = opened(browser, written)
    slider, results = shown.locator("#attack input[type=range]"), read_json(finished / "adversarial" / "results.json")
    canvases = "#attack .pictures canvas"
    shown.wait_for_function("document.querySelectorAll('#attack .pictures canvas')[2].width > 1")
    slider.focus()
    shown.keyboard.press("Home")
    expect(shown.locator("#attack figcaption").nth(1)).to_have_text("no perturbation: less than one grey level")
    before = picture(shown, canvases, 2)
    shown.keyboard.press("End")
    changed(shown, canvases, before, 2)
    count = len({entry["epsilon"] for entry in results["sweep"]})
    reached = [row for row, entry in enumerate(results["attacks"]) if entry["success_after_png"]]
    first = reached[0] if reached else 0
    entry = results["sweep"][count * first + count - 1]
    expect(shown.locator("#attack .slider output")).to_have_text(
        f"{entry['epsilon_grey_levels']:.3g} grey levels (0.01 of [0, 1])"
    )
    expect(shown.locator("#attack .bars output").first).to_have_text(f"{100 * entry['confidence']:.1f} %")
    verb = "reached" if entry["success_after_png"] else "missed"
    expect(shown.locator("#attack .badge")).to_have_text(f"objective {verb} by the saved PNG")
    saved = f"{entry['top1_name_after_png'].replace('_', ' ')}, {100 * entry['confidence_after_png']:.1f} %"
    expect(shown.locator("#attack figcaption").nth(2)).to_have_text(f"saved with 8 bits: {saved}")
    pixels = (
        shown.locator(canvases)
        .nth(2)
        .evaluate(
            "(c) => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
            ".filter((_, i) => i % 4 < 3)"
        )
    )
    exact = read_npz(finished / "adversarial" / "figures.npz")["adversarial"][first, count - 1]
    np.testing.assert_array_equal(np.reshape(pixels, exact.shape), exact)
    shown.locator("#attack .choices label").nth(2).click()
    entry = results["sweep"][count * 2 + count - 1]
    expect(shown.locator("#attack .bars output").first).to_have_text(f"{100 * entry['confidence']:.1f} %")
    expect(shown.locator("#attack .bars span").first).to_have_text(entry["top1_name"].replace("_", " "))
    assert complaints == []


def test_robust_accuracy_follows_its_slider(browser: Browser, tmp_path: Path) -> None:
    entries = [
        {"epsilon_grey_levels": level, **{f"{kind}{end}": value - less for kind in ("accuracy", "accuracy_8_bit")
         for end, less in (("", 0.0), ("_low", 0.1), ("_high", -0.1))}}
        for level, value in ((0.0, 0.9), (2.55, 0.4), (5.1, 0.15))
    ]  # fmt: skip
    results: dict[str, Any] = {"photos": 20, "robust_accuracy": entries, "attack": "pgd", "norm": "linf"}
    results["attack_settings"] = {"steps": 3}
    sections = {
        "attack": {"title": "Attack", "robust": accuracy_curves(results)},
        "made": {"title": "How it was made", "command": "python run.py", "parts": [], "files": []},
    }
    html = report_page.format_html({"run": "robust", "sections": sections})
    (tmp_path / "index.html").write_text(html, "utf-8")
    shown, complaints = opened(browser, tmp_path / "index.html")
    told = "20 photos. Robust accuracy against PGD in L∞, steps 3: an upper bound, for a stronger attack may find more."
    expect(shown.locator("#attack p").first).to_have_text(told)
    shown.locator("#attack input[type=range]").focus()
    shown.keyboard.press("ArrowRight")
    expect(shown.locator("#attack .slider output")).to_have_text("2.55 grey levels")
    expect(shown.locator("#attack svg[data-marked]").first).to_have_attribute("data-marked", "1")
    expect(shown.locator("#attack p").last).to_have_text(
        "as computed: 40.0 % (30.0 % to 50.0 %); saved with 8 bits: 40.0 % (30.0 % to 50.0 %)"
    )
    assert complaints == []


def test_a_class_that_rounding_changes_is_told_of_the_saved_picture(
    browser: Browser, finished: Path, tmp_path: Path
) -> None:
    """The floats reach the objective, the PNG is taken for another class: caption and badge are those of the PNG."""
    path = tmp_path / "run"
    shutil.copytree(finished, path, ignore=shutil.ignore_patterns("checkpoints"))
    results = read_json(path / "adversarial" / "results.json")
    for entry in results["sweep"] + results["attacks"]:
        entry |= {"success": True, "success_after_png": False, "top1_name": "pug", "top1_name_after_png": "beagle"}
        entry |= {"confidence_after_png": 0.625}
    (path / "adversarial" / "results.json").write_text(json.dumps(results))
    assert cli.main(["report", str(path)]) == 0
    shown, _ = opened(browser, path / "report" / "index.html")
    expect(shown.locator("#attack figcaption").nth(2)).to_have_text("saved with 8 bits: beagle, 62.5 %")
    expect(shown.locator("#attack .badge")).to_have_text("objective missed by the saved PNG")
    count = len({entry["attack"] for entry in results["attacks"]})
    expect(shown.locator(".findings a").nth(2)).to_contain_text(f"0 of {len(results['attacks']) // count}")


def test_it_opens_with_a_finding_of_every_experiment(browser: Browser, written: Path, finished: Path) -> None:
    shown, _ = opened(browser, written)
    distances = read_json(finished / "vae" / "results.json")
    for index, (link, number) in enumerate(
        {
            "#latent": f"{distances['vae']['prior_frechet_distance']['mean']:.1f}",
            "#faces": " %",
            "#attack": " of ",
        }.items()
    ):
        finding = shown.locator(".findings a").nth(index)
        expect(finding).to_have_attribute("href", link)
        expect(finding.locator("strong")).to_contain_text(number)
    for name in ("vae", "latent_arith", "adversarial"):
        drawn = {path.name for path in (finished / name / "figures").glob("*.png")}
        links = shown.locator(f"section a[href^='../{name}/figures/']").evaluate_all("(all) => all.map((a) => a.href)")
        assert drawn <= {link.rsplit("/", 1)[1] for link in links}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_reader_of_screens_finds_nothing_amiss(browser: Browser, written: Path, scheme: Any) -> None:
    shown, _ = opened(browser, written, color_scheme=scheme, bypass_csp=True)
    shown.wait_for_load_state("networkidle")
    found = Axe().run(shown).response
    assert len(found["passes"]) > 20
    assert [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found["violations"]] == []


def test_it_prints_on_four_sheets_with_its_colours_and_chosen_names(browser: Browser, written: Path) -> None:
    shown, _ = opened(browser, written)
    shown.wait_for_load_state("networkidle")
    assert len(re.findall(rb"/Type /Page\b", shown.pdf(format="A4"))) <= 4
    shown.emulate_media(media="print")
    for part in (".matrix td", ".bar i", ".badge", ".scale i"):
        adjust = shown.locator(part).first.evaluate("(one) => getComputedStyle(one).printColorAdjust")
        assert adjust == "exact", part
    expect(shown.locator("#faces select").first).to_be_visible()
    expect(shown.locator("#attack .choices label:has(:checked)")).to_be_visible()


def test_the_command_is_copied_and_files_are_linked(browser: Browser, written: Path) -> None:
    shown, _ = opened(browser, written, permissions=["clipboard-read", "clipboard-write"])
    command = shown.locator("#made pre").text_content() or ""
    assert command.startswith("python run.py all --preset ") and "--vae.epochs 4" in command
    shown.locator("#made button").click()
    expect(shown.locator("#made button")).to_have_text("copied")
    assert shown.evaluate("navigator.clipboard.readText()") == command
    links = shown.locator("#made li a").evaluate_all("(links) => links.map((link) => link.getAttribute('href'))")
    assert "../vae/results.json" in links
    assert all((written.parent / link).is_file() for link in links)


def test_the_command_that_repeats_a_run_is_understood(written: Path) -> None:
    command = data_of(written)["sections"]["made"]["command"].split()[2:]
    assert command[0] == "all"
    assert cli._parse(command).config == Run(written.parent.parent).config


def test_values_of_every_kind_are_repeated_and_quoted() -> None:
    demo = presets("all")["demo"]
    attack = {"targets": (-1, 2), "target_classes": ("pug", "a b; rm -rf ~"), "label": "x'y", "epsilons": (0.0, 0.5)}
    config = dataclasses.replace(
        demo,
        adversarial=dataclasses.replace(demo.adversarial, **attack),
        latent_arith=dataclasses.replace(demo.latent_arith, skip_bad=True, label="Smiling"),
        vae=dataclasses.replace(demo.vae, seeds=3, learning_rate=1e-4),
    )
    words = shlex.split(cli.repeat_command("all", config))
    assert words[:3] == ["python", "run.py", "all"]
    assert cli._parse(words[2:]).config == config


def test_a_run_of_a_part_tells_how_to_get_the_others(browser: Browser, finished: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(finished / "vae", part)
    record = read_json(finished / "config.json")
    (part / "config.json").write_text(json.dumps(record | {"experiment": "vae", "config": record["config"]["vae"]}))
    assert cli.main(["report", str(part)]) == 0
    shown, complaints = opened(browser, part / "report" / "index.html")
    expect(shown.locator("#faces")).to_contain_text("Not part of this run. To make it: python run.py latent-arith")
    expect(shown.locator("canvas.plane")).to_have_count(2)
    (part / "latents.npz").unlink()
    assert cli.main(["report", str(part)]) == 0
    shown, more = opened(browser, part / "report" / "index.html")
    expect(shown.locator("#latent")).to_contain_text("latents.npz is missing). To finish it:")
    expect(shown.locator("#latent")).to_contain_text(f"python run.py vae --resume {part}")
    assert complaints == more == []


def test_of_more_than_two_latent_dimensions_it_says_which_plane_it_shows(
    browser: Browser, finished: Path, tmp_path: Path
) -> None:
    """A run whose codes have five dimensions, of which the planes are the last two."""
    part = tmp_path / "part"
    shutil.copytree(finished / "vae", part, ignore=shutil.ignore_patterns("checkpoints", "report"))
    record = read_json(part / "config.json")
    record["config"]["latent_dim"] = 5
    (part / "config.json").write_text(json.dumps(record))
    latents = read_npz(part / "latents.npz")
    wide = {name: np.pad(latents[name], [(0, 0), (3, 0)]) for name in ("autoencoder_z", "vae_z", "samples_z")}
    axes = dict.fromkeys(("autoencoder_axes", "vae_axes"), np.eye(2, 5, 3, dtype=np.float32))
    write_npz(part / "latents.npz", latents | wide | axes)
    write_npz(part / "deliverables.npz", {"ans03": wide["vae_z"]})
    assert cli.main(["report", str(part)]) == 0
    shown, complaints = opened(browser, part / "report" / "index.html")
    expect(shown.locator("#latent")).to_contain_text(
        "The models have 5 latent dimensions. Each plane is the one through"
    )
    two = data_of(finished / "report" / "index.html")["sections"]["latent"]["planes"]
    assert data_of(part / "report" / "index.html")["sections"]["latent"]["planes"] == two
    assert complaints == []


def with_evil_strings(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: with_evil_strings(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_evil_strings(inner) for inner in value]
    return value + EVIL if isinstance(value, str) else value


def test_no_text_of_a_run_becomes_html(browser: Browser, finished: Path, tmp_path: Path) -> None:
    """A script in every string of results and of the record, in all arrays of text and in a file's name."""
    evil = tmp_path / "evil"
    shutil.copytree(finished, evil, ignore=shutil.ignore_patterns("checkpoints", "report"))
    fixed = {"attack", "norm", "scale"}  # words of ours that are looked up
    for path in evil.rglob("results.json"):
        results = with_evil_strings(read_json(path))
        for name in fixed & results.keys():
            results[name] = read_json(finished / path.relative_to(evil))[name]
        if "scorecard" in results:
            results["scorecard"]["scale"] = "deviation"
        path.write_text(json.dumps(results))
    for path in evil.rglob("config.json"):
        record = read_json(path)
        told = {key: with_evil_strings(value) for key, value in record.items() if key not in ("config", "experiment")}
        path.write_text(json.dumps(record | told))
    for path in evil.rglob("*.npz"):
        arrays = read_npz(path)
        texts = {
            name: np.asarray(np.char.add(array, EVIL)) for name, array in arrays.items() if array.dtype.kind == "U"
        }
        if texts and path.name != "edit.npz":
            write_npz(path, arrays | texts)
    (evil / "vae" / "<img src=x onerror=alert(1)>.png").write_bytes(b"")
    assert cli.main(["report", str(evil)]) == 0
    path = evil / "report" / "index.html"
    text = path.read_text("utf-8")
    assert "<script>document" not in text and "<img" not in text
    shown, complaints = opened(browser, path)
    assert shown.title() == f"latentlab: {evil.parent.name}/{evil.name}"
    assert shown.locator("script").count() == 2 and shown.locator("img").count() == 0
    assert shown.locator("#latent canvas.plane").count() == 2, "the parts are shown all the same"
    assert "taken" in (shown.locator("#faces").text_content() or ""), "as text"
    assert "taken" in (shown.locator("#attack").text_content() or "")
    assert "taken" in (shown.locator("#made").text_content() or "")
    assert complaints == []


def test_values_of_another_type_leave_a_section_out(browser: Browser, finished: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken, ignore=shutil.ignore_patterns("checkpoints", "report"))
    results = read_json(broken / "adversarial" / "results.json")
    (broken / "adversarial" / "results.json").write_text(json.dumps(results | {"sweep": {"no": "list"}}))
    assert cli.main(["report", str(broken)]) == 0
    shown, complaints = opened(browser, broken / "report" / "index.html")
    expect(shown.locator("#attack")).to_contain_text("Cannot be shown, for its files do not fit together")
    assert complaints == []


def test_a_sprite_holds_its_pictures_in_order() -> None:
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 3), np.uint8)
    made = sprite(images, columns=2, lossless=True)
    sheet = np.asarray(Image.open(BytesIO(b64decode(made["uri"].partition(",")[2]))))
    assert sheet.shape == (9, 4, 3)
    np.testing.assert_array_equal(sheet[::3, ::2, 0], [[0, 1], [2, 3], [4, 0]])
    assert (made["columns"], made["width"], made["height"]) == (2, 2, 3)


def test_the_page_names_the_script_that_may_act() -> None:
    text = report_page.format_html({"run": "</script><!--", "sections": {}})
    assert "</script><!--" not in text and text.count("sha256-") == 2
