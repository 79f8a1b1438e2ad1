"""The explorer page in a real browser: tables and charts of results."""

import json

import pytest

from repshift.analysis.output.results import Results, write_results


def table(name):
    return f"[role=region][aria-label*='{name}'] table"


# --- tables and curves ------------------------------------------------------------------------------------------


def test_a_table_sorts_numbers_by_size_both_ways(open_page, report):
    page = open_page(report)
    benchmark = table("bench.json")
    button = page.locator(f"{benchmark} thead button", has_text="images/s")
    head = page.locator(f"{benchmark} thead th", has_text="images/s")
    assert page.column(benchmark, 3) == ["100.5", "1000.25", "99"]
    button.click()
    assert page.column(benchmark, 3) == ["99", "100.5", "1000.25"]
    assert page.column(benchmark, 1) == ["norm", "dense", "shift"]
    assert head.get_attribute("aria-sort") == "ascending"
    button.focus()
    page.keyboard.press("Enter")
    assert page.column(benchmark, 3) == ["1000.25", "100.5", "99"]
    assert head.get_attribute("aria-sort") == "descending"


def test_empty_cells_stay_last_whichever_way_a_table_is_sorted(open_page, report):
    page = open_page(report)
    evaluation = table("eval.json")
    button = page.locator(f"{evaluation} thead button", has_text="gain")
    number = 1 + page.locator(f"{evaluation} thead button").all_inner_texts().index("gain, points of top-1")
    button.click()
    assert page.column(evaluation, number) == ["-86.75", "-8.5", ""]
    button.click()
    assert page.column(evaluation, number) == ["-8.5", "-86.75", ""]


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


def test_many_curves_all_look_different(open_page, write_report, tmp_path):
    rows = [{"study": "many", "block": place, "setting": f"s{setting}", "delta": -1.0 - setting}
            for setting in range(20) for place in (0, 1)]  # fmt: skip
    write_results(tmp_path / "ablation.json", Results("ablate", rows, {"model": "a"}))
    page = open_page(write_report(tmp_path, "ablation.json"))
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


def test_what_is_not_joined_is_said_in_place_of_the_chart(open_page, write_report, tmp_path, evaluated):
    write_results(tmp_path / "eval.json", Results("eval", [evaluated[0], evaluated[0] | {"top1": 90.0}]))
    page = open_page(write_report(tmp_path, "eval.json"))
    assert page.locator(".charts svg").count() == 0
    assert "has two accuracies, 96.5 and 90.0" in page.locator(".charts").inner_text()
    assert page.locator(f"{table('eval.json')} tbody tr").count() == 2
