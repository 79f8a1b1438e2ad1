"""What a backbone can say of a model beyond its blocks, each said of a plain vision transformer."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from repshift import RepresentationError, ShiftTracker, UnsupportedModelError
from repshift.backbones.vit import VIT
from repshift.companions import Companion
from repshift.testing import CHECKS, KeepAll, make_subject


class Described:
    """Describes a plain vision transformer, and says something more."""

    def __init__(self, kind, **more):
        self.kind, self.more = kind, more

    def matches(self, model):
        return isinstance(model, self.kind)

    def structure(self, model):
        return replace(VIT.structure(model), **self.more)


@pytest.fixture
def describe(register, build_vit):
    """Build a model whose head pools by a module of its own, and say more of it."""

    def add(pool=None, **more):
        model = build_vit(class_token=False, global_pool="avg")
        kind = type("Model", (type(model),), {"pool": lambda self, x, **_: self.own(x)} if pool else {})
        model.__class__ = kind
        if pool:
            model.own, model.fc_norm = pool, nn.Identity()
        register(Described(kind, **more))
        return model

    return add


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


class Asks(nn.Module):
    """Pools by torch's own attention, which takes ``key_padding_mask``."""

    def __init__(self, width):
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        return self.attention(self.probe.expand(len(x), -1, -1), x, x)[0][:, 0]


class ByTable(nn.Module):
    """Averages by weights of every token, which it takes beside them."""

    def forward(self, x, weights):
        self.seen = [weights]
        return (x * weights.unsqueeze(-1)).mean(1)


@pytest.mark.parametrize(
    ("pool", "more"),
    [
        (Mean(), {"weighs": "own", "weighs_taken": True, "weighs_bias": None}),
        (Asks(32), {"weighs": "own.attention", "weighs_bias": "key_padding_mask"}),
    ],
    ids=["what a module takes is averaged", "key_padding_mask"],
)
def test_merged_tokens_count_by_their_size_in_pooling(describe, images, pool, more):
    subject = make_subject(describe(pool, **more), images)
    CHECKS["merged tokens count for all that they are"](subject)
    CHECKS["restored tokens have their places back"](subject)


def test_a_key_padding_mask_that_is_given_still_hides(describe, images):
    class Hiding(Asks):
        def forward(self, x):
            hidden = torch.arange(x.shape[1]).expand(len(x), -1) >= x.shape[1] - 5
            probe = self.probe.expand(len(x), -1, -1)
            return self.attention(probe, x, x, key_padding_mask=hidden)[0][:, 0]

    model = describe(Hiding(32), weighs="own.attention", weighs_bias="key_padding_mask")
    pruned = ShiftTracker(model).prune({0: 4}, pruner="mnn", restore=True)
    assert pruned(images).isfinite().all()
    seen = []
    merged = ShiftTracker(model).prune({3: 4}, pruner="mnn")
    merged.own.attention.register_forward_hook(lambda module, args, out: seen.append(out[1]))
    merged(images)
    assert (seen[0][..., -5:] == 0).all()
    assert (seen[0][..., :-5] > 0).all()


def test_an_argument_of_a_module_behind_the_blocks_is_shortened(describe, images):
    model = describe(ByTable(), weighs=None, behind={"own": (Companion("weights", "batch token"),)})
    table = torch.rand(3, 64)
    type(model).pool = lambda self, x, **_: self.own(x, table)
    kept = ShiftTracker(model).prune({0: 4}, pruner=KeepAll())
    assert torch.equal(kept(images), model(images))
    pruned = ShiftTracker(model).prune({0: 4})
    tracker = ShiftTracker(pruned).run(images)
    assert torch.equal(pruned.own.seen[0], table.gather(1, tracker.kept[0]))
    assert ShiftTracker(model).prune({0: 4}, restore=True)(images).shape == (3, 10)


def test_a_model_that_needs_all_tokens_is_pruned_with_restore_only(describe, images):
    model = describe(needs_all="its head draws them", shows_all=True)
    with pytest.raises(UnsupportedModelError, match=r"must have .*its head draws them. Prune with restore=True"):
        ShiftTracker(model).prune({0: 4})
    pruned = ShiftTracker(model).prune({0: 4}, restore=True)
    seen = []
    for block in pruned.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    pruned(images)
    assert seen == [64] * 4
    assert pruned.blocks[0].repshift_roles[0].streams.own.laid_out is None


def test_attention_that_takes_no_bias_says_so_when_it_needs_one(describe, images):
    model = describe(no_bias=lambda: "this kernel takes none")
    assert ShiftTracker(model).prune({0: 4})(images).shape == (3, 10)
    with pytest.raises(RepresentationError, match="this kernel takes none"):
        ShiftTracker(model).prune({0: 4}, pruner="mnn")(images)
    with pytest.raises(RepresentationError, match="this kernel takes none"):
        ShiftTracker(model).prune({0: 4})(images, attn_mask=torch.zeros(64, 64))


def test_a_sequence_without_a_grid_has_no_map(describe, images):
    tracker = ShiftTracker(describe(grid=None)).run(images)
    with pytest.raises(RepresentationError, match="no known rows and columns"):
        tracker.maps[0]


def test_blocks_that_return_more_than_tokens_show_them_all(describe, images):
    model = describe(needs_all="its head draws them", shows_all=True)

    class More(type(model.blocks[0])):
        def forward(self, x, **options):
            return super().forward(x, **options), None

    expected = ShiftTracker(model).prune({0: 4}, restore=True)(images)
    for block in model.blocks:
        block.__class__ = More
    model.blocks = Unpacking(*model.blocks)
    pruned = ShiftTracker(model).prune({0: 4}, restore=True)
    assert torch.equal(pruned(images), expected)


class Unpacking(nn.Sequential):
    def forward(self, x):
        for block in self:
            x = block(x)[0]
        return x
