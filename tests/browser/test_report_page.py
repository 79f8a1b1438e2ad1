"""The explorer page in a real browser."""

import base64
import io
import json
import sys

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from timm.models import VisionTransformer

from repshift import Recipe, ShiftTracker, load_model
from repshift.analysis import cli
from repshift.analysis.output.results import Results, write_results
from repshift.analysis.report.contents import Subject, make_report
from repshift.analysis.report.examination import MeasuredShift
from repshift.analysis.report.pictures import load_pictures
from repshift.analysis.report.writing import write_page
from repshift.analysis.samples.canvases import evaluation_canvases
from repshift.analysis.samples.images import normalised

SCHEDULE = "0.2@0,2,4"
SPEEDS = {"dense": 100.5, "shift": 1000.25, "norm": 99.0}
EVALUATED = [
    {"model": "tiny_vit", "method": "dense", "schedule": None, "top1": 96.5, "gmacs": 0.0864, "delta_top1": None},
    {"model": "tiny_vit", "method": "shift", "schedule": SCHEDULE, "top1": 9.75, "gmacs": 0.0585, "delta_top1": -86.75},
    {"model": "tiny_vit", "method": "norm", "schedule": SCHEDULE, "top1": 88.0, "gmacs": 0.0585, "delta_top1": -8.5},
]
TIMED = [
    {"model": "tiny_vit", "method": method, "schedule": "" if method == "dense" else SCHEDULE, "batch_size": 8}
    | {"samples_per_sec": speed, "gmacs": 0.1}
    for method, speed in SPEEDS.items()
]


def write_report(monkeypatch, folder, *arguments):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["repshift", "report", *map(str, arguments), "--output", "report.html"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    return folder / "report.html"


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """Three canvases seen by tiny_vit, dense and pruned, with an evaluation and a benchmark."""
    folder = tmp_path_factory.mktemp("report")
    write_results(folder / "eval.json", Results("eval", EVALUATED, {"torch": "2.8"}))
    write_results(folder / "bench.json", Results("bench", TIMED, {"threads": 1}))
    settings = ("--model", "tiny_vit", "--pretrained", "--drop", SCHEDULE, "--num-images", 3)
    with pytest.MonkeyPatch.context() as monkeypatch:
        return write_report(monkeypatch, folder, "eval.json", "bench.json", *settings)


def drawn(page, name):
    """Read the pixels of a canvas, ``(rows, columns, 3)``."""
    address = page.evaluate("name => document.getElementById(name).toDataURL()", name)
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def column(page, table, number):
    return page.locator(f"{table} tbody tr td:nth-child({number})").all_inner_texts()


def table(name):
    return f"[role=region][aria-label*='{name}'] table"


# --- images, block by block -------------------------------------------------------------------------------------


def test_the_maps_show_what_the_tracker_measures(open_page, report):
    page = open_page(report)
    page.locator("#block").fill("3")
    model = load_model("tiny_vit", pretrained=True)
    images = normalised(model, evaluation_canvases().images[:3])
    maps = {}
    for name, watched in (("dense", model), ("pruned", ShiftTracker(model).prune(SCHEDULE))):
        with ShiftTracker(watched) as tracker, torch.inference_mode():
            watched(images)
        maps[name] = tracker.maps["blocks.3"][0].numpy()
    values = np.concatenate([values[~np.isnan(values)] for values in maps.values()])
    dropped = 0
    for name, measured in maps.items():
        side = 448 // len(measured)
        centres = drawn(page, f"map-{name}")[side // 2 :: side, side // 2 :: side]
        shares = (measured - values.min()) / (values.max() - values.min())
        present = ~np.isnan(measured)
        expected = np.round(255 * colormaps["viridis"](shares)[..., :3])
        assert np.abs(centres - expected)[present].max() <= 6  # two steps of 8 bits
        grey = np.ptp(centres[~present], axis=-1)
        dropped += len(grey)
        assert (grey < 25).all()
    assert dropped == 256 - 164


def test_the_slider_moves_the_maps_by_keyboard(open_page, report):
    page = open_page(report)
    page.locator("#block").focus()
    seen = [[drawn(page, f"map-{name}") for name in ("kept", "dense", "pruned")]]
    for _ in range(2):
        page.keyboard.press("ArrowRight")
        seen.append([drawn(page, f"map-{name}") for name in ("kept", "dense", "pruned")])
    assert all((before != after).any() for before, after in zip(seen[0], seen[1], strict=True))
    assert all((before != after).any() for before, after in zip(seen[1], seen[2], strict=True))
    assert page.locator("#block-told").inner_text() == "2 of 0 to 5 (blocks.2): 164 of 256 tokens stay"
    assert page.locator("#block").get_attribute("aria-valuetext") == page.locator("#block-told").inner_text()
    page.keyboard.press("End")
    assert "(blocks.5): 132 of 256" in page.locator("#block-told").inner_text()


def test_the_kept_image_covers_what_was_dropped_and_nothing_else(open_page, report):
    page = open_page(report)
    page.locator("#block").fill("5")
    canvas = evaluation_canvases().images[0, 0].numpy()
    model = load_model("tiny_vit", pretrained=True)
    pruned = ShiftTracker(model).prune(SCHEDULE)
    with ShiftTracker(pruned) as tracker, torch.inference_mode():
        pruned(normalised(model, evaluation_canvases().images[:1]))
    kept = torch.zeros(256, dtype=torch.bool)
    kept[tracker.kept["blocks.4"][0]] = True
    as_seen = np.kron(canvas, np.ones((7, 7)))
    unchanged = np.abs(drawn(page, "map-kept").mean(-1) - as_seen).reshape(16, 28, 16, 28).max((1, 3)) < 2
    assert (unchanged == kept.reshape(16, 16).numpy()).all()


def test_images_are_chosen_by_arrow_keys(open_page, report):
    page = open_page(report)
    before = drawn(page, "map-dense")
    page.locator("input[name=image]").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#shown").inner_text().startswith("canvas 1, digit ")
    assert (drawn(page, "map-dense") != before).any()


def test_a_token_is_read_by_pointer_and_by_keys(open_page, report):
    page = open_page(report)
    box = page.locator("#map-dense").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 5.5 / 16, box["y"] + box["height"] * 2.5 / 16)
    assert page.locator("#reading").inner_text().startswith("row 2, column 5 · dense ")
    page.locator("#map-dense").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#reading").inner_text().startswith("row 3, column 5 · dense ")


def test_a_token_is_read_by_touch(open_page, report):
    page = open_page(report, has_touch=True)
    for name in ("dense", "pruned"):  # the second tap takes the focus from the first map
        box = page.locator(f"#map-{name}").bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] * 5.5 / 16, box["y"] + box["height"] * 2.5 / 16)
        assert page.locator("#reading").inner_text().startswith("row 2, column 5 · dense ")
    page.locator("#block").focus()
    assert not page.locator("#reading").inner_text().startswith("row")


