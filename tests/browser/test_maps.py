"""The explorer page in a real browser: images, block by block."""

import json

import numpy as np
import pytest
import torch
from matplotlib import colormaps

from repshift import ShiftTracker, load_model
from repshift.analysis.samples.canvases import evaluation_canvases
from repshift.analysis.samples.images import normalised

SCHEDULE = "0.2@0,2,4"


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
        centres = page.drawn(f"map-{name}")[side // 2 :: side, side // 2 :: side]
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
    seen = [[page.drawn(f"map-{name}") for name in ("kept", "dense", "pruned")]]
    for _ in range(2):
        page.keyboard.press("ArrowRight")
        seen.append([page.drawn(f"map-{name}") for name in ("kept", "dense", "pruned")])
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
    unchanged = np.abs(page.drawn("map-kept").mean(-1) - as_seen).reshape(16, 28, 16, 28).max((1, 3)) < 2
    assert (unchanged == kept.reshape(16, 16).numpy()).all()


def test_images_are_chosen_by_arrow_keys(open_page, report):
    page = open_page(report)
    before = page.drawn("map-dense")
    page.locator("input[name=image]").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#shown").inner_text().startswith("canvas 1, digit ")
    assert (page.drawn("map-dense") != before).any()


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
def merged(tmp_path_factory, write_report):
    """Two canvases seen by tiny_vit, dense and merged; and of the first, what joined what behind the second cut."""
    settings = ("--model", "tiny_vit", "--pretrained", "--drop", SCHEDULE, "--pruner", "mnn", "--num-images", 2)
    path = write_report(tmp_path_factory.mktemp("merged"), *settings)
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
        before = {name: page.drawn(f"map-{name}") for name in ("kept", "dense", "pruned")}
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
        after = {name: page.drawn(f"map-{name}") for name in before}
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
    assert np.abs(page.drawn("map-kept").mean(-1) - expected)[inside].max() < 3


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
