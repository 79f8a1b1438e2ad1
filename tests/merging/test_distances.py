"""Distances that are computed once and then changed, against computing them anew."""

import pytest
import torch

from repshift.layouts import TokenSequence
from repshift.merging import MutualNearestPruner, groups
from repshift.merging.groups import Distances
from repshift.pruners import Candidates


@pytest.fixture
def tokens():
    drawn = torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(drawn + drawn.roll(1, 1) + 2.0, dim=-1)


def squared(distances):
    return distances.halves.unsqueeze(1) + distances.halves.unsqueeze(2) - distances.products


def test_distances_are_those_between_the_tokens(tokens):
    torch.testing.assert_close(squared(Distances.between(tokens)), torch.cdist(tokens, tokens).square() / 2)


def test_tokens_that_move_towards_others_have_the_distances_of_where_they_are_then(tokens):
    stays, goes = torch.tensor([[0, 3, 7]] * 3), torch.tensor([[1, 9, 7]] * 3)
    share = torch.tensor([[0.5, 0.25, 0.0]] * 3)
    moved = tokens.clone()
    for to, towards, far in zip(stays[0], goes[0], share[0], strict=True):
        moved[:, to] = (1 - far) * tokens[:, to] + far * tokens[:, towards]
    found = squared(Distances.between(tokens).joined(stays, goes, share))
    torch.testing.assert_close(found, torch.cdist(moved, moved).square() / 2, rtol=1e-4, atol=1e-5)


def test_a_token_has_nobody_to_join_where_all_are_left_out(tokens):
    lowest, _ = Distances.between(tokens).nearest(among=torch.zeros(3, 20, dtype=torch.bool))
    assert lowest.isinf().all()


@pytest.mark.parametrize("rounds", [1, 2])
def test_half_precision_chooses_groups_that_are_as_tight(rounds, tokens, monkeypatch):
    monkeypatch.setattr(groups, "_quick_dtype", lambda device: torch.bfloat16)

    def spread(exact):
        pruner = MutualNearestPruner(rounds, exact=exact)
        selection = pruner.choose(Candidates(tokens, TokenSequence(), None), 8)
        means = (selection.add(tokens) / selection.sizes().unsqueeze(-1)).gather(
            1, selection.joins.unsqueeze(-1).expand_as(tokens)
        )
        return (tokens - means).square().sum().item()

    assert spread(False) == pytest.approx(spread(True), rel=0.02)
