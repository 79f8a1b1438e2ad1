import pytest
import torch
from timm.models import MetaFormer
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, SepConv
from timm.models.resnet import BasicBlock

from repshift import UnknownNameError, UnsupportedModelError, load_model
from repshift.analysis.heatmap.shown_blocks import attention_blocks, block_names, chosen_names


def test_the_first_the_middle_and_the_last_block_are_shown_by_default(small_vit):
    assert block_names(small_vit, torch.rand(1, 3, 24, 40)) == ["blocks.0", "blocks.2", "blocks.3"]


def test_blocks_are_shown_in_the_order_asked_for(small_vit):
    assert block_names(small_vit, torch.rand(1, 3, 24, 40), [3, 1]) == ["blocks.3", "blocks.1"]


@pytest.mark.parametrize("block", [-1, 4])
def test_a_block_out_of_range_is_refused_with_the_range(small_vit, block):
    with pytest.raises(UnknownNameError, match=rf"no block {block} .* 0 to 3"):
        block_names(small_vit, torch.rand(1, 3, 24, 40), [0, block])


def test_blocks_of_a_model_without_a_backbone_are_found_by_running_it():
    blocks = [BasicBlock(8, 8) for _ in range(2)]
    names = block_names(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), *blocks), torch.rand(1, 3, 64, 64), [0])
    assert names == ["1"]


def test_a_model_without_blocks_is_refused_with_what_to_do():
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    with pytest.raises(UnsupportedModelError, match="Name the modules"):
        block_names(plain, torch.rand(1, 3, 8, 8))


# --- defaults ---------------------------------------------------------------------------------------------------


def test_all_stages_of_a_convolutional_network_are_shown_by_default():
    names = chosen_names(load_model("tiny_resnet"), torch.rand(1, 3, 64, 64))
    assert names == ["layer1", "layer2", "layer3", "layer4"]


def test_stages_that_lack_the_operation_are_left_out_by_default():
    mixers, norms = [SepConv] * 2 + [Attention] * 2, [LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2
    model = MetaFormer(depths=(1, 1, 1, 1), dims=(8, 16, 32, 32), token_mixers=mixers, norm_layers=norms)
    images = torch.rand(1, 3, 64, 64)
    assert chosen_names(model, images, operation="block") == ["stages.0", "stages.1"]
    assert chosen_names(model, images, operation="block", blocks=[3]) == ["stages.3"]


def test_an_operation_that_no_stage_has_leaves_it_to_the_tracker_to_say_why():
    assert len(chosen_names(load_model("tiny_resnet"), torch.rand(1, 3, 64, 64), operation="attn")) == 4


def test_modules_by_glob_are_shown_in_the_order_of_the_model(small_vit):
    names = chosen_names(small_vit, torch.rand(1, 3, 24, 40), ["blocks.[13]", "blocks.0.attn"])
    assert names == ["blocks.0.attn", "blocks.1", "blocks.3"]


def test_names_and_numbers_together_are_refused(small_vit):
    with pytest.raises(UnknownNameError, match=r"--sites or --blocks"):
        chosen_names(small_vit, torch.rand(1, 3, 24, 40), "blocks.0", [1])


@pytest.mark.parametrize(("depth", "expected"), [(12, [0, 4, 8]), (24, [0, 8, 16]), (4, [0, 1, 2]), (1, [0])])
def test_attention_is_compared_at_the_first_block_of_each_third(build_vit, depth, expected):
    assert attention_blocks(build_vit(depth=depth)) == expected
