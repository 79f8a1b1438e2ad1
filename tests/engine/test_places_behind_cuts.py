"""What the engine knows of blocks that count places, of padding in shares, and of what stands behind fewer tokens."""

import pytest
import torch
from torch import nn

from repshift import ShiftTracker
from repshift.candidates import Candidates
from repshift.companions import Companion
from repshift.errors import RepresentationError, UnsupportedModelError
from repshift.images import Images
from repshift.layouts import TokenSequence
from repshift.pruners import TokenPruner
from repshift.restoring import nearest_kept
from repshift.selection import Selection
from repshift.sites import Operation, Site, Structure


class Block(nn.Module):
    """Adds the places of its tokens to them, counting them if it is not told."""

    def forward(self, x, places=None):
        places = torch.arange(x.shape[1]) if places is None else places
        return x + places[..., None].to(x.dtype)


class Reader(nn.Module):
    def forward(self, x):
        if x.shape[1] != 8:
            raise ValueError("Sizes do not Match")
        return x


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.reader = nn.Identity(), Reader()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x, read=False):
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.reader(x) if read else x


class Backbone:
    def __init__(self, **said):
        self.said = said

    def matches(self, model):
        return isinstance(model, Counting)

    def structure(self, model):
        names = [f"blocks.{number}" for number in range(3)]
        return Structure(
            sites=tuple(Site(name, {"block": Operation(name, (name,), on_stream=True)}) for name in names),
            layout=TokenSequence(),
            embedding="embedding",
            grid=None,
            tokens=8,
            operation="block",
            companions=(Companion("places", "token -> batch token", counted=True),),
            restores="blocks.2",
            **self.said,
        )


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    return torch.randn(2, 8, 4)


def test_blocks_that_count_places_are_told_those_of_the_tokens_that_are_left(register, tokens):
    register(Backbone())
    pruned = ShiftTracker(Counting()).prune({0: 0.25, 1: 0.5}, score="random")
    tracker = ShiftTracker(pruned).run(tokens)
    kept = tracker.kept[1]
    expected = tokens.gather(1, kept[..., None].expand(-1, -1, 4)) + 3 * kept[..., None]
    torch.testing.assert_close(tracker.output, expected)
    assert (kept != torch.arange(3)).any()


def test_a_module_that_reads_places_is_refused_unless_tokens_are_restored(register, tokens):
    register(Backbone(reads_places={"reader": "It reads places"}))
    pruned = ShiftTracker(Counting()).prune({0: 0.5})
    assert pruned(tokens).shape == (2, 4, 4)
    with pytest.raises(UnsupportedModelError, match=r"It reads places, and .* restore=True"):
        pruned(tokens, read=True)
    assert ShiftTracker(Counting()).prune({0: 0.5}, restore=True)(tokens, read=True).shape == (2, 8, 4)


def test_errors_that_come_of_fewer_tokens_are_explained(register, tokens):
    register(Backbone(explained={"": ("not match", "Give a shorter one.")}))
    pruned = ShiftTracker(Counting()).prune({0: 0.5})
    with pytest.raises(RepresentationError, match=r"Give a shorter one. \(Sizes do not Match\)"):
        pruned(tokens, read=True)
    with pytest.raises(ValueError, match="Sizes"):
        Counting()(tokens[:, :4], read=True)


def test_models_that_need_all_tokens_are_pruned_with_restore_only(register, tokens):
    register(Backbone(needs_all="it counts them"))
    with pytest.raises(UnsupportedModelError, match=r"it counts them. Prune with restore=True"):
        ShiftTracker(Counting()).prune({0: 0.5})
    assert ShiftTracker(Counting()).prune({0: 0.5}, restore=True)(tokens).shape == (2, 8, 4)


def test_models_that_are_tracked_only_are_not_pruned(register, tokens):
    register(Backbone(unpruned="it is so"))
    assert ShiftTracker(Counting()).run(tokens).shifts[0].shape == (2, 8)
    with pytest.raises(UnsupportedModelError, match="can be tracked but not pruned: it is so"):
        ShiftTracker(Counting()).prune({0: 0.5})


# --- shares of padded batches ----------------------------------------------------------------------------------------


def test_a_share_is_one_of_each_images_own_tokens():
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.7, 0.8, 0.2], [0.5, 0.1, 0.9, 0.2, 9.0, 9.0]])
    sizes = torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2])
    ranking = scores.masked_fill(sizes == 0, -torch.inf)
    candidates = Candidates(torch.zeros(2, 6, 1), TokenSequence(), ranking, sizes)
    selection = TokenPruner().choose(candidates, 0.5)
    left = selection.sizes(sizes)
    assert [selection.kept[n][left[n] > 0].tolist() for n in range(2)] == [[1, 3, 4], [0, 2]]
    # of a count, padding is the first to go
    selection = TokenPruner().choose(candidates, 2)
    assert selection.absent is None
    assert selection.kept[1].tolist() == [0, 1, 2, 3]


def test_merged_tokens_are_not_looked_through_for_padding():
    sizes = torch.tensor([[1.0, 2.0, 1.0, 2.0]])
    for padded in (True, False):
        candidates = Candidates(torch.zeros(1, 4, 1), TokenSequence(), sizes, sizes, padded=padded)
        selection = TokenPruner().choose(candidates, 0.5)
        assert selection.kept.tolist() == [[1, 3]]
        assert (selection.absent is None) is not padded


def test_nothing_is_restored_from_padding():
    tokens = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 0.05]]])
    kept, there = torch.tensor([[0, 2, 3]]), torch.tensor([[False, True, True]])
    assert nearest_kept(tokens, kept)[0].tolist() == [0, 2, 1, 2]
    assert nearest_kept(tokens, kept, there)[0].tolist() == [2, 2, 1, 2]
    back = Selection(torch.tensor([[0, 2]]), absent=torch.tensor([[False, True]])).back(tokens[:, :2] * 0, tokens)
    assert back[0, :, 0].tolist() == [0.0, pytest.approx(0.9), 0.0, 1.0]
    assert back[0, 2, 1] == 1.0


def test_videos_have_frames():
    assert Images(3, frames=True).size(torch.zeros(2, 5, 3, 4, 6)) == (5, 4, 6)
    assert Images(3).size(torch.zeros(2, 3, 4, 6)) == (4, 6)
    with pytest.raises(RepresentationError, match=r"\(batch, frames, 3, rows, columns\)"):
        Images(3, frames=True).require_rank(torch.zeros(2, 3, 4, 6))
