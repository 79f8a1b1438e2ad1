"""What the comparison across a stage keeps, and that what is computed a second time is the same."""

import gc

import pytest
import torch
from timm.models import ResNet
from timm.models.resnet import BasicBlock, Bottleneck
from torch.multiprocessing.reductions import StorageWeakRef

from repshift import ShiftTracker
from repshift.branches import Replay


@pytest.fixture
def wide():
    """Bottlenecks whose first shortcut returns twice as much as it takes, and the second one half as much."""
    torch.manual_seed(0)
    return ResNet(Bottleneck, (3, 2, 1, 1), 10, channels=(32, 32, 32, 32), zero_init_last=False).eval()


@pytest.fixture
def alive(monkeypatch):
    """Say how many maps that the first shortcut returned are alive when the last block of its stage ends."""

    def count(model, images):
        pruned, returned, counted = ShiftTracker(model).prune({0: 4}), [], []
        shortcut = pruned.layer1[0].downsample
        original = type(shortcut[-1]).forward

        def watched(self, *args):
            output = original(self, *args)
            if self is shortcut[-1]:
                returned.append(StorageWeakRef(output.untyped_storage()))
            return output

        last = pruned.layer1[-1].conv3
        first_of_last = type(last).forward

        def counts(self, *args):
            if self is last:
                gc.collect()
                counted.append(sum(not memory.expired() for memory in returned))
            return first_of_last(self, *args)

        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(type(shortcut[-1]), "forward", watched)
            patch.setattr(type(last), "forward", counts)
            pruned(images)
        return counted

    return count


def test_what_the_first_shortcut_returned_is_not_kept_until_the_stage_ends(wide, images, alive):
    assert alive(wide, images) == [0]


def test_it_would_be_seen_if_it_were(wide, images, alive, monkeypatch):
    monkeypatch.setattr(Replay, "is_possible", lambda self, stream: False)
    assert alive(wide, images) == [1]


@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_what_is_computed_a_second_time_gives_the_same_map(wide, distance, batch, monkeypatch):
    images = torch.randn(batch, 3, 64, 96)
    pruned = ShiftTracker(wide, distance=distance).prune({0: 4, 1: 2})
    with torch.no_grad():
        found = pruned(images)
        monkeypatch.setattr(Replay, "is_possible", lambda self, stream: False)
        torch.testing.assert_close(found, pruned(images))


def test_the_shortcut_runs_a_second_time_only_where_it_returns_more_than_it_takes(wide, images, monkeypatch):
    runs = []
    original = Replay.run
    monkeypatch.setattr(Replay, "run", lambda self, taken: runs.append(taken.shape[1]) or original(self, taken))
    with torch.no_grad():
        ShiftTracker(wide).prune({0: 4, 1: 2})(images)
    assert set(runs) == {wide.layer1[0].downsample[0].in_channels}


def watch_a_part(model):
    seen = []
    model.layer1[0].downsample[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    return seen


def test_nothing_runs_twice_where_somebody_watches(wide, images):
    pruned = ShiftTracker(wide).prune({0: 4})
    seen = watch_a_part(pruned)
    pruned(images)
    assert [shape[0] for shape in seen] == [3]


def test_nothing_runs_twice_while_training(wide, images):
    pruned = ShiftTracker(wide).prune({0: 4}).train()
    before = pruned.layer1[0].downsample[1].num_batches_tracked.clone()
    pruned(images)
    assert pruned.layer1[0].downsample[1].num_batches_tracked == before + 1


def test_nothing_runs_twice_while_tracked(wide, images, monkeypatch):
    monkeypatch.setattr(Replay, "run", lambda self, taken: pytest.fail("ran twice"))
    tracker = ShiftTracker(ShiftTracker(wide).prune({0: 4}), ["layer1", "layer1.0.downsample.1"]).run(images)
    assert tracker.shifts["layer1.0.downsample.1"].shape[0] == 3


def test_gradients_do_not_pass_through_what_is_computed_a_second_time(wide, images, monkeypatch):
    pruned = ShiftTracker(wide).prune({0: 4})
    parameters = list(pruned.parameters())
    found = torch.autograd.grad(pruned(images).square().sum(), parameters)
    monkeypatch.setattr(Replay, "is_possible", lambda self, stream: False)
    for one, other in zip(found, torch.autograd.grad(pruned(images).square().sum(), parameters), strict=True):
        torch.testing.assert_close(one, other)


def test_scores_of_what_enters_keep_nothing(build_resnet, images):
    _, model = build_resnet(BasicBlock, (2, 1, 1, 1))
    pruned = ShiftTracker(model).prune({0: 4}, score="norm")
    streams = next(role.streams for role in pruned.layer1.repshift_roles)
    kept = []
    pruned.layer1[1].conv2.register_forward_hook(lambda *call: kept.append((streams.own.before, streams.own.source)))
    pruned(images)
    assert kept == [(None, None)]
