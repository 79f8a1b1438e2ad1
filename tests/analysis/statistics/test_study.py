import json

import numpy as np
import pytest
import torch
from PIL import Image

from repshift import ShiftTracker, load_model
from repshift.analysis.samples.data import open_samples
from repshift.analysis.samples.processes import Processes
from repshift.analysis.statistics.masks import masks_for, read_mask
from repshift.analysis.statistics.measuring import measure, write_study
from repshift.analysis.statistics.plots import draw_agreement, draw_distributions, draw_foreground, draw_removal
from repshift.analysis.statistics.rank_agreement import RankAgreement, spearman
from repshift.analysis.statistics.score_settings import (
    controls,
    foreground_settings,
    observe,
    shift_settings,
)
from repshift.analysis.statistics.study import Study
from repshift.errors import DataError, UnknownNameError, UnsupportedModelError
from repshift.finding import require_structure

# --- settings ---------------------------------------------------------------------------------------------------


def names(settings):
    return [setting.name for setting in settings]


def test_a_transformer_is_scored_by_all_operations_distances_and_residuals(vit):
    distances = ("l2", "l1", "cosine")
    expected = {f"{operation} {distance}" for operation in ("attn", "mlp", "block") for distance in distances}
    expected |= {f"{operation} {distance} residual" for operation in ("attn", "mlp") for distance in distances}
    found = names(shift_settings(require_structure(vit)))
    assert set(found) == expected
    assert len(found) == len(expected)
    assert names(controls(require_structure(vit))) == ["norm", "cls attention"]


def test_a_model_without_class_token_is_held_against_the_mean_attention(build_vit):
    model = build_vit(class_token=False, global_pool="avg")
    assert names(controls(require_structure(model))) == ["norm", "mean attention"]


@pytest.mark.parametrize(
    ("name", "own"), [("tiny_resnet", ["stage l2"]), ("tiny_vim", ["mixer l2", "mixer l2 residual"])]
)
def test_chance_and_norm_stand_beside_the_shift_of_every_model(name, own):
    assert names(foreground_settings(require_structure(load_model(name)))) == [*own, "norm", "random"]


def test_one_forward_gives_what_a_tracker_for_each_setting_gives(vit, images):
    settings = [*shift_settings(require_structure(vit)), *controls(require_structure(vit))]
    observed = observe(vit, images, settings)
    for setting in settings:
        score = None if setting.score is None else setting.score
        alone = ShiftTracker(
            vit, operation=setting.operation, distance=setting.distance or "l2", residual=setting.residual, score=score
        )
        with alone, torch.no_grad():
            logits = vit(images)
        assert torch.equal(observed.logits, logits)
        assert observed.scores[setting.name].keys() == alone.shifts.keys()
        for layer, shift in alone.shifts.items():
            assert torch.equal(observed.scores[setting.name][layer], shift)
            assert torch.equal(observed.maps[setting.name][layer].flatten(1), shift)


def test_a_model_that_no_backbone_knows_is_refused():
    with pytest.raises(UnsupportedModelError, match="no known backbone"):
        Study(torch.nn.Linear(3, 3))


# --- the study --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "expected"), [(None, [0, 2, 3]), ([1], [1]), ([3, 0], [3, 0])])
def test_blocks_are_the_first_the_middle_and_the_last_or_those_asked_for(vit, blocks, expected):
    assert Study(vit, blocks).blocks == [f"blocks.{block}" for block in expected]


def test_a_block_that_is_named_twice_is_refused(vit):
    with pytest.raises(UnknownNameError, match="Block 3 is named twice"):
        Study(vit, [3, 0, 3])


@pytest.mark.parametrize("block", [-1, 4])
def test_a_block_that_is_not_there_is_refused(vit, block):
    with pytest.raises(UnknownNameError, match="has 4, 0 to 3"):
        Study(vit, [block])


