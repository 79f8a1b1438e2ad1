"""Shifts that are tracked in convolutional networks equal the definition."""

import pytest
import torch
from timm.models.resnet import BasicBlock


def assert_maps_equal(tracker, expected):
    assert list(tracker.maps) == list(expected)
    for name, shifts in expected.items():
        torch.testing.assert_close(tracker.maps[name], shifts, atol=1e-4, rtol=1e-4)
        assert torch.equal(tracker.shifts[name], tracker.maps[name].flatten(1))


def test_tracked_shifts_of_the_stages_equal_the_definition(net, model, sized_images, written_out, record):
    assert_maps_equal(record(model, sized_images), written_out(net, model, sized_images).stages)


def test_tracked_shifts_against_the_last_block_equal_the_definition(net, model, images, written_out, record):
    assert_maps_equal(record(model, images, operation="block"), written_out(net, model, images).last_blocks)


def test_tracked_shifts_of_all_residual_blocks_equal_the_definition(net, model, sized_images, written_out, record):
    expected = written_out(net, model, sized_images).blocks
    assert_maps_equal(record(model, sized_images, list(expected)), expected)


@pytest.mark.parametrize("family", ["timm ResNet", "timm ResNet-d", "torchvision ResNet"], indirect=True)
def test_a_glob_of_the_blocks_of_a_resnet_watches_what_the_definition_says(net, model, images, written_out, record):
    assert_maps_equal(record(model, images, "layer?.*"), written_out(net, model, images).blocks)


@pytest.mark.parametrize("distance", ["l1", "cosine"])
def test_other_distances_are_taken_over_the_channels(net, model, images, distance, written_out, record):
    expected = written_out(net, model, images, distance=distance)
    assert_maps_equal(record(model, images, distance=distance), expected.stages)


class AddsToItsInput(BasicBlock):
    """A residual block that adds its branch to what it was given, in place, as a user may write it."""

    def forward(self, x):
        branch = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.act2(shortcut.add_(branch))


def test_a_tracked_shift_is_right_where_a_block_changes_its_own_input(images, written_out, record, build_resnet):
    net, model = build_resnet(AddsToItsInput, (2, 1, 1, 1))
    expected = written_out(net, model, images)
    assert_maps_equal(record(model, images), expected.stages)
    assert_maps_equal(record(model, images, "layer?.*"), expected.blocks)
