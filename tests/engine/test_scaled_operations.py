"""What leaves an operation is multiplied by a parameter of the block, outside of any module, as LayerScale often is."""

import copy
import pickle

import pytest
import torch
from torch import nn

from repshift import ShiftTracker, UnsupportedModelError, dense, describe
from repshift.layouts import TokenSequence
from repshift.positions import keep_highest
from repshift.sites import Operation, Site, Structure
from repshift.testing import CHECKS, make_subject

CHANNELS = 8


class Scaled(nn.Module):
    """A block that adds both branches through one module, scaled by parameters of its own."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.attn, self.mlp = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.drop_path = nn.Identity()
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.randn(CHANNELS)), nn.Parameter(3 * torch.randn(CHANNELS))

    def forward(self, x):
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(4, CHANNELS)
        self.blocks = nn.ModuleList(Scaled() for _ in range(3))

    def forward(self, words):
        x = self.embedding(words)
        for block in self.blocks:
            x = block(x)
        return x


class ScaledBackbone:
    def matches(self, model):
        return isinstance(model, Encoder)

    def structure(self, model):
        def site(name):
            operations = {
                part: Operation(f"{name}.norm{number}", (f"{name}.{part}",), scaled_by=f"{name}.gamma_{number}")
                for number, part in enumerate(("attn", "mlp"), start=1)
            }
            return Site(name, operations)

        names = [f"blocks.{number}" for number in range(len(model.blocks))]
        return Structure(tuple(map(site, names)), TokenSequence(), "embedding", grid=None, tokens=None)


@pytest.fixture
def encoder(register):
    register(ScaledBackbone())
    return Encoder().eval()


@pytest.fixture
def words():
    return torch.randn(3, 20, 4)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def shift_by_hand(model, words):
    with torch.no_grad():
        x, block = model.embedding(words), model.blocks[0]
        x = x + block.gamma_1 * block.attn(block.norm1(x))
        return (block.gamma_2 * block.mlp(block.norm2(x)) - x).norm(dim=-1)


def left_by(pruned, words):
    return ShiftTracker(pruned).run(words).kept["blocks.0"]


def test_what_is_recorded_is_what_the_block_adds(encoder, words):
    recorded = ShiftTracker(encoder).run(words).shifts["blocks.0"]
    torch.testing.assert_close(recorded, shift_by_hand(encoder, words))


def test_tokens_go_by_what_the_block_adds(encoder, words):
    by_scale = keep_highest(shift_by_hand(encoder, words), 12)
    assert torch.equal(left_by(ShiftTracker(encoder).prune({0: 8}), words), by_scale)
    unscaled = copy.deepcopy(encoder)
    nn.init.ones_(unscaled.blocks[0].gamma_2)
    assert not torch.equal(by_scale, keep_highest(shift_by_hand(unscaled, words), 12))


def test_another_parameter_in_its_place_is_the_one_that_counts(encoder, words):
    pruned = ShiftTracker(encoder).prune({0: 8})
    encoder.load_state_dict(Encoder().state_dict(), assign=True)
    assert torch.equal(left_by(pruned, words), keep_highest(shift_by_hand(encoder, words), 12))


@pytest.mark.parametrize("again", [copy.deepcopy, pickled], ids=["copied", "pickled"])
def test_a_copy_multiplies_by_its_own_parameter(encoder, words, again):
    other = again(ShiftTracker(encoder).prune({0: 8}))
    with torch.no_grad():
        other.blocks[0].gamma_2.copy_(torch.randn(CHANNELS))
    assert torch.equal(left_by(other, words), keep_highest(shift_by_hand(dense(other), words), 12))


def test_a_part_of_a_model_has_the_name_of_the_parameter_in_the_whole(encoder, words):
    whole = nn.Sequential(nn.Identity(), encoder)
    recorded = ShiftTracker(whole).run(words).shifts["1.blocks.0"]
    torch.testing.assert_close(recorded, shift_by_hand(encoder, words))


@pytest.mark.parametrize("name", ["what is recorded is what is pruned by", "exports prune alike"])
def test_promises_are_kept(encoder, words, name):
    CHECKS[name](make_subject(encoder, words))


def test_cutting_in_front_of_a_scaled_mlp_is_refused(encoder):
    with pytest.raises(UnsupportedModelError, match=r"multiplied by a parameter outside of any module.*'mnn'"):
        ShiftTracker(encoder).prune({0: 8}, pruner="saliency_merge")
    assert "saliency_merge" not in describe(encoder).pruners