def test_the_numbers_are_those_of_all_images_at_once(vit, images):
    study = Study(vit)
    study.update(images[:1])
    study.update(images[1:])
    results = study.results()
    assert results["images"] == 3
    with ShiftTracker(vit) as shift, ShiftTracker(vit, score="norm") as norm, torch.no_grad():
        vit(images)
    for layer, values in shift.shifts.items():
        found = results["distributions"]["mlp l2"][layer]
        assert found["count"] == values.numel()
        assert found["mean"] == pytest.approx(values.double().mean().item(), rel=1e-9)
        assert found["max"] == values.max().item()
        matrix, settings = results["rank_agreement"]["matrices"][layer], results["rank_agreement"]["settings"]
        expected = spearman(torch.stack([values, norm.shifts[layer]]))[0, 1].mean().item()
        assert matrix[settings.index("mlp l2")][settings.index("norm")] == pytest.approx(expected)


def test_without_masks_nothing_is_said_of_the_foreground(vit, images):
    study = Study(vit)
    study.update(images)
    assert study.results()["foreground"]["shares"] == {}


def test_chance_has_one_curve_for_all_blocks_and_the_rest_one_for_each(vit, images):
    study, steps = Study(vit), []
    study.update_removal(images, lambda: steps.append(1))
    curves = study.results()["removal"]["curves"]
    for kind in curves.values():
        assert {name: len(layers) for name, layers in kind.items()} == {
            "mlp l2": 3,
            "norm": 3,
            "cls attention": 3,
            "random": 1,
        }
    assert len(steps) == study.curves_for_each_batch() == 4 * 10


def test_stages_have_tokens_of_different_sizes_and_so_a_chance_each(images):
    study = Study(load_model("tiny_resnet"), [0, 3])
    study.update_removal(images)
    curves = study.results()["removal"]["curves"]["deletion"]
    assert curves.keys() == {"stage l2", "norm", "random"}
    assert all(list(layers) == ["layer1", "layer4"] for layers in curves.values())


def test_scores_of_other_tokens_are_refused():
    scores = {"a": {"blocks.0": torch.rand(2, 16)}, "b": {"blocks.0": torch.rand(2, 17)}}
    with pytest.raises(DataError, match=r"blocks.0 have the shapes \(2, 16\), \(2, 17\)"):
        RankAgreement(["a", "b"]).update(scores)


# --- images and masks -------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path, vit):
    """Four pictures of two classes, wider than high, whose left half is the object of all but one."""
    vit.num_classes, vit.pretrained_cfg = 2, {"input_size": (3, 32, 32)}
    for number in range(4):
        folder = "one" if number < 2 else "two"
        for kind in ("images", "masks"):
            (tmp_path / kind / folder).mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (40, 80, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / "images" / folder / f"{number}.png")
        mask = torch.zeros(40, 80, dtype=torch.uint8)
        mask[:, :40] = 255 if number else 0
        Image.fromarray(mask.numpy()).save(tmp_path / "masks" / folder / f"{number}.png")
    return tmp_path


def test_masks_are_cropped_like_their_images(pictures, vit):
    samples = open_samples(vit, pictures / "images")
    masks = masks_for(samples, pictures / "masks")([0, 3])
    assert masks.shape == (2, *samples.config["input_size"][1:])
    assert masks.dtype == torch.bool
    assert not masks[0].any()
    half = masks.shape[2] // 2
    assert masks[1, :, : half - 1].all()
    assert not masks[1, :, half + 1 :].any()


def test_the_digits_boxes_are_the_masks_of_the_canvases(shipped_digits):
    model = load_model("tiny_vit")
    samples = open_samples(model, "cluttered-mnist", num_samples=20)
    masks = masks_for(samples)(range(20))
    for index in range(20):
        image = samples[index][1][0]
        rows, columns = masks[index].any(1).nonzero(), masks[index].any(0).nonzero()
        assert masks[index].sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert image[masks[index]].mean() > image[~masks[index]].mean() + 0.5


def test_a_folder_of_images_has_no_masks_unless_they_are_given(pictures, vit):
    assert masks_for(open_samples(vit, pictures / "images")) is None


def test_a_folder_of_masks_that_is_not_there_is_refused(pictures, vit):
    with pytest.raises(DataError, match="no folder of masks"):
        masks_for(open_samples(vit, pictures / "images"), pictures / "nothing")


