import pytest
import torch

from repshift import ShiftTracker, load_model
from repshift.analysis.subjects.macs import count_work
from repshift.backbones.umt.schedules import VID_TLDR, vid_tldr
from repshift.errors import UnknownNameError

ALL = [(task, size) for task in VID_TLDR for size in "bl"]


@pytest.fixture(scope="module")
def models():
    with torch.device("meta"):
        return {size: load_model(f"umt_{size}") for size in "bl"}


@pytest.mark.parametrize(("task", "size"), ALL)
def test_every_schedule_fits_its_model(models, task, size):
    drops = VID_TLDR[task][size]
    pruned = ShiftTracker(models[size]).prune(vid_tldr(task, size), pruner="saliency_merge")
    tokens = count_work(pruned, (12, 3, 224, 224)).tokens
    assert tokens[: len(drops)] == tuple(2352 - sum(drops[: n + 1]) for n in range(len(drops)))


@pytest.mark.parametrize(("task", "size"), [("msrvt", "b"), ("qa", "h")])
def test_what_was_not_published_is_refused(task, size):
    with pytest.raises(UnknownNameError):
        vid_tldr(task, size)
