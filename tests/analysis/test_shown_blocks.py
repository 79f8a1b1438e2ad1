import pytest
import torch

from repshift import UnknownNameError, UnsupportedModelError, load_model
from repshift.analysis.shown_blocks import attention_blocks, block_names, chosen_names


def test_the_first_the_middle_and_the_last_block_are_shown_by_default(small_vit):
    assert block_names(small_vit, torch.rand(1, 3, 24, 40)) == ["blocks.0", "blocks.2", "blocks.3"]


def test_blocks_are_shown_in_the_order_asked_for(small_vit):
    assert block_names(small_vit, torch.rand(1, 3, 24, 40), [3, 1]) == ["blocks.3", "blocks.1"]


@pytest.mark.parametrize("block", [-1, 4])
def test_a_block_out_of_range_is_refused_with_the_range(small_vit, block):
    with pytest.raises(UnknownNameError, match=rf"no block {block} .* 0 to 3"):
        block_names(small_vit, torch.rand(1, 3, 24, 40), [0, block])


def test_blocks_of_a_model_without_a_backbone_are_found_by_running_it():
    names = block_names(load_model("darknet53"), torch.rand(1, 3, 64, 64), [0])
    assert names == ["stages.0.blocks.0"]


def test_a_model_without_blocks_is_refused_with_what_to_do():
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    with pytest.raises(UnsupportedModelError, match="Name the modules"):
        block_names(plain, torch.rand(1, 3, 8, 8))
