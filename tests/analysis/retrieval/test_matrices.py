import pytest
import torch
from torch import nn

from repshift.analysis.retrieval.matrices import (
    NO_CANDIDATE,
    Candidates,
    Texts,
    encode_texts,
    itc_matrix,
    match_video,
    reranked_matrices,
)
from repshift.errors import DataError

VIDEOS, TEXTS, LENGTH, CHANNELS = 7, 9, 6, 8


class StandIn(nn.Module):
    """A retrieval model as far as this room asks: one layer of cross-attention behind word embeddings."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, CHANNELS)
        self.keys, self.values = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.head = nn.Linear(CHANNELS, 2)
        self.projected = 0
        self.pairs = 0

    def encode_text(self, ids, mask):
        words = self.words(ids) * mask[..., None]
        states = words + words.sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        return states, states[:, 0]

    def itc(self, pooled, first):
        frames = nn.functional.normalize(pooled, dim=-1)
        return (frames @ nn.functional.normalize(first, dim=-1).T).mean(1)

    def project_video(self, tokens):
        self.projected += 1
        return [(self.keys(tokens), self.values(tokens))]

    def match(self, projected, states, mask):
        ((keys, values),) = projected
        self.pairs += len(states)
        seen = (states @ keys.transpose(1, 2)).softmax(-1) @ values + states
        return self.head((seen * mask[..., None]).sum(1).tanh())


@pytest.fixture
def case():
    """The model, tokens of each video, pooled videos, ids and mask of texts."""
    model = StandIn().eval()
    tokens = torch.randn(VIDEOS, 5, CHANNELS)
    lengths = torch.tensor([2, 6, 3, 4, 5, 6, 2, 3, 1])
    mask = (torch.arange(LENGTH)[None] < lengths[:, None]).long()
    ids = torch.randint(1, 50, (TEXTS, LENGTH)) * mask
    with torch.inference_mode():
        yield model, tokens, tokens.mean(1, keepdim=True), ids, mask


def brute_force(model, tokens, ids, mask):
    """Match every pair by itself, on padded texts."""
    states, _ = model.encode_text(ids, mask)
    rows = []
    for video in tokens:
        projected = model.project_video(video[None])
        rows.append(torch.cat([model.match(projected, states[n : n + 1], mask[n : n + 1]) for n in range(len(ids))]))
    return torch.stack(rows)[..., 1]


def test_texts_are_kept_without_padding_and_come_back_with_it(case):
    model, _, _, ids, mask = case
    texts = encode_texts(model, ids, mask, batch_size=4)
    states, first = model.encode_text(ids, mask)
    torch.testing.assert_close(texts.first, first)
    padded, there = texts.batch([1, 0], "cpu")
    assert torch.equal(there.long(), mask[[1, 0]])
    torch.testing.assert_close(padded[there], states[[1, 0]][there])
    assert not padded[~there].any()


def test_similarities_do_not_depend_on_the_size_of_a_step(case):
    model, _, pooled, ids, mask = case
    texts = encode_texts(model, ids, mask, batch_size=100)
    expected = model.itc(pooled, texts.first)
    assert expected.shape == (VIDEOS, TEXTS)
    torch.testing.assert_close(itc_matrix(model, pooled, texts.first, batch_size=2), expected)


def test_with_all_candidates_both_matrices_are_those_of_every_pair(case):
    model, tokens, pooled, ids, mask = case
    texts = encode_texts(model, ids, mask, batch_size=4)
    itc = itc_matrix(model, pooled, texts.first)
    to_text, to_video = reranked_matrices(model, tokens.__getitem__, texts, itc, 1000, batch_size=4)
    expected = brute_force(model, tokens, ids, mask)
    torch.testing.assert_close(to_text, expected)
    torch.testing.assert_close(to_video, expected.T)


@pytest.mark.parametrize("count", [1, 3])
def test_each_direction_has_its_own_candidates_and_the_others_a_score_below_all(case, count):
    model, tokens, pooled, ids, mask = case
    texts = encode_texts(model, ids, mask, batch_size=4)
    itc = itc_matrix(model, pooled, texts.first)
    found = reranked_matrices(model, tokens.__getitem__, texts, itc, count)
    scores = brute_force(model, tokens, ids, mask)
    for own, every, similar in ((found[0], scores, itc), (found[1], scores.T, itc.T)):
        expected = torch.full_like(every, -100.0)
        for row, numbers in enumerate(similar.topk(count, 1).indices):
            expected[row, numbers] = every[row, numbers]
        torch.testing.assert_close(own, expected)
        assert ((own == NO_CANDIDATE).sum(1) == own.shape[1] - count).all()


def test_a_video_is_projected_once_and_a_pair_of_both_directions_matched_once(case):
    model, tokens, pooled, ids, mask = case
    texts = encode_texts(model, ids, mask, batch_size=4)
    itc = itc_matrix(model, pooled, texts.first)
    model.projected = model.pairs = 0
    asked = []
    reranked_matrices(model, lambda video: asked.append(video) or tokens[video], texts, itc, 3, batch_size=2)
    pairs = {(v, t) for v in range(VIDEOS) for t in itc[v].topk(3).indices.tolist()}
    pairs |= {(v, t) for t in range(TEXTS) for v in itc[:, t].topk(3).indices.tolist()}
    assert asked == sorted({video for video, _ in pairs})
    assert (model.projected, model.pairs) == (len(asked), len(pairs))


def test_the_size_of_a_step_does_not_change_a_score(case):
    model, tokens, _, ids, mask = case
    texts = encode_texts(model, ids, mask, batch_size=4)
    numbers = list(range(TEXTS))
    expected = match_video(model, tokens[0], texts, numbers, 100)
    torch.testing.assert_close(match_video(model, tokens[0], texts, numbers, 2), expected)


def test_similarities_that_are_no_numbers_and_no_candidates_are_refused():
    with pytest.raises(DataError, match="NaN"):
        Candidates.of(torch.tensor([[float("nan")]]))
    with pytest.raises(DataError, match="--candidates"):
        Candidates.of(torch.zeros(1, 1), 0)


def test_there_are_as_many_texts_as_states():
    assert len(Texts([torch.zeros(1, 2)] * 3, torch.zeros(3, 2))) == 3
