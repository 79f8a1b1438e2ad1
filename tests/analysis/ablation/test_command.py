import csv
import re
import signal
import subprocess
import sys
import time
from functools import partial

import matplotlib.colors
import pytest
import torch
from PIL import Image

from repshift.analysis.ablation.points import Point
from repshift.analysis.ablation.reports import as_page, draw_ablation, table_of, verdicts
from repshift.analysis.output.results import read_results

FILES = {"ablation.csv", "ablation.json", "ablation.md", "ablation.png"}


def point(study, block, setting, top1, score="shift", keep="top", **options):
    described = {
        "operation": "mlp",
        "distance": "l2",
        "residual": False,
        "drop": f"0.2@{block}",
        "dropped": 51,
        "top1_error": 0.5,
        "delta": 0.0,
        "over_random": 1.0,
        "over_random_error": 0.1,
        "over_norm": 0.0,
        "over_norm_error": 0.1,
        "samples": 2000,
    }
    return Point(
        **{"study": study, "block": block, "setting": setting, "top1": top1, "score": score, "keep": keep},
        **{**described, **options},
    )


DENSE = point("dense", None, "dense", 96.0, None, None)
POINTS = [
    DENSE,
    *(point("distance", block, "l2", 95.0 - block) for block in (0, 2)),
    point("distance", 2, "cosine", 80.0),
    *(point("distance", block, "random", 70.0 + block, "random") for block in (0, 2)),
    *(point("half", 0, f"shift, {keep}", 90.0, keep=keep, drop="0.5@0", dropped=128) for keep in ("top", "bottom")),
]


# --- tables and figure ------------------------------------------------------------------------------------------


def test_a_table_has_a_line_for_each_setting_and_a_mean_where_all_blocks_are_there():
    headings, rows = table_of(POINTS, "distance", "layer")
    assert headings == ["distance", "layer 0 (-51)", "layer 2 (-51)", "mean"]
    assert rows == [["l2", "95.0", "93.0", "94.0"], ["cosine", "", "80.0", ""], ["random", "70.0", "72.0", "71.0"]]


def test_the_page_has_a_table_for_each_study_and_what_it_was_measured_with():
    page = as_page(POINTS, {"model": "tiny_vit", "torch": "2.8"})
    assert "\n| distance | block 0 (-51) | block 2 (-51) | mean |\n| --- | ---: | ---: | ---: |\n| l2 | 95.0 |" in page
    assert "\n| shift, bottom | 90.0 | 90.0 |\n" in page
    assert "dense: 96.0 on 2000 images; standard errors are at most 0.5." in page
    assert page.endswith("\nMeasured with model tiny_vit, torch 2.8.\n")


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ({"over_random": 5.0, "over_random_error": 0.5}, "beats random (+5.00 points, s.e. 0.50)"),
        (
            {"over_random": 0.9, "over_random_error": 0.5},
            "ties with random (+0.90 points, s.e. 0.50)",
        ),
        ({"over_norm": -3.0, "over_norm_error": 0.4}, "LOSES to norm (-3.00 points, s.e. 0.40)"),
    ],
)
def test_a_verdict_says_win_loss_or_no_difference(gains, words):
    (line,) = verdicts([DENSE, point("score", 0, "shift", 90.0, **gains), point("score", 0, "norm", 90.0, "norm")])
    assert line.startswith("0.2@0: the shift ")
    assert words in line


def test_the_figure_has_a_panel_for_each_study_with_controls_in_grey_and_the_dense_model_dashed():
    figure = draw_ablation(POINTS)
    panels = [panel for panel in figure.axes if panel.axison]
    assert [panel.get_title().split(":")[0] for panel in panels] == ["distance", "half"]
    labels = [text.get_text() for text in panels[0].get_legend().get_texts()]
    assert sorted(labels) == ["cosine", "dense", "l2", "random"]
    by_label = dict(
        zip(panels[0].get_legend_handles_labels()[1], panels[0].get_legend_handles_labels()[0], strict=True)
    )
    assert by_label["dense"].get_linestyle() == "--"
    assert set(by_label["dense"].get_ydata()) == {96.0}
    for label, grey in (("random", True), ("l2", False), ("cosine", False)):
        red, green, blue = matplotlib.colors.to_rgb(by_label[label].lines[0].get_color())
        assert (red == green == blue) is grey
    assert list(by_label["l2"].lines[0].get_ydata()) == [95.0, 93.0]


