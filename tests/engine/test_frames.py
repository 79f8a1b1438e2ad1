"""A pruner that takes the same of every frame, held to the same pruner on each frame by itself."""

import pytest
import torch

from repshift import PRUNERS, Recipe, ShiftTracker, describe, load_model, recipe_of
from repshift.candidates import Candidates
from repshift.errors import ScheduleError, UnsupportedModelError
from repshift.frames import FramePruner
from repshift.layouts import TokenSequence

FRAMES, EACH = 3, 8
NAMES = [name for name in PRUNERS.names() if name.endswith("frames")]


@pytest.fixture
def candidates():
    torch.manual_seed(0)
    tokens, scores = torch.randn(2, FRAMES * EACH, 6), torch.rand(2, FRAMES * EACH)
    return Candidates(tokens, TokenSequence(), scores, keys=torch.randn(2, FRAMES * EACH, 4), whole=(FRAMES, 2, 4))


def part(value, frame):
    return None if value is None else value[:, frame * EACH : (frame + 1) * EACH]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("drop", [0.3, 6])
def test_each_frame_is_pruned_as_if_it_were_alone(candidates, name, drop):
    pruner = PRUNERS.get(name)
    whole = pruner.choose(candidates, drop)
    found = whole.mean(candidates.tokens) if whole.joins is not None else whole.take(candidates.tokens)
    alone = []
    for frame in range(FRAMES):
        own = part(candidates.tokens, frame)
        single = Candidates(own, TokenSequence(), part(candidates.scores, frame), keys=part(candidates.keys, frame))
        selection = pruner.within.choose(single, 2)
        alone.append(selection.mean(own) if selection.joins is not None else selection.take(own))
    torch.testing.assert_close(found, torch.cat(alone, 1))
    assert (whole.kept // EACH).tolist() == [[0] * 6 + [1] * 6 + [2] * 6] * 2


def test_a_count_that_the_frames_do_not_divide_is_refused(candidates):
    with pytest.raises(ScheduleError, match=r"7 tokens .* each of 3 frames.*such as 6"):
        PRUNERS.get("frames").choose(candidates, 7)


def test_images_have_no_frames():
    model = load_model("tiny_vit")
    with pytest.raises(UnsupportedModelError, match=r"every frame of a video.*'tokens'"):
        ShiftTracker(model).prune("0.2@0", pruner="frames")
    assert "frames" not in describe(model).pruners


@pytest.mark.parametrize("name", NAMES)
def test_as_many_tokens_of_every_frame_are_left_in_a_model(name):
    torch.manual_seed(0)
    model = load_model("tiny_umt", frames=3, img_size=64, patch_size=16)
    assert name in describe(model).pruners
    pruned = ShiftTracker(model).prune({0: 0.2, 1: 0.3}, pruner=name)
    assert Recipe.from_json(recipe_of(pruned).to_json()).pruner == name
    videos = torch.randn(2, 3, 3, 64, 64)
    tokens, _ = pruned(videos)  # 16 of each frame, 13, 10
    assert tokens.shape[1] == 30
    tracker = ShiftTracker(pruned).run(videos)
    kept = tracker.kept["vision_encoder.encoder.blocks.1"] // 16
    assert [(kept == frame).sum(1).tolist() for frame in range(3)] == [[10, 10]] * 3


def test_it_may_hold_any_pruner():
    assert FramePruner(PRUNERS.get("tome")).wants_keys
    assert FramePruner(PRUNERS.get("tokens")).drops_only
    assert not FramePruner(PRUNERS.get("fuse")).size_attention
