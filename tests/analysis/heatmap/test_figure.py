import numpy as np
import pytest
import torch
from torch import nn

from repshift import ShiftTracker, UnknownNameError, UnsupportedModelError, load_model
from repshift.analysis.heatmap.figure import heatmap_figure
from repshift.analysis.heatmap.maps import heatmap_array, token_groups
from repshift.analysis.output.overlays import blend_merged, group_outlines
from repshift.analysis.samples.images import pixels

WIDE = (24, 40)


@pytest.fixture
def inputs():
    return torch.rand(2, 3, *WIDE)


def grid(figure):
    """The pictures of a figure, row by row, and the titles of the columns."""
    shown = [axis for axis in figure.axes if axis.images]
    titles = [axis.get_title() for axis in shown if axis.get_title()]
    drawn = [np.asarray(axis.images[0].get_array()) for axis in shown]
    return titles, [drawn[start : start + len(titles)] for start in range(0, len(drawn), len(titles))]


def enlarged(values, size=WIDE):
    return np.kron(values, np.ones((size[0] // values.shape[0], size[1] // values.shape[1])))


def test_every_row_shows_an_image_and_its_maps(small_vit, inputs):
    titles, rows = grid(heatmap_figure(small_vit, inputs, blocks=[2, 0], row_titles=["one", "two"]))
    heatmaps = heatmap_array(small_vit, inputs, blocks=[2, 0])
    assert titles == ["image", "shift, blocks.2", "shift, blocks.0"]
    for image, (picture, *maps) in enumerate(rows):
        assert np.allclose(picture, pixels(small_vit, inputs)[image])
        for name, drawn in zip(heatmaps, maps, strict=True):
            assert np.allclose(drawn, enlarged(heatmaps[name][image]))


def test_attention_stands_beside_the_shift_of_its_block(small_vit, inputs):
    figure = heatmap_figure(small_vit, inputs, attention=True)
    titles, rows = grid(figure)
    assert titles[1:] == [f"{measure}, blocks.{block}" for block in (0, 1, 2) for measure in ("shift", "attention")]
    expected = heatmap_array(small_vit, inputs, "blocks.2", score="cls_attention")["blocks.2"]
    assert np.allclose(rows[1][-1], enlarged(expected[1]))
    units = [axis.get_xlabel() for axis in figure.axes if axis.get_xlabel()]
    assert units == ["shift (mlp, l2)", "attention received (class token)"] * 3


def test_attention_is_shown_at_the_blocks_asked_for(small_vit, inputs):
    assert grid(heatmap_figure(small_vit, inputs, blocks=[3], attention=True))[0][1:] == [
        "shift, blocks.3",
        "attention, blocks.3",
    ]


def test_the_mean_of_all_attention_is_shown_where_there_is_no_class_token(build_vit, inputs):
    vit = build_vit(img_size=WIDE, class_token=False, global_pool="avg")
    figure = heatmap_figure(vit, inputs, blocks=[1], attention=True)
    assert "attention received (mean of all tokens)" in [axis.get_xlabel() for axis in figure.axes]


def test_maps_over_grey_pictures_have_all_colours_from_the_map(small_vit, inputs):
    _, rows = grid(heatmap_figure(small_vit, inputs, blocks=[1], overlay=True))
    red, green, blue = pixels(small_vit, inputs)[0].unbind(-1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue).numpy()
    below = 2 * rows[0][1].astype(float) / 255 - luma[..., None]  # the colours of the map, for a weight of a half
    tokens = below.reshape(3, 8, 5, 8, 3)
    assert rows[0][1].shape == (*WIDE, 3)
    assert np.ptp(tokens, axis=(1, 3)).max() < 0.02  # one colour a token
    assert np.ptp(tokens, axis=(0, 2)).max() > 0.1


def test_a_pruned_model_shows_what_every_cut_keeps_and_blanks_what_is_gone(small_vit, inputs):
    pruned = ShiftTracker(small_vit).prune({0: 5, 2: 3})
    titles, rows = grid(heatmap_figure(pruned, inputs, blocks=[0, 3], kept=True))
    assert titles[1:] == ["shift, blocks.0", "shift, blocks.3", "10 of 15 kept, blocks.0", "7 of 15 kept, blocks.2"]
    seen = pixels(small_vit, inputs)
    for image, (_, first, last, _, kept) in enumerate(rows):
        assert np.isfinite(first).all()
        blank = np.isnan(np.ma.filled(last, np.nan)) | np.ma.getmaskarray(last)
        assert blank.sum() == 8 * 64
        faded = 0.25 * seen[image].numpy() + 0.375
        assert np.allclose(kept, np.where(blank[..., None], faded, seen[image].numpy()), atol=1e-6)


def outlines(figure):
    return [sum(len(each.get_segments()) for each in axis.collections) for axis in figure.axes if axis.images]


def test_a_model_that_merges_shows_its_groups_outlined(small_vit, inputs):
    merging = ShiftTracker(small_vit).prune({0: 5, 2: 3}, pruner="mnn")
    figure = heatmap_figure(merging, inputs, blocks=[3], kept=True)
    titles, rows = grid(figure)
    assert titles[1:] == ["shift, blocks.3", "15 merged into 10, blocks.0", "15 merged into 7, blocks.2"]
    seen = pixels(small_vit, inputs)
    groups = token_groups(merging, inputs)
    for image, (_, shift, *shown) in enumerate(rows):
        assert np.isfinite(shift).all()  # painted over all places
        for picture, each in zip(shown, groups.values(), strict=True):
            assert np.allclose(picture, blend_merged(seen, each)[image], atol=1e-6)
    expected = [[0, 0, *(len(group_outlines(each[image], WIDE)) for each in groups.values())] for image in (0, 1)]
    assert outlines(figure) == [count for row in expected for count in row]
    assert min(expected[0][2:]) > 5


def test_methods_are_compared_by_what_they_leave_behind_their_last_cut(small_vit, inputs):
    compared = {name: ShiftTracker(small_vit).prune({0: 5, 2: 3}, pruner=name) for name in ("tokens", "mnn")}
    figure = heatmap_figure(small_vit, inputs, blocks=[2], compared=compared)
    titles, rows = grid(figure)
    assert titles[1:] == ["shift, blocks.2", "7 of 15 kept, tokens", "15 merged into 7, mnn"]
    whole = grid(heatmap_figure(small_vit, inputs, blocks=[2]))[1]
    assert np.array_equal(rows[0][1], whole[0][1])  # the dense model's
    assert [count > 0 for count in outlines(figure)] == [False, False, False, True] * 2


def test_what_single_positions_leave_is_shown_without_a_number_where_it_differs():
    torch.manual_seed(4)
    pruned = ShiftTracker(load_model("tiny_resnet", pretrained=True)).prune({0: 4, 1: 2}, pruner="positions")
    titles, _ = grid(heatmap_figure(pruned, torch.randn(6, 3, 64, 64), kept=True))
    assert titles[1:5] == [f"shift, layer{stage}" for stage in (1, 2, 3, 4)]
    assert titles[5:] == ["784 of 1024 kept, layer1", "kept, layer2"]


def test_every_picture_together_with_vision_mamba(inputs):
    pruned = ShiftTracker(load_model("tiny_vim")).prune({2: 0.5})
    titles, _ = grid(heatmap_figure(pruned, torch.randn(1, 3, 64, 64), overlay=True, kept=True, scale="map"))
    assert titles == ["image", *(f"shift, layers.{layer}" for layer in (0, 3, 5)), "32 of 64 kept, layers.2"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, values):
        return values + self.branch(values)


def test_a_model_that_nobody_described_is_drawn_too(inputs):
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Sequential(Block(), Block(), Block())).eval()
    titles, rows = grid(heatmap_figure(model, inputs, overlay=True))
    assert titles == ["image", "shift, 1.0", "shift, 1.1", "shift, 1.2"]
    assert all(picture.shape == (*WIDE, 3) for row in rows for picture in row)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"scale": "mep"}, UnknownNameError, "'map'"),
        ({"kept": True}, UnsupportedModelError, "drops nothing"),
        ({"blocks": [4]}, UnknownNameError, "no block 4"),
        ({"sites": "blocks.9"}, UnknownNameError, r"'blocks\.9'"),
        ({"sites": "blocks.*.mlp", "attention": True}, UnsupportedModelError, "whole blocks"),
        ({"distance": "l3"}, UnknownNameError, "'l3'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(small_vit, inputs, settings, error, message):
    with pytest.raises(error, match=message):
        heatmap_figure(small_vit, inputs, **settings)