def test_no_legend_covers_a_line():
    figure = draw_ablation(POINTS)
    figure.canvas.draw()
    for panel in figure.axes:
        if panel.axison:
            assert not panel.get_legend().get_window_extent().overlaps(panel.get_window_extent())


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(run_command, monkeypatch):
    """Run ``repshift ablate`` in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "100")
    return partial(run_command, "ablate")


def test_without_arguments_the_embedded_model_is_compared_on_the_embedded_canvases(run, tmp_path):
    code, out, err = run("--num-samples", "20", "--study", "distance,half", "--blocks", "4")
    assert (code, err) == (0, "")
    assert "tiny_vit on cluttered-mnist" in out
    assert "random" not in out.split("tiny_vit")[0]
    assert {path.name for path in (tmp_path / "repshift-ablation").iterdir()} == FILES
    results = read_results(tmp_path / "repshift-ablation" / "ablation.json")
    assert results.kind == "ablate"
    assert {row["study"] for row in results.rows} == {"dense", "distance", "half"}
    assert all(row["samples"] == 20 for row in results.rows)
    assert results.rows[0]["top1"] > 80
    assert results.environment["model"] == "tiny_vit"
    with (tmp_path / "repshift-ablation" / "ablation.csv").open() as file:
        assert [row["setting"] for row in csv.DictReader(file)] == [row["setting"] for row in results.rows]
    with Image.open(tmp_path / "repshift-ablation" / "ablation.png") as figure:
        assert figure.width > figure.height > 300
    page = (tmp_path / "repshift-ablation" / "ablation.md").read_text()
    printed = [[cell.strip() for cell in row.split("│")] for row in re.findall(r"^│ (.*) │$", out, re.MULTILINE)]
    assert len(printed) == 6 + 9
    for cells in printed:
        assert f"| {' | '.join(cells)} |" in page


def test_studies_may_be_repeated_or_listed(run, tmp_path):
    shown = []
    for number, studies in enumerate((("--study", "score,residual"), ("--study", "residual", "--study", "score"))):
        code, out, _ = run("-m", "tiny_resnet", "--blocks", "3", "--num-samples", "4", *studies, "--output", number)
        assert code == 0
        assert "weights are random" in out
        assert "left out" in out
        shown.append({row["study"] for row in read_results(tmp_path / str(number) / "ablation.json").rows})
    assert shown == [{"dense", "score"}] * 2


def test_images_of_a_folder_are_compared(run, tmp_path, make_image):
    torch.manual_seed(0)
    for digit in range(10):
        (tmp_path / "photos" / str(digit)).mkdir(parents=True)
        make_image(f"photos/{digit}/{digit}.png", 50 + digit, 60)
    code, _, err = run("photos", "--study", "half", "--blocks", "0", "-b", "3", "-j", "1", "--count", "7")
    assert (code, err) == (0, "")
    assert read_results(tmp_path / "repshift-ablation" / "ablation.json").rows[0]["samples"] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--study", "operations"), "no study 'operations'"),
        (("--blocks", "0,6"), "no block 6"),
        (("--blocks", "first"), "--blocks got 'first'"),
        (("--count", "256"), "Drop at most 255"),
        (("no-such-folder",), "no-such-folder"),
        (("-m", "tiny_vitt"), "Unknown model 'tiny_vitt'"),
        (("-m", "tiny_vit", "--checkpoint", "missing.pt"), "missing.pt"),
        (("-b", "0", "--blocks", "5", "--study", "half"), "--batch-size"),
        (("--num-samples", "0"), "--num-samples"),
        (("--device", "gpu"), "no device 'gpu'"),
        pytest.param(
            ("--device", "cuda"),
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_wrong_input_is_one_error_and_leaves_no_results(run, tmp_path, arguments, message):
    code, _, err = run(*arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert message in err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_lines_that_a_network_cannot_spare_are_refused_before_anything_is_written(run, tmp_path):
    code, _, err = run("-m", "tiny_resnet", "--pretrained", "--blocks", "0", "--count", "30", "--study", "distance")
    assert code == 1
    assert "need at least" in err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_an_interruption_leaves_nothing_half_written(tmp_path):
    command = [sys.executable, "-m", "repshift", "ablate", "--output", "out"]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # in the background of a shell, interruptions are ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        begun = time.monotonic()
        while not (tmp_path / "out").is_dir() and running.poll() is None and time.monotonic() - begun < 120:
            time.sleep(0.1)
        time.sleep(1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "nothing was written" in out
    assert "Traceback" not in err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_on_the_canvases_the_shift_ranks_well_and_the_residual_turns_it_around(run, tmp_path):
    assert run("--study", "residual,half", "--blocks", "0", "--num-samples", "200")[0] == 0
    rows = {row["setting"]: row for row in read_results(tmp_path / "repshift-ablation" / "ablation.json").rows}
    dense = rows["dense"]["top1"]
    assert rows["shift, top"]["top1"] > dense - 3
    assert rows["shift, bottom"]["top1"] < rows["random, top"]["top1"] - 20
    assert rows["residual=True"]["top1"] < rows["residual=False"]["top1"] - 20
    assert abs(rows["shift, top"]["over_norm"]) < 3