def test_a_mask_that_is_missing_is_named(pictures, vit):
    (pictures / "masks" / "two" / "3.png").unlink()
    masks = masks_for(open_samples(vit, pictures / "images"), pictures / "masks")
    with pytest.raises(DataError, match=r"3\.png has no mask"):
        masks([0, 3])


OBJECT = np.array([[False, True, False], [False, False, True]])


def palette_image(colours):
    image = Image.fromarray(OBJECT.astype(np.uint8)).copy()
    image.putpalette([number for colour in colours for number in colour])
    return image


def channels(*values):
    return Image.fromarray(np.stack([OBJECT * value for value in values], axis=-1).astype(np.uint8))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(OBJECT),
        Image.fromarray(OBJECT.astype(np.uint8)),
        Image.fromarray(OBJECT.astype(np.uint16)),
        Image.fromarray(OBJECT.astype(np.int32)),
        channels(0, 0, 3),
        channels(9, 255),
        channels(0, 3, 0, 1),
        Image.fromarray(np.stack([np.full((2, 3), 90), OBJECT * 255], axis=-1).astype(np.uint8)),
        palette_image([(0, 0, 0), (0, 0, 0)]),
        palette_image([(0, 0, 0), (0, 0, 1)]),
    ],
    ids=["one bit", "8 bits", "16 bits", "32 bits", "blue", "opaque", "green", "cut out", "black number", "palette"],
)
def test_what_is_not_zero_and_not_transparent_is_the_object(tmp_path, image):
    file = tmp_path / ("mask.tif" if image.mode == "I" else "mask.png")
    image.save(file)
    assert read_mask(file).tolist() == OBJECT.tolist()


def test_a_palette_whose_first_colour_is_transparent_says_what_the_object_is(tmp_path):
    palette_image([(255, 255, 255), (9, 0, 0)]).save(tmp_path / "mask.png", transparency=0)
    assert read_mask(tmp_path / "mask.png").tolist() == OBJECT.tolist()


def test_a_palette_whose_first_colour_is_white_does_not_say_what_the_object_is(tmp_path):
    palette_image([(255, 255, 255), (0, 0, 0)]).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="first colour of the palette"):
        read_mask(tmp_path / "mask.png")


@pytest.mark.parametrize("size", [(40, 40), (40, 80), (160, 80)])
def test_a_mask_of_another_size_than_its_image_is_refused(pictures, vit, size):
    Image.new("L", size, 255).save(pictures / "masks" / "two" / "3.png")
    masks = masks_for(open_samples(vit, pictures / "images"), pictures / "masks")
    with pytest.raises(DataError, match=rf"3\.png has {size[0]} x {size[1]} pixels, its image .* has 80 x 40"):
        masks([0, 3])


def test_a_mask_that_is_no_image_is_named(pictures, vit):
    (pictures / "masks" / "two" / "3.png").write_bytes(b"no image")
    masks = masks_for(open_samples(vit, pictures / "images"), pictures / "masks")
    with pytest.raises(DataError, match=r"masks.*3\.png is not an image"):
        masks([3])


# --- figures ----------------------------------------------------------------------------------------------------


@pytest.fixture
def study(pictures, vit):
    """A study of four pictures, with masks and curves."""
    samples, study = open_samples(vit, pictures / "images"), Study(vit, [0, 3])
    measure(study, samples, masks_for(samples, pictures / "masks"), 4, 4, 0, 0, Processes())
    return study


def lines(axis):
    """What is drawn on an axis, by label: the heights of its points."""
    return {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axis.get_lines()}


def test_the_distributions_drawn_are_those_of_the_study(study):
    axes = {axis.get_title(): axis for axis in draw_distributions(study).axes if axis.get_title()}
    assert {"mlp l2", "attn l2", "block l2", "mlp l2 residual", "norm", "cls attention"} <= set(axes)
    for name, axis in axes.items():
        layers = study.statistics[name].layers
        assert lines(axis) == {
            "median": [one.quantile(0.5) for one in layers.values()],
            "mean": [one.mean for one in layers.values()],
        }
        assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "1", "2", "3"]
        outer = axis.collections[0].get_paths()[0].vertices[:, 1]
        assert outer.min() == min(one.quantile(0.05) for one in layers.values())
        assert outer.max() == max(one.quantile(0.95) for one in layers.values())


