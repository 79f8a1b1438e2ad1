import pytest
import timm
import torch
from torch import nn

from repshift import UnknownNameError, UnsupportedModelError, repeated_blocks
from repshift.modules import find_modules


@pytest.fixture
def nested():
    def block():
        return nn.ModuleDict({"attn": nn.Sequential(nn.Linear(2, 2)), "mlp": nn.Linear(2, 2)})

    return nn.ModuleDict({"blocks": nn.ModuleList([block(), block()]), "head": nn.Linear(2, 2)})


def test_a_name_finds_its_module(nested):
    assert find_modules(nested, "blocks.1.mlp") == ["blocks.1.mlp"]


def test_a_glob_does_not_cross_dots(nested):
    assert find_modules(nested, "blocks.*") == ["blocks.0", "blocks.1"]
    assert find_modules(nested, "*") == ["blocks", "head"]
    assert find_modules(nested, "blocks.*.attn") == ["blocks.0.attn", "blocks.1.attn"]


def test_question_marks_and_brackets_are_wildcards(nested):
    assert find_modules(nested, "blocks.?") == ["blocks.0", "blocks.1"]
    assert find_modules(nested, "blocks.[1-9].m*") == ["blocks.1.mlp"]


def test_modules_come_once_and_in_the_order_of_the_model(nested):
    assert find_modules(nested, ["head", "blocks.1", "blocks.*"]) == ["blocks.0", "blocks.1", "head"]


def test_a_generator_of_names_is_read(nested):
    assert find_modules(nested, (f"blocks.{index}" for index in range(2))) == ["blocks.0", "blocks.1"]


def test_a_selector_that_matches_nothing_names_the_closest(nested):
    with pytest.raises(
        UnknownNameError, match=r"No module of ModuleDict matches 'block\.0'\. Did you mean 'blocks\.0'"
    ):
        find_modules(nested, "block.0")


def test_one_selector_of_several_that_matches_nothing_is_an_error(nested):
    with pytest.raises(UnknownNameError, match=r"matches 'layers\.\*'"):
        find_modules(nested, ["head", "layers.*"])


def test_upper_and_lower_case_differ(nested):
    with pytest.raises(UnknownNameError, match=r"matches 'HEAD'\."):
        find_modules(nested, "HEAD")


def test_no_selector_at_all_is_an_error_with_examples(nested):
    with pytest.raises(UnknownNameError, match=r"No module was named: got \[\].*names or globs"):
        find_modules(nested, [])


def test_a_model_itself_is_not_among_its_modules(nested):
    with pytest.raises(UnknownNameError, match=r"matches ''"):
        find_modules(nested, "")


# --- repeated blocks ---------------------------------------------------------------------------------------------


def test_the_repeated_blocks_of_a_resnet_are_those_that_keep_the_shape():
    model = timm.create_model("resnet18").eval()
    found = repeated_blocks(model, torch.randn(1, 3, 64, 64))
    assert found == ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]


def test_the_repeated_blocks_of_a_swin_are_its_windowed_blocks():
    small = {"img_size": 56, "window_size": 7, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2)}
    model = timm.create_model("swin_tiny_patch4_window7_224", **small).eval()
    found = repeated_blocks(model, torch.randn(1, 3, 56, 56))
    assert found == [f"layers.{stage}.blocks.{index}" for stage in range(2) for index in range(2)]


def test_the_repeated_blocks_of_an_eva_are_its_blocks():
    model = timm.create_model("eva02_tiny_patch14_224", img_size=56, embed_dim=32, depth=3, num_heads=2).eval()
    assert repeated_blocks(model, torch.randn(1, 3, 56, 56)) == ["blocks.0", "blocks.1", "blocks.2"]


def test_the_repeated_blocks_of_a_vit_are_its_blocks(vit, images):
    assert repeated_blocks(vit, images) == [f"blocks.{index}" for index in range(4)]


def test_a_model_without_repeated_blocks_is_refused_with_its_class():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    with pytest.raises(UnsupportedModelError, match=r"Sequential has no repeated blocks.*Name the modules.*sites="):
        repeated_blocks(model, torch.randn(1, 3, 8, 8))


def test_finding_blocks_leaves_no_hooks_even_if_the_model_fails(vit):
    with pytest.raises(UnsupportedModelError, match=r"does not take the images \(1, 3, 8, 8\)"):
        repeated_blocks(vit, torch.randn(1, 3, 8, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())


def test_finding_blocks_does_not_change_running_statistics_or_the_mode():
    model = timm.create_model("resnet18").train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    repeated_blocks(model, torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(module.training for module in model.modules())
