import json
import os
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image

from repshift import ShiftTracker, load_model
from repshift.analysis.demo import comparison, timing
from repshift.analysis.demo.comparison import HEADINGS, Result, cells, run_demo, tokens_on_digit, verdicts
from repshift.analysis.output.paired import gain
from repshift.analysis.samples.canvases import ClutteredDigits, draw_canvases
from repshift.errors import DataError

MODELS = ("tiny_vit", "tiny_resnet", "tiny_vim")
FILES = {*(f"{name}.png" for name in MODELS), "results.json", "results.md"}
METHODS = {
    "tiny_vit": ("shift", "norm", "random", "mnn", "lowres"),
    "tiny_resnet": ("shift", "norm", "random", "even", "centre", "lowres"),
    "tiny_vim": ("shift", "norm", "random", "mnn", "lowres"),
}
SCHEDULES = {"tiny_vit": "0.2@0,2,4", "tiny_resnet": "10@0", "tiny_vim": "0.2@0,2,4"}
INPUTS = {"tiny_vit": "52 px", "tiny_resnet": "48 px", "tiny_vim": "56 px"}
SETTINGS = [
    (name, {"dense": "none", "lowres": INPUTS[name]}.get(method, SCHEDULES[name]), method)
    for name in MODELS
    for method in ("dense", *METHODS[name])
]


def result(schedule, method, accuracy=0.9, against_shift=None, spread=None):
    return Result("tiny_vit", schedule, method, accuracy, 1234.4, 0.0567, 0.3456, 0.0789, against_shift, spread)


def grouped(results):
    """The results of each model."""
    return [[one for one in results if one.model == name] for name in MODELS]


# --- parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "size"), [((16, 16), (64, 64)), ((3, 5), (24, 40)), ((7, 7), (64, 64))])
def test_a_token_lies_on_the_digit_if_its_centre_is_in_the_box(grid, size):
    boxes = torch.tensor([[0, 0, 5, 9], [3, 7, 20, 33], [6, 2, 7, 3], [0, 0, size[0], size[1]], [2, 2, 6, 6]])
    found = tokens_on_digit(boxes, grid, size)
    assert found.dtype == torch.bool
    for image, (top, left, bottom, right) in enumerate(boxes.tolist()):
        for row, column in product(range(grid[0]), range(grid[1])):
            y, x = (2 * row + 1) * size[0] / (2 * grid[0]), (2 * column + 1) * size[1] / (2 * grid[1])
            expected = top <= y < bottom and left <= x < right
            assert found[image, row * grid[1] + column].item() == expected


def test_a_gain_is_the_difference_of_accuracies_with_its_paired_error():
    ours = torch.tensor([True] * 70 + [False] * 30)
    theirs = torch.tensor([True] * 60 + [False] * 10 + [True] * 4 + [False] * 26)
    points, error = gain(ours, theirs)  # 10 canvases won, 4 lost, 86 alike
    assert points == pytest.approx(70 - 64)
    assert error == pytest.approx(100 * ((0.10 + 0.04) - 0.06**2) ** 0.5 / 100**0.5)


def test_a_gain_over_oneself_is_nothing():
    assert gain(torch.tensor([True, False]), torch.tensor([True, False])) == (0, 0)


@pytest.mark.parametrize(
    ("against_shift", "words"),
    [
        ((5.0, 0.5), "beats random (+5.00 points, s.e. 0.50)"),
        ((-3.0, 0.4), "LOSES to random (-3.00 points, s.e. 0.40)"),
        ((100.0, 0.0), "ties with random (+100.00 points, s.e. 0.00)"),
        ((0.0, 0.0), "ties with random (+0.00 points, s.e. 0.00)"),
        ((0.05, 0.3), "ties with random (+0.05 points, s.e. 0.30)"),
        ((-0.5, 0.3), "ties with random (-0.50 points, s.e. 0.30)"),
    ],
)
def test_a_verdict_says_win_loss_or_no_difference(against_shift, words):
    found = verdicts([result("0.2@0,2,4", "random", against_shift=against_shift)])
    assert found == [f"tiny_vit 0.2@0,2,4: the shift {words}"]


def test_there_is_a_verdict_for_every_other_method():
    results = [result(*setting, against_shift=(1.0, 0.1)) for name, *setting in SETTINGS if name == "tiny_vit"][1:]
    lines = verdicts([result(*SETTINGS[0][1:]), *results])
    assert [line.split()[1] + " " + line.split()[5] for line in lines] == [
        f"0.2@0,2,4: {method}" for method in METHODS["tiny_vit"][1:]
    ]


def test_a_row_of_the_table_has_a_cell_for_every_heading():
    row = cells(result("0.5@0", "shift", 0.9485))
    assert row == ["0.5@0", "shift", "94.8", "1234", "0.057", "34.6", "7.9"]
    assert len(HEADINGS) == len(row)
    assert cells(result("0.5@0", "random", 0.9485, spread=0.0123))[2] == "94.8 ± 1.2"


def test_an_output_that_cannot_be_written_to_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "load_model", lambda *args, **kwargs: pytest.fail("began to compute"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="Cannot write to"):
        run_demo(tmp_path / "file")


