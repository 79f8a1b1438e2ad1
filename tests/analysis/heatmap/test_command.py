from functools import partial

import pytest
from PIL import Image

from repshift.analysis.heatmap import figure


@pytest.fixture
def run(run_command):
    """Run ``repshift heatmap`` in an empty folder; returns exit code, standard output and standard error."""
    return partial(run_command, "heatmap")


@pytest.fixture
def titles(monkeypatch):
    """Titles and scales of the figures that are drawn."""
    seen = []
    draw = figure.draw_columns

    def observed(columns, row_titles, *, scale):
        seen.append(([column.title for column in columns], list(row_titles), scale))
        return draw(columns, row_titles, scale=scale)

    monkeypatch.setattr(figure, "draw_columns", observed)
    return seen


def test_all_options_work_together_on_several_images(run, make_image, titles, tmp_path):
    photos = make_image("wide.jpg", 90, 50), make_image("high.png", 40, 100)
    options = ["--attention", "--overlay", "--scale", "shared", "--drop", "0.5@0", "--kept", "--output", "all.png"]
    code, _, err = run("-m", "tiny_vit", "--pretrained", "--image", *photos, *options)
    assert (code, err) == (0, "")
    [(columns, rows, scale)] = titles
    measured = [f"{measure}, blocks.{block}" for block in (0, 2, 4) for measure in ("shift", "attention")]
    assert columns == ["image", *measured, "128 of 256 kept, blocks.0"]
    assert rows == ["wide", "high"]
    assert scale == "shared"
    with Image.open(tmp_path / "all.png") as figure:
        assert figure.size[0] > 2 * figure.size[1]


def test_all_stages_of_a_convolutional_network_are_drawn_and_positions_can_go(run, make_image, titles):
    options = ["--drop", "4@0", "--pruner", "positions", "--kept"]
    code, _, err = run("-m", "tiny_resnet", "--pretrained", "--image", make_image("a.png"), *options)
    assert (code, err) == (0, "")
    assert titles[0][0] == ["image", *(f"shift, layer{stage}" for stage in (1, 2, 3, 4)), "784 of 1024 kept, layer1"]


def test_the_schedule_may_have_an_entry_a_block_and_another_score(run, make_image, titles):
    options = ["--drop_r", "[0.5,0,0,0,0,0]", "--score", "cls_attention", "--kept", "--blocks", "1"]
    code, _, err = run("-m", "tiny_vit", "--pretrained", "--image", make_image("a.png"), *options)
    assert (code, err) == (0, "")
    assert titles[0][0] == ["image", "shift, blocks.1", "128 of 256 kept, blocks.0"]


def test_methods_stand_side_by_side_with_maps_of_the_dense_model(run, make_image, titles):
    options = ["--drop", "0.3@0,3", "--methods", "shift, mnn,norm", "--blocks", "5"]
    code, _, err = run("-m", "tiny_vit", "--pretrained", "--image", make_image("a.png"), *options)
    assert (code, err) == (0, "")
    left = ["126 of 256 kept, shift", "256 merged into 126, mnn", "126 of 256 kept, norm"]
    assert titles[0][0] == ["image", "shift, blocks.5", *left]


BAD = {
    "kept of a dense model": (["--kept"], ["--kept", "Give --drop"]),
    "methods of a dense model": (["--methods", "mnn"], ["--methods", "Give --drop"]),
    "unknown method": (["--methods", "shift,mn", "--drop", "0.2@0"], ["'mn'", "'mnn'"]),
    "method that does not prune": (["--methods", "dense", "--drop", "0.2@0"], ["'dense'", "does not prune"]),
    "methods and a pruner": (
        ["--methods", "mnn", "--drop", "0.2@0", "--pruner", "mnn"],
        ["--methods mnn", "Leave out --kept, --score and --pruner"],
    ),
    "score of a dense model": (["--score", "norm"], ["--score", "Give --drop"]),
    "unknown scale": (["--scale", "mep"], ["'mep'", "'map'"]),
    "two schedules": (["--drop", "0.2@0", "--drop-r", "[0.2,0,0,0,0,0]"], ["--drop-r", "one of them"]),
    "words for a schedule": (["--drop", "much"], ["'much'", "0.2@0,3,6"]),
    "schedule out of range": (["--drop", "0.2@9"], ["block 9", "0 to 5"]),
    "unknown score": (["--drop", "0.2@0", "--score", "nrm"], ["'nrm'", "'norm'"]),
    "unknown pruner": (["--drop", "0.2@0", "--pruner", "line"], ["'line'", "'lines'"]),
    "names and numbers": (["--blocks", "0", "--sites", "blocks.1"], ["--sites or --blocks"]),
    "no attention": (["--attention", "-m", "tiny_resnet"], ["no attention", "--attention"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_writes_nothing(run, make_image, tmp_path, case):
    options, expected = BAD[case]
    code, _, err = run("-m", "tiny_vit", "--image", make_image("a.png"), "--output", "new.png", *options)
    assert code == 1
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert all(part in err for part in expected), err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