# --- who joined whom ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Two canvases seen by tiny_vit, dense and merged; and of the first, what joined what behind the second cut."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        settings = ("--model", "tiny_vit", "--pretrained", "--drop", SCHEDULE, "--pruner", "mnn", "--num-images", 2)
        path = write_report(monkeypatch, tmp_path_factory.mktemp("merged"), *settings)
    model = load_model("tiny_vit", pretrained=True)
    images = normalised(model, evaluation_canvases().images[:2])
    tracker = ShiftTracker(ShiftTracker(model).prune(SCHEDULE, pruner="mnn")).run(images)
    return path, tracker.joined["blocks.2"][0].numpy()


def lone_and_merged(joined):
    """A place that stands alone, and one of a group of three or more that is no row of neighbours."""
    places = [np.flatnonzero(joined == joined[place]) for place in range(256)]
    merged = next(place for place in range(16, 240) if len(places[place]) > 2 and np.diff(places[place]).max() > 1)
    return next(place for place in range(256) if len(places[place]) == 1), merged


@pytest.mark.parametrize(("by", "scheme"), [("pointer", "light"), ("keys", "dark"), ("touch", "light")])
def test_pointing_at_a_patch_shows_its_group_and_says_how_many_are_in_it(open_page, merged, by, scheme):
    path, joined = merged
    page = open_page(path, width=360, height=740, color_scheme=scheme, has_touch=by == "touch")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator("#block").fill("3")  # a block that merges none shows what was merged before
    for place in lone_and_merged(joined):
        group = (joined == joined[place]).reshape(16, 16)
        page.locator("#block").focus()
        page.mouse.move(0, 0)
        before = {name: drawn(page, f"map-{name}") for name in ("kept", "dense", "pruned")}
        canvas = page.locator("#map-kept")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        spot = box["x"] + box["width"] * (place % 16 + 0.5) / 16, box["y"] + box["height"] * (place // 16 + 0.5) / 16
        if by == "pointer":
            page.mouse.move(*spot)
        elif by == "touch":
            page.touchscreen.tap(*spot)
        else:
            canvas.focus()
            for key, times in (("ArrowRight", 1 + place % 16), ("ArrowDown", place // 16)):
                for _ in range(times):
                    page.keyboard.press(key)
        size = int(group.sum())
        words = "a token of its own" if size == 1 else f"one of {size} patches in a token"
        assert page.locator("#reading").inner_text().endswith(f" · {words}")
        after = {name: drawn(page, f"map-{name}") for name in before}
        side = 28
        for name in before:  # the outline is white beside every patch of the group that has a neighbour outside
            changed = (after[name] != before[name]).any(-1)
            centres = changed[side // 2 :: side, side // 2 :: side]
            assert (centres == (~group if name == "kept" else False)).all(), name
            sides = group & ~np.roll(group, 1, 0)
            for row, column in zip(*sides.nonzero(), strict=True):
                if row:
                    assert (after[name][row * side, column * side + side // 2] > 200).all()


def test_a_merged_model_is_told_as_such(open_page, merged):
    path, joined = merged
    page = open_page(path)
    assert "Merged\n20 % after block 0, 2, 4" in page.locator("#facts").inner_text()
    assert "Scored by" not in page.locator("#facts").inner_text()
    assert "dropped" not in page.locator(".legend").first.inner_text()
    page.locator("#block").fill("2")
    assert page.locator("#block-told").inner_text() == "2 of 0 to 5 (blocks.2): 164 of 256 tokens stay"
    label = f": 164 of 256 tokens stay. The largest stands for {np.bincount(joined).max()} patches."
    assert page.locator("#map-kept").get_attribute("aria-label").endswith(label)
    assert page.locator(".steps .cuts").count() == 3
    held = json.loads(page.locator("#data").inner_text())["explorer"]["images"]
    assert [[text is not None for text in image["joined"]] for image in held] == [[True, False] * 3] * 2
    page.locator("#map-kept").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#reading").inner_text().startswith("row 0, column 0 · dense ")


def test_merged_patches_come_half_way_to_their_mean_colour(open_page, merged):
    path, joined = merged
    page = open_page(path)
    page.locator("#block").fill("2")
    canvas = evaluation_canvases().images[0, 0].numpy().astype(float)
    patches = canvas.reshape(16, 4, 16, 4).swapaxes(1, 2).reshape(256, 4, 4)
    for group in range(joined.max() + 1):
        own = joined == group
        if own.sum() > 1:
            patches[own] = (patches[own] + patches[own].mean()) / 2
    expected = np.kron(patches.reshape(16, 16, 4, 4).swapaxes(1, 2).reshape(64, 64), np.ones((7, 7)))
    inside = np.kron(np.ones((16, 16)), np.pad(np.ones((22, 22)), 3)).astype(bool)  # without the lines
    assert np.abs(drawn(page, "map-kept").mean(-1) - expected)[inside].max() < 3


def test_predictions_are_those_of_the_two_models(open_page, report):
    page = open_page(report)
    model = load_model("tiny_vit", pretrained=True)
    images = normalised(model, evaluation_canvases().images[:1])
    with torch.inference_mode():
        shares = [m(images).softmax(1)[0] for m in (model, ShiftTracker(model).prune(SCHEDULE))]
    rows = page.locator(".predictions tbody tr")
    names = rows.locator("th").all_inner_texts()
    expected = {int(index) for values in shares for index in values.topk(5).indices}
    assert {f"digit {index}" for index in expected} == set(names)
    for row, name in enumerate(names):
        for cell, values in zip(rows.nth(row).locator("td").all_inner_texts(), shares, strict=True):
            assert abs(float(cell.strip().removesuffix(" %")) - 100 * values[int(name[-1])]) < 0.06


def test_colours_can_be_shared_by_blocks_or_images(open_page, report):
    page = open_page(report)
    ranges = {}
    for scale in ("block", "image", "all"):
        page.locator("#scale").select_option(scale)
        low, high = (float(page.locator(f".scale span:nth-of-type({place})").inner_text()) for place in (1, 2))
        ranges[scale] = low, high
    assert ranges["image"][0] <= ranges["block"][0] < ranges["block"][1] <= ranges["image"][1]
    assert ranges["all"][0] <= ranges["block"][0] < ranges["block"][1] <= ranges["all"][1]
    assert len(set(ranges.values())) == 3


# --- tables and curves ------------------------------------------------------------------------------------------


def test_a_table_sorts_numbers_by_size_both_ways(open_page, report):
    page = open_page(report)
    benchmark = table("bench.json")
    button = page.locator(f"{benchmark} thead button", has_text="images/s")
    head = page.locator(f"{benchmark} thead th", has_text="images/s")
    assert column(page, benchmark, 3) == ["100.5", "1000.25", "99"]
    button.click()
    assert column(page, benchmark, 3) == ["99", "100.5", "1000.25"]
    assert column(page, benchmark, 1) == ["norm", "dense", "shift"]
    assert head.get_attribute("aria-sort") == "ascending"
    button.focus()
    page.keyboard.press("Enter")
    assert column(page, benchmark, 3) == ["1000.25", "100.5", "99"]
    assert head.get_attribute("aria-sort") == "descending"


def test_empty_cells_stay_last_whichever_way_a_table_is_sorted(open_page, report):
    page = open_page(report)
    evaluation = table("eval.json")
    button = page.locator(f"{evaluation} thead button", has_text="gain")
    number = 1 + page.locator(f"{evaluation} thead button").all_inner_texts().index("gain, points of top-1")
    button.click()
    assert column(page, evaluation, number) == ["-86.75", "-8.5", ""]
    button.click()
    assert column(page, evaluation, number) == ["-8.5", "-86.75", ""]


def test_curves_stand_at_their_numbers(open_page, report):
    page = open_page(report)
    marks = page.locator("svg[aria-labelledby=chart-0] .mark")
    titles = [mark.locator("title").evaluate("node => node.textContent") for mark in marks.all()]
    heights = [box["y"] + box["height"] / 2 for box in (mark.bounding_box() for mark in marks.all())]
    by_accuracy = sorted(zip(titles, heights, strict=True), key=lambda entry: float(entry[0].rpartition(", ")[2]))
    assert [title.rpartition(", ")[2] for title, _ in by_accuracy] == ["9.75", "88", "96.5"]
    assert [height for _, height in by_accuracy] == sorted(heights, reverse=True)
    (low, middle, high) = (height for _, height in by_accuracy)
    assert (middle - high) / (low - high) == pytest.approx((96.5 - 88) / (96.5 - 9.75), abs=0.01)


SIZES = """() => [...document.querySelectorAll('.charts svg text')].map((node) => {
  const scale = node.ownerSVGElement.getScreenCTM().a, box = node.getBoundingClientRect();
  const picture = node.ownerSVGElement.getBoundingClientRect();
  const inside = box.left >= picture.left - 1 && box.right <= picture.right + 1
    && box.top >= picture.top - 1 && box.bottom <= picture.bottom + 1;
  return [parseFloat(getComputedStyle(node).fontSize) * scale, inside, [box.left, box.right, box.top, box.bottom]];
})"""


@pytest.mark.parametrize("width", [320, 360, 620, 1200])
def test_the_labels_of_charts_can_be_read_at_any_width(open_page, report, width):
    page = open_page(report, width=width)
    found = page.evaluate(SIZES)
    assert len(found) > 10
    assert min(size for size, _, _ in found) >= 10
    assert all(inside for _, inside, _ in found)
    boxes = [box for _, _, box in found]
    for place, (left, right, top, bottom) in enumerate(boxes):
        for other in boxes[place + 1 :]:
            assert right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top


def test_charts_follow_the_width_of_the_window(open_page, report):
    page = open_page(report)
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_until("document.documentElement.scrollWidth === 360")
    page.wait_until("document.querySelector('.charts svg[role=img]').viewBox.baseVal.width < 330")
    assert min(size for size, _, _ in page.evaluate(SIZES)) >= 10


def test_many_curves_all_look_different(open_page, monkeypatch, tmp_path):
    rows = [{"study": "many", "block": place, "setting": f"s{setting}", "delta": -1.0 - setting}
            for setting in range(20) for place in (0, 1)]  # fmt: skip
    write_results(tmp_path / "ablation.json", Results("ablate", rows, {"model": "a"}))
    page = open_page(write_report(monkeypatch, tmp_path, "ablation.json"))
    looks = page.locator(".charts svg g").evaluate_all(
        """groups => groups.map((group) => {
             const mark = group.querySelector(".mark"), line = group.querySelector(".curve");
             const { fill, stroke } = getComputedStyle(mark);
             const box = mark.getBBox(), middle = [box.x + box.width / 2, box.y + box.height / 2];
             const corners = [...(mark.points || [])].map((point) =>
               Math.round(point.x - middle[0]) + " " + Math.round(point.y - middle[1]));
             return [getComputedStyle(line).stroke, mark.tagName, corners.sort(), fill, stroke];
           })"""
    )
    assert len(looks) == 20
    coloured = {json.dumps([line, fill, stroke]) for line, _, _, fill, stroke in looks}
    shaped = {json.dumps([line, tag, corners]) for line, tag, corners, _, _ in looks}
    assert len(coloured) == 16  # eight colours, filled and hollow
    assert len(shaped) == 20


def test_what_is_not_joined_is_said_in_place_of_the_chart(open_page, monkeypatch, tmp_path):
    write_results(tmp_path / "eval.json", Results("eval", [EVALUATED[0], EVALUATED[0] | {"top1": 90.0}]))
    page = open_page(write_report(monkeypatch, tmp_path, "eval.json"))
    assert page.locator(".charts svg").count() == 0
    assert "has two accuracies, 96.5 and 90.0" in page.locator(".charts").inner_text()
    assert page.locator(f"{table('eval.json')} tbody tr").count() == 2


# --- safety, size and looks -------------------------------------------------------------------------------------


def test_names_and_results_are_shown_as_text(open_page, monkeypatch, tmp_path):
    evil = "<img src=x onerror=document.title='taken'>"
    closing = "</script><script>document.title='taken'</script>"
    values = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / f"{evil}.png")
    (tmp_path / "classes.txt").write_text("\n".join([evil] * 10))
    row = {"model": closing, evil: evil, "method": evil, "top1": 3.0, "gmacs": 1.0, "schedule": ""}
    write_results(tmp_path / "eval.json", Results("eval", [row, row | {"method": closing}], {evil: closing}))
    given = ("eval.json", f"{evil}.png", "--model", "tiny_vit", "--classes", "classes.txt")
    page = open_page(write_report(monkeypatch, tmp_path, *given))
    assert page.title() == "repshift: tiny_vit"
    assert page.locator("#shown").inner_text() == f"{evil}.png"
    assert page.locator(".predictions tbody th").all_inner_texts() == [evil] * 5
    text = page.locator("body").inner_text()
    assert evil in text
    assert closing in text
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("kind", ["script", "img", "link", "iframe"])
def test_the_policy_lets_nothing_load(browser, report, kind):
    page = browser.new_page()
    page.goto(report.as_uri())
    refused = page.evaluate(
        """kind => new Promise((resolve) => {
             document.addEventListener("securitypolicyviolation", (event) => resolve(event.disposition));
             const node = document.createElement(kind);
             if (kind === "link") Object.assign(node, { rel: "stylesheet", href: "http://localhost:9/x" });
             else node.src = "http://localhost:9/x";
             document.body.append(node);
             setTimeout(() => resolve("not refused"), 5000);
           })""",
        kind,
    )
    page.close()
    assert refused == "enforce"


def test_sixteen_images_and_twelve_blocks_stay_below_five_megabytes(open_page, tmp_path):
    torch.manual_seed(0)
    model = VisionTransformer(embed_dim=32, depth=12, num_heads=2).eval()
    for index in range(16):  # noise is what compresses worst
        noise = np.random.RandomState(index).randint(0, 256, (224, 224, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{index:02d}.png")
    classes = [f"class {index}" for index in range(1000)]
    subject = Subject("vit", model, "random", Recipe("0.2@0,3,6"), classes, MeasuredShift())
    content = make_report([], subject, load_pictures(model, [tmp_path], 16))
    size = write_page(tmp_path / "report.html", "vit", content)
    assert size == (tmp_path / "report.html").stat().st_size <= 5_000_000
    page = open_page(tmp_path / "report.html")
    assert page.locator("input[name=image]").count() == 16
    page.locator("#block").fill("11")
    assert "11 of 0 to 11 (blocks.11): 101 of 196" in page.locator("#block-told").inner_text()


def test_a_phone_wide_page_does_not_scroll_sideways(open_page, report):
    page = open_page(report, width=360, height=740)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    boxes = [page.locator(f"#map-{name}").bounding_box() for name in ("kept", "dense", "pruned")]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["width"] > 120 for box in boxes)


CONTRAST = """() => {
  const parts = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parts(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const node of document.querySelectorAll("body *")) {
    const own_texts = [...node.childNodes].filter((child) => child.nodeType === 3);
    const text = own_texts.map((child) => child.data).join("").trim();
    if (!text || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(node.tagName)) continue;
    const style = getComputedStyle(node), own = parts(node.tagName === "text" ? style.fill : style.color);
    const [low, high] = [light(own), light(behind(node))].sort((a, b) => a - b);
    found[text.slice(0, 40)] = (high + 0.05) / (low + 0.05);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(open_page, report, scheme):
    contrasts = open_page(report, color_scheme=scheme).evaluate(CONTRAST)
    assert len(contrasts) > 40
    assert {text: value for text, value in contrasts.items() if value < 4.5} == {}


def test_light_and_dark_differ_and_change_while_the_page_is_open(open_page, report):
    page = open_page(report, color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    page.locator("#block").fill("5")
    before = page.evaluate(paper), page.evaluate("document.getElementById('map-pruned').toDataURL()")
    page.emulate_media(color_scheme="dark")
    page.wait_until(f"{paper} !== '{before[0]}'")
    assert sum(map(int, page.evaluate(paper)[4:-1].split(","))) < 150
    # what was dropped is darker, too; the map is drawn anew a moment after the colours of the page
    page.wait_until(f"document.getElementById('map-pruned').toDataURL() !== '{before[1]}'")


def test_the_focus_is_seen_and_reaches_slider_maps_and_tables(open_page, report):
    page = open_page(report)
    reached = {}
    for _ in range(60):
        page.keyboard.press("Tab")
        where, outline = page.evaluate(
            """() => { const node = document.activeElement, shown = node.type === "radio" ? node.nextSibling : node;
                 return [node.id || node.tagName, getComputedStyle(shown).outlineStyle]; }"""
        )
        reached[where] = outline
    assert {"block", "scale", "over", "map-kept", "map-dense", "map-pruned", "BUTTON"} <= set(reached)
    reached.pop("BODY", None)  # the end of the page
    assert "none" not in reached.values()


def test_nothing_moves_for_people_who_ask_for_that(open_page, report):
    duration = "getComputedStyle(document.querySelector('.bar i')).transitionDuration"
    assert open_page(report, reduced_motion="no-preference").evaluate(duration) == "0.2s"
    assert open_page(report, reduced_motion="reduce").evaluate(duration) == "0s"


def test_every_control_has_a_name(open_page, report):
    page = open_page(report)
    assert page.locator("html").get_attribute("lang") == "en"
    for role, least in (("slider", 1), ("combobox", 1), ("checkbox", 1), ("radio", 3), ("button", 5), ("img", 5)):
        found = page.get_by_role(role)
        assert found.count() >= least
        snapshot = [line for line in page.locator("body").aria_snapshot().splitlines() if f"- {role}" in line]
        assert len(snapshot) >= least
        assert all('"' in line for line in snapshot), snapshot


# --- pages with less on them ------------------------------------------------------------------------------------


def test_a_page_of_results_alone_says_how_to_show_images(open_page, monkeypatch, tmp_path):
    write_results(tmp_path / "bench.json", Results("bench", TIMED, {}))
    page = open_page(write_report(monkeypatch, tmp_path, "bench.json"))
    assert page.locator("h1").inner_text() == "tiny_vit"
    assert page.locator("#block").count() == 0
    assert "repshift report --model" in page.locator("main").inner_text()
    assert "repshift eval" in page.locator("main").inner_text()
    assert "repshift bench" not in page.locator("section[aria-labelledby=missing-title]").inner_text()


def test_a_dense_model_is_shown_without_a_pruned_one(open_page, monkeypatch, tmp_path):
    path = write_report(monkeypatch, tmp_path, "--model", "tiny_resnet", "--pretrained", "--num-images", 1)
    page = open_page(path)
    assert page.locator("#map-pruned").count() == 0
    assert page.locator(".predictions thead th").all_inner_texts() == ["Class", "Dense model"]
    assert json.loads(page.locator("#data").inner_text())["explorer"]["blockWord"] == "stage"


@pytest.mark.parametrize(("model", "schedule"), [("tiny_resnet", "4@0;2@1"), ("tiny_vim", SCHEDULE)])
def test_networks_of_maps_and_sequences_are_shown_as_well(open_page, monkeypatch, tmp_path, model, schedule):
    settings = ("--model", model, "--pretrained", "--drop", schedule, "--num-images", 2)
    page = open_page(write_report(monkeypatch, tmp_path, *settings))
    last = page.locator("#block").get_attribute("max")
    before = drawn(page, "map-pruned")
    page.locator("#block").fill(last)
    assert (drawn(page, "map-pruned") != before).any()
    assert " stay" in page.locator("#block-told").inner_text()