# --- a small run: untrained, 40 canvases ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_run(few_digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("small") / "demo"
    torch.manual_seed(0)
    models, canvases = {name: load_model(name) for name in MODELS}, draw_canvases(ClutteredDigits(few_digits, seed=7))
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "load_model", lambda name, **kwargs: models[name])
        patch.setattr(comparison, "evaluation_canvases", lambda: canvases)
        patch.setattr(comparison, "BATCH", 20)
        patch.setattr(timing, "ROUNDS", 1)
        patch.setattr(timing, "SECONDS", 0.01)
        results = run_demo(output, lambda done, total: steps.append((done, total)))
    return output, models, canvases, results, steps


def test_the_demo_measures_the_dense_model_and_every_method(small_run):
    *_, results, _ = small_run
    assert [(one.model, one.schedule, one.method) for one in results] == SETTINGS
    assert {one.method for one in results if one.spread is not None} == {"random"}
    for of_model in grouped(results):
        shift, lowres = of_model[1], of_model[-1]
        assert lowres.gmacs <= shift.gmacs


def test_the_demo_reports_every_step_until_all_are_done(small_run):
    *_, steps = small_run
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert {total for _, total in steps} == {len(steps)}


def test_the_demo_writes_its_figures_and_its_numbers(small_run):
    output, _, _, results, _ = small_run
    assert {path.name for path in output.iterdir()} == FILES
    for name in MODELS:
        with Image.open(output / f"{name}.png") as figure:
            assert figure.width > figure.height > 300
    written = json.loads((output / "results.json").read_text())
    assert written["results"] == json.loads(json.dumps([asdict(one) for one in results]))
    assert {"torch", "threads"} <= written["environment"].keys()


def test_the_written_table_has_a_row_for_every_result(small_run):
    output, _, _, results, _ = small_run
    headings, rule, *rows = [line.strip("| ").split(" | ") for line in (output / "results.md").read_text().splitlines()]
    assert headings == ["model", *HEADINGS]
    assert rule == ["---"] * len(headings)
    assert rows == [[one.model, *cells(one)] for one in results]


def test_the_share_on_the_digit_counts_the_tokens_that_are_left_at_the_end(small_run):
    _, models, canvases, results, _ = small_run
    inside, count = 0, 0
    pruned = ShiftTracker(models["tiny_vit"]).prune("0.2@0,2,4")
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned((canvases.images / 255 - 0.084) / 0.193)
    for box, kept in zip(canvases.boxes.tolist(), tracker.kept["blocks.4"].tolist(), strict=True):
        top, left, bottom, right = box
        for position in kept:
            y, x = 4 * (position // 16) + 2, 4 * (position % 16) + 2
            inside += top <= y < bottom and left <= x < right
            count += 1
    assert results[1].on_digit == pytest.approx(inside / count, abs=1e-3)


def test_the_share_on_the_digit_of_a_map_counts_the_positions_that_the_last_cut_keeps(small_run):
    _, models, canvases, results, _ = small_run
    inside, count = 0, 0
    pruned = ShiftTracker(models["tiny_resnet"]).prune("10@0")
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned((canvases.images / 255 - 0.084) / 0.193)
    for box, kept in zip(canvases.boxes.tolist(), tracker.kept["layer1"].tolist(), strict=True):
        top, left, bottom, right = box
        assert len(kept) == 22 * 22  # of 32 lines
        for position in kept:
            y, x = 2 * (position // 32) + 1, 2 * (position % 32) + 1
            inside += top <= y < bottom and left <= x < right
            count += 1
    (found,) = (one for one in results if (one.model, one.method) == ("tiny_resnet", "shift"))
    assert found.on_digit == pytest.approx(inside / count, abs=1e-3)


def test_gains_over_the_controls_are_differences_of_the_reported_accuracies(small_run):
    *_, results, _ = small_run
    for of_model in grouped(results):
        assert of_model[0].against_shift is None
        _, shift, *others = of_model
        assert shift.against_shift == (0, 0)
        for one in others:
            assert one.against_shift[0] == pytest.approx(100 * (shift.accuracy - one.accuracy), abs=1e-3)


def test_what_drops_nothing_keeps_what_chance_would(small_run):
    *_, results, _ = small_run
    for dense, *_, lowres in grouped(results):
        assert dense.on_digit == pytest.approx(dense.by_chance)
        assert lowres.on_digit == pytest.approx(lowres.by_chance)


# --- the whole demo ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_holds_what_the_readme_says(tmp_path):
    # where the command ran just before, as .ci/run lets it, its folder is looked at instead of running it again
    ran = os.environ.get("REPSHIFT_DEMO")
    folder = Path(ran) if ran else tmp_path
    if not ran:
        run_demo(folder)
    results = [Result(**each) for each in json.loads((folder / "results.json").read_text())["results"]]
    assert {path.name for path in folder.iterdir()} == FILES
    assert [(one.model, one.schedule, one.method) for one in results] == SETTINGS
    for dense, *pruned in grouped(results):
        assert dense.accuracy >= {"tiny_vit": 0.96, "tiny_resnet": 0.97, "tiny_vim": 0.95}[dense.model]
        for one in pruned:
            assert one.gmacs < 0.9 * dense.gmacs
            assert one.images_per_second > 0
            if one.method == "random":
                assert one.on_digit == pytest.approx(one.by_chance, abs=0.02)
            if one.method == "shift" or (one.model, one.method) == ("tiny_vit", "mnn"):
                assert one.accuracy >= dense.accuracy - 0.01
