import json

import pytest
import torch

from repshift import CheckpointError, RepshiftError, UnknownNameError, UnsupportedModelError, load_model, save_model


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_vim", "vim_tiny", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("size", [0, -3, "64", 64.5, True, (64,), (64, 0), (64, 64, 64), b"64"])
def test_sizes_of_images_that_are_none_are_refused(name, size):
    with pytest.raises(UnknownNameError, match=r"img_size of .* a whole number, or rows and columns, from 1"):
        load_model(name, img_size=size)


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": -1},
        {"num_classes": 2.5},
        {"in_chans": 0},
        {"depth": 0},
        {"embed_dim": "a"},
        {"num_heads": False},
        {"drop_rate": 2.0},
        {"drop_path_rate": float("nan")},
        {"checkpoint_path": "weights.pth"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UnknownNameError, match=next(iter(options))):
        load_model("vit_tiny_patch16_224", **options)


@pytest.mark.parametrize("name", ["vim_tiny", "vit_tiny_patch16_224"])
def test_images_smaller_than_a_patch_are_refused(name):
    with pytest.raises(RepshiftError, match=r"smaller than one patch|hold no patch of 16x16"):
        load_model(name, img_size=1, depth=1)


def test_options_that_build_nothing_say_so():
    with pytest.raises(UnsupportedModelError, match=r"cannot be built with \{'embed_dim': 7\}.*divisible"):
        load_model("vit_tiny_patch16_224", embed_dim=7)


def test_what_is_none_is_the_models_own():
    assert load_model("tiny_vim", num_classes=None, img_size=None).num_classes == 10


@pytest.mark.parametrize("checkpoint", [0, True, [], b"x", "a\0b"])
def test_checkpoints_that_name_no_file_are_refused(checkpoint):
    with pytest.raises(CheckpointError, match=r"named by a string or a pathlib.Path"):
        load_model("tiny_vit", checkpoint=checkpoint)


@pytest.mark.parametrize("flag", ["pretrained", "use_ema"])
def test_flags_are_true_or_false(flag):
    with pytest.raises(UnknownNameError, match=f"{flag} is True or False, got 'yes'"):
        load_model("tiny_vit", **{flag: "yes"})


def test_a_folder_whose_options_are_arguments_is_refused(tmp_path):
    save_model(load_model("tiny_resnet"), tmp_path, "tiny_resnet")
    described = json.loads((tmp_path / "repshift.json").read_text())
    (tmp_path / "repshift.json").write_text(json.dumps({**described, "options": {"checkpoint": "other.pth"}}))
    with pytest.raises(CheckpointError, match="has the options checkpoint, which lead to other files"):
        load_model(tmp_path)


@pytest.mark.parametrize(("model", "folder"), [(None, "out"), (torch.nn.Identity(), 3)])
def test_only_models_are_saved_and_only_in_folders(model, folder):
    with pytest.raises((UnsupportedModelError, CheckpointError), match=r"Expected a model|named by a string"):
        save_model(model, folder, "tiny_vit")