def test_the_agreement_drawn_is_that_of_the_study(study):
    axes = {axis.get_title(): axis for axis in draw_agreement(study).axes}
    for block in ("blocks.0", "blocks.3"):
        (image,) = axes[block].get_images()
        assert np.array_equal(image.get_array(), study.agreement.matrix(block).numpy())
        names = [label.get_text() for label in axes[block].get_xticklabels()]
        assert names == study.agreement.settings
    by_layer = lines(next(axis for axis in axes.values() if "rank correlation\nwith" in axis.get_ylabel()))
    own, norm = (study.agreement.settings.index(name) for name in ("mlp l2", "norm"))
    expected = [study.agreement.matrix(f"blocks.{block}")[own, norm].item() for block in range(4)]
    assert by_layer["norm"] == expected
    assert "mlp l2" not in by_layer


def test_the_shares_drawn_are_those_on_the_object(study):
    shares = study.results()["foreground"]["shares"]
    for axis, what in zip(draw_foreground(study).axes, ("pointing", "top"), strict=True):
        drawn = lines(axis)
        for label, name in {"shift (mlp l2)": "mlp l2", "norm": "norm", "random": "random"}.items():
            assert drawn[label] == [100 * layer[what] for layer in shares[name].values()]
        assert drawn["share of all tokens"] == [100 * layer["chance"] for layer in shares["norm"].values()]


def test_the_curves_drawn_are_those_of_the_removal(study):
    curves = study.results()["removal"]["curves"]
    figure = draw_removal(study)
    for place, block in enumerate(("blocks.0", "blocks.3")):
        for axis, kind in zip(figure.axes[place * len(curves) :], study.removal.kinds, strict=False):
            drawn = lines(axis)
            for label, name in {"shift (mlp l2)": "mlp l2", "norm": "norm", "random": "random"}.items():
                curve = curves[kind.name][name]["blocks.0" if name == "random" else block]
                assert drawn[f"{label}, {curve['area']:.2f}"] == [100 * value for value in curve["values"]]


# --- a whole run ------------------------------------------------------------------------------------------------


def test_a_run_writes_numbers_and_figures(pictures, vit, tmp_path):
    study, told = Study(vit, [0]), []
    samples = open_samples(vit, pictures / "images")
    masks = masks_for(samples, pictures / "masks")
    measure(study, samples, masks, 3, 2, 0, 0, Processes(), lambda *done: told.append(done))
    written = write_study(study, tmp_path / "out", "vit", "images", torch.device("cpu"))
    assert [path.name for path in written] == [
        "statistics.json",
        "distributions.png",
        "agreement.png",
        "foreground.png",
        "removal.png",
    ]
    assert sorted((tmp_path / "out").iterdir()) == sorted(written)
    for path in written[1:]:
        with Image.open(path) as figure:
            assert len(figure.convert("RGB").getcolors(maxcolors=2**24)) > 50
    content = json.loads(written[0].read_text())
    assert content["repshift_statistics"] == 1
    assert content["environment"]["torch"] == torch.__version__
    assert (content["images"], content["removal"]["images"]) == (4, 3)
    assert content["foreground"]["shares"]["mlp l2"]["blocks.0"]["images"] == 3
    assert told[-1][1] == told[-1][2] == 2 * study.curves_for_each_batch()


def test_figures_that_a_later_run_does_not_make_do_not_stay(pictures, vit, tmp_path):
    samples = open_samples(vit, pictures / "images")
    for masks, curve_samples in ((masks_for(samples, pictures / "masks"), 1), (None, 0)):
        study = Study(vit, [0])
        measure(study, samples, masks, curve_samples, 2, 0, 0, Processes())
        written = write_study(study, tmp_path / "out", "vit", "images", torch.device("cpu"))
        (tmp_path / "out" / "notes.png").touch()
    assert [path.name for path in written] == ["statistics.json", "distributions.png", "agreement.png"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*(path.name for path in written), "notes.png"}


def test_an_image_that_cannot_be_read_is_named(pictures, vit):
    (pictures / "images" / "two" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png"):
        measure(Study(vit), open_samples(vit, pictures / "images"), None, 0, 2, 0, 0, Processes())
