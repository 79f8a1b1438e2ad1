"""Pruned video encoders: tokens keep their frames, and work falls as in the paper."""

import pytest
import torch

from repshift import ShiftTracker, describe, load_model
from repshift.analysis.subjects.macs import count_work
from repshift.testing import CHECKS, make_subject
from repshift.testing.subjects import KeepAll

MERGING = ("mnn", "mnn1", "ward", "tome", "merge", "fuse", "saliency_merge")
SLOW = ("compiled", "graph breaks", "exports", "threads", "fails", "own thread")  # other families hold these


@pytest.mark.parametrize("keep_temporal", [True, False])
def test_every_promise_is_kept(make, videos, keep_temporal):
    subject = make_subject(make(keep_temporal=keep_temporal).vision_encoder, videos)
    for promise, check in CHECKS.items():
        if not any(word in promise for word in SLOW):
            check(subject)


@pytest.mark.slow
def test_every_promise_is_kept_when_compiled(make, videos):
    subject = make_subject(make().vision_encoder, videos)
    for promise, check in CHECKS.items():
        if any(word in promise for word in SLOW):
            check(subject)


def test_the_encoder_is_found_in_the_models_of_tasks(model, videos):
    assert describe(model).blocks[0] == "vision_encoder.encoder.blocks.0"
    pruned = ShiftTracker(model).prune("0.25@0")
    assert type(pruned).__name__ == type(model).__name__
    tokens, pooled = pruned.encode_vision(videos)
    assert tokens.shape[1] == 12
    assert pooled.shape == (2, 4, 24)


def test_maps_have_frames_rows_and_columns(make, videos):
    pruned = ShiftTracker(make()).prune("0.25@0")
    maps = ShiftTracker(pruned).run(videos).maps
    assert maps[0].shape == (2, 4, 2, 2)
    assert maps[1].isnan().sum() == 2 * 4


@pytest.mark.parametrize("pruner", [KeepAll(), "tokens"])
def test_frames_are_pooled_as_their_own_tokens_say(make, videos, pruner):
    model = make()
    pruned = ShiftTracker(model).prune({1: 0.5}, pruner=pruner)
    tracker = ShiftTracker(pruned)
    with tracker:
        tokens, pooled = pruned(videos)
    if pruner != "tokens":
        assert torch.equal(pooled, model(videos)[1])
        return
    kept = tracker.kept[1]
    for video in range(2):
        for frame in range(4):
            own = tokens[video][kept[video] // 4 == frame]
            expected = model.vision_encoder.pool_norm(own.mean(0)) if len(own) else torch.zeros(24)
            torch.testing.assert_close(pooled[video, frame], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep_temporal", [True, False])
@pytest.mark.parametrize("pruner", MERGING)
def test_all_pruners_that_merge_can_be_used(make, videos, pruner, keep_temporal):
    pruned = ShiftTracker(make(keep_temporal=keep_temporal)).prune({0: 0.25, 1: 2}, pruner=pruner)
    tokens, pooled = pruned(videos)
    assert tokens.shape == (2, 10, 24)
    assert pooled.shape == (2, 4 if keep_temporal else 1, 24)
    assert pooled.isfinite().all()


# --- the published sizes ---------------------------------------------------------------------------------------------

KEPT = {0.2: (1882, 1506, 1205), 0.1: (2117, 1906, 1716)}
GMACS = {"b": {None: 303.1, 0.2: 156.3, 0.1: 217.5}, "l": {None: 984.0, 0.2: 478.2, 0.1: 690.1}}


@pytest.mark.parametrize("drop", [None, 0.2, 0.1])
@pytest.mark.parametrize("size", "bl")
def test_tokens_and_work_are_those_of_the_paper(size, drop):
    with torch.device("meta"):
        model = load_model(f"umt_{size}")
    if drop is not None:
        model = ShiftTracker(model).prune(dict.fromkeys(range(3), drop))
    work = count_work(model, (12, 3, 224, 224))
    assert work.macs / 1e9 == pytest.approx(GMACS[size][drop], rel=1e-3)
    assert work.tokens[:3] == KEPT.get(drop, (2352,) * 3)
