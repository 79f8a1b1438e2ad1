"""The explorer page in a real browser: safety, size, looks, and pages with less on them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import VisionTransformer

from repshift import Recipe
from repshift.analysis.output.results import Results, write_results
from repshift.analysis.report.contents import Subject, make_report
from repshift.analysis.report.examination import MeasuredShift
from repshift.analysis.report.pictures import load_pictures
from repshift.analysis.report.writing import write_page

SCHEDULE = "0.2@0,2,4"


# --- safety, size and looks -------------------------------------------------------------------------------------


def test_names_and_results_are_shown_as_text(open_page, write_report, tmp_path):
    evil = "<img src=x onerror=document.title='taken'>"
    closing = "</script><script>document.title='taken'</script>"
    values = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / f"{evil}.png")
    (tmp_path / "classes.txt").write_text("\n".join([evil] * 10))
    row = {"model": closing, evil: evil, "method": evil, "top1": 3.0, "gmacs": 1.0, "schedule": ""}
    write_results(tmp_path / "eval.json", Results("eval", [row, row | {"method": closing}], {evil: closing}))
    given = ("eval.json", f"{evil}.png", "--model", "tiny_vit", "--classes", "classes.txt")
    page = open_page(write_report(tmp_path, *given))
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


def test_a_page_of_results_alone_says_how_to_show_images(open_page, write_report, tmp_path, timed):
    write_results(tmp_path / "bench.json", Results("bench", timed, {}))
    page = open_page(write_report(tmp_path, "bench.json"))
    assert page.locator("h1").inner_text() == "tiny_vit"
    assert page.locator("#block").count() == 0
    assert "repshift report --model" in page.locator("main").inner_text()
    assert "repshift eval" in page.locator("main").inner_text()
    assert "repshift bench" not in page.locator("section[aria-labelledby=missing-title]").inner_text()


def test_a_dense_model_is_shown_without_a_pruned_one(open_page, write_report, tmp_path):
    path = write_report(tmp_path, "--model", "tiny_resnet", "--pretrained", "--num-images", 1)
    page = open_page(path)
    assert page.locator("#map-pruned").count() == 0
    assert page.locator(".predictions thead th").all_inner_texts() == ["Class", "Dense model"]
    assert json.loads(page.locator("#data").inner_text())["explorer"]["blockWord"] == "stage"


@pytest.mark.parametrize(("model", "schedule"), [("tiny_resnet", "4@0;2@1"), ("tiny_vim", SCHEDULE)])
def test_networks_of_maps_and_sequences_are_shown_as_well(open_page, write_report, tmp_path, model, schedule):
    settings = ("--model", model, "--pretrained", "--drop", schedule, "--num-images", 2)
    page = open_page(write_report(tmp_path, *settings))
    last = page.locator("#block").get_attribute("max")
    before = page.drawn("map-pruned")
    page.locator("#block").fill(last)
    assert (page.drawn("map-pruned") != before).any()
    assert " stay" in page.locator("#block-told").inner_text()
