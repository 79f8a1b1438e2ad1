"""Who joins whom, against plain loops over the pairs of one image after the other."""

import pytest
import torch
import torch.nn.functional as F

from repshift.errors import ScheduleError
from repshift.layouts import TokenSequence
from repshift.merging import BipartitePruner, FusePruner, MutualNearestPruner, NearestPruner, WardPruner
from repshift.pruners import Candidates

COUNTS = [(12, 1), (12, 2), (12, 5), (12, 6), (13, 6), (13, 10), (12, 11), (2, 1)]


def example(count, batch=3, channels=8, seed=0, sized=False):
    generator = torch.Generator().manual_seed(seed + count)
    tokens = torch.randn(batch, count, channels, generator=generator, dtype=torch.float64)
    # neighbours resemble each other, as in images
    tokens = tokens + tokens.roll(1, 1) + 0.5 * tokens.roll(2, 1)
    sizes = torch.randint(1, 5, (batch, count), generator=generator).float() if sized else None
    return tokens, sizes


def candidates(tokens, sizes=None, scores=None, keys=None, prefix=0):
    whole = torch.nn.functional.pad(tokens, (0, 0, prefix, 0))
    return Candidates(whole, TokenSequence(prefix), scores, sizes, keys=keys)


def groups_of(selection):
    """For each image, which tokens each kept one stands for."""
    found = []
    for kept, joins in zip(selection.kept.tolist(), selection.joins.tolist(), strict=True):
        assert kept == sorted(kept)
        assert all(joins[place] == at for at, place in enumerate(kept))
        found.append(
            {place: {token for token, at in enumerate(joins) if at == number} for number, place in enumerate(kept)}
        )
    return found


def cost(z, s, i, j):
    return s[i] * s[j] / (s[i] + s[j]) * sum((a - b) ** 2 for a, b in zip(z[i], z[j], strict=True))


def unit(vector):
    length = sum(value * value for value in vector) ** 0.5
    return [value / length for value in vector]


def mean(z, s, i, j):
    return [(s[i] * a + s[j] * b) / (s[i] + s[j]) for a, b in zip(z[i], z[j], strict=True)]


def nearest_of(z, s, alive):
    return {i: min((cost(z, s, i, j), j) for j in alive if j != i) for i in alive}


def heavier(s, i, j):
    return i if (s[i], -i) > (s[j], -j) else j


def mutual_pairs(near, s):
    """Pairs that are nearest to each other: what the lighter one costs, and into whom it goes."""
    pairs = {}
    for i, (price, j) in near.items():
        if near[j][1] == i:
            stays = heavier(s, i, j)
            pairs[j if stays == i else i] = (price, stays)
    return pairs


def mnn_by_hand(tokens, sizes, going, rounds):
    z, s = [unit(token) for token in tokens], list(sizes)
    alive, into = list(range(len(z))), {}
    if rounds == 2 and going > 1:
        pairs = mutual_pairs(nearest_of(z, s, alive), s)
        for i in sorted(pairs, key=lambda i: pairs[i][0])[: (going + 1) // 2]:
            j = pairs[i][1]
            z[j], s[j], into[i] = mean(z, s, j, i), s[j] + s[i], j
            alive.remove(i)
    near = nearest_of(z, s, alive)
    stay = {pair[1] for pair in mutual_pairs(near, s).values()}
    free = sorted((i for i in alive if i not in stay), key=lambda i: near[i][0])
    for i in free[: going - len(into)]:
        into[i] = near[i][1]
    groups = {i: {i} for i in range(len(z)) if i not in into}
    for i in into:
        j = i
        while j in into:
            j = into[j]
        groups[j].add(i)
    return groups


def ward_by_hand(tokens, sizes, going):
    z, s = [unit(token) for token in tokens], list(sizes)
    alive, groups = list(range(len(z))), {i: {i} for i in range(len(z))}
    for _ in range(going):
        _, i, j = min((cost(z, s, i, j), i, j) for i in alive for j in alive if i < j)
        stays = heavier(s, i, j)
        goes = j if stays == i else i
        z[stays], s[stays] = mean(z, s, stays, goes), s[stays] + s[goes]
        groups[stays] |= groups.pop(goes)
        alive.remove(goes)
    return groups


def tome_by_hand(features, going, first):
    a, b = range(first, len(features), 2), range(1 - first, len(features), 2)
    z = [unit(feature) for feature in features]
    best = {i: max((sum(x * y for x, y in zip(z[i], z[j], strict=True)), -j) for j in b) for i in a}
    into = {i: -best[i][1] for i in sorted(a, key=lambda i: -best[i][0])[:going]}
    return {j: {j, *(i for i in into if into[i] == j)} for j in range(len(z)) if j not in into}


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize(("count", "going"), [(count, going) for count, going in COUNTS if going <= count // 2])
def test_mutual_nearest_neighbours(count, going, rounds, sized):
    tokens, sizes = example(count, sized=sized)
    selection = MutualNearestPruner(rounds, exact=True).choose(candidates(tokens, sizes), going)
    ones = torch.ones(tokens.shape[:2]) if sizes is None else sizes
    assert groups_of(selection) == [
        mnn_by_hand(token.tolist(), size.tolist(), going, rounds) for token, size in zip(tokens, ones, strict=True)
    ]


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("count", "going"), COUNTS)
def test_ward(count, going, sized):
    tokens, sizes = example(count, sized=sized)
    ones = torch.ones(tokens.shape[:2]) if sizes is None else sizes
    assert groups_of(WardPruner().choose(candidates(tokens, sizes), going)) == [
        ward_by_hand(token.tolist(), size.tolist(), going) for token, size in zip(tokens, ones, strict=True)
    ]


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("metric", ["keys", "tokens"])
@pytest.mark.parametrize(("count", "going"), [(12, 1), (12, 5), (13, 6)])
def test_bipartite_matching(count, going, metric, prefix):
    tokens, _ = example(count)
    keys, _ = example(count, seed=7)
    selection = BipartitePruner(metric).choose(candidates(tokens, keys=keys, prefix=prefix), going)
    features = keys if metric == "keys" else tokens
    assert groups_of(selection) == [tome_by_hand(image.tolist(), going, prefix % 2) for image in features]


@pytest.mark.parametrize(
    "pruner", [MutualNearestPruner(1), MutualNearestPruner(2), WardPruner(), BipartitePruner("tokens")]
)
@pytest.mark.parametrize(("count", "going"), COUNTS)
def test_any_number_may_go(count, going, pruner):
    tokens, _ = example(count)
    selection = pruner.choose(candidates(tokens), going)
    assert selection.kept.shape == (3, count - going)
    assert [sum(map(len, image.values())) for image in groups_of(selection)] == [count] * 3


def test_pairs_that_are_mutual_and_separate_are_joined_alike_by_all():
    axes = torch.eye(8, dtype=torch.float64)
    tokens = torch.stack([axes, axes + 0.05 * axes.roll(1, 1)], 1).flatten(0, 1).unsqueeze(0)
    expected = [{2 * pair: {2 * pair, 2 * pair + 1} for pair in range(8)}]
    for pruner in (MutualNearestPruner(1), MutualNearestPruner(2), WardPruner()):
        assert groups_of(pruner.choose(candidates(tokens), 8)) == expected


@pytest.mark.parametrize(
    "pruner", [MutualNearestPruner(1), MutualNearestPruner(2), WardPruner(), BipartitePruner("tokens")]
)
@pytest.mark.parametrize("going", [1, 5, 10, 19])
def test_tokens_that_are_all_equal_still_make_a_selection(pruner, going):
    tokens = torch.ones(2, 20, 6)
    selection = pruner.choose(candidates(tokens), going)
    assert selection.kept.shape == (2, 20 - going)
    groups_of(selection)


def test_nothing_and_zeros():
    tokens = torch.zeros(2, 9, 4)
    for pruner in (MutualNearestPruner(), WardPruner(), BipartitePruner("tokens")):
        assert pruner.choose(candidates(tokens), 0) is None
        assert groups_of(pruner.choose(candidates(tokens), 4))


def test_padding_goes_first_and_nothing_joins_it():
    tokens, _ = example(12)
    sizes = torch.ones(3, 12)
    sizes[:, [2, 5, 6]] = 0
    for pruner in (MutualNearestPruner(1), MutualNearestPruner(2), WardPruner()):
        for image in groups_of(pruner.choose(candidates(tokens, sizes), 3)):
            assert not {2, 5, 6} & image.keys()


def test_the_score_decides_who_is_fused_and_how_much_each_counts():
    tokens, scores = torch.arange(5.0).view(1, 5, 1) + 1, torch.tensor([[4.0, 1.0, 9.0, 2.0, 0.0]])
    selection = FusePruner().choose(candidates(tokens, scores=scores), 2)
    assert selection.kept.tolist() == [[0, 2, 3]]
    assert selection.joins.tolist() == [[0, 2, 1, 2, 2]]
    assert selection.mean(tokens).flatten().tolist() == pytest.approx([1, 3, (1 * 2 + 2 * 4) / 3])
    assert selection.sizes().tolist() == [[1, 1, 3]]


def test_the_score_decides_who_merges_into_its_nearest():
    tokens, scores = example(12)[0], torch.rand(3, 12)
    selection = NearestPruner().choose(candidates(tokens, scores=scores), 5)
    assert selection.kept.tolist() == scores.topk(7, dim=1).indices.sort(dim=1).values.tolist()
    for image, kept in enumerate(selection.kept.tolist()):
        for token in range(12):
            cosines = [float(F.cosine_similarity(tokens[image, token], tokens[image, at], dim=0)) for at in kept]
            expected = kept.index(token) if token in kept else cosines.index(max(cosines))
            assert selection.joins[image, token] == expected


def test_a_merged_token_keeps_the_mean_length_and_a_lone_one_its_bits():
    tokens, sizes = example(12, sized=True)
    selection = MutualNearestPruner().choose(candidates(tokens, sizes), 5)
    merged = selection.mean(tokens, sizes)
    for image, groups in enumerate(groups_of(selection)):
        for place, (at, group) in enumerate(groups.items()):
            members = sorted(group)
            weights = sizes[image, members].double() / sizes[image, members].sum()
            if len(members) == 1:
                assert torch.equal(merged[image, place], tokens[image, at])
                continue
            lengths = (tokens[image, members].norm(dim=-1) * weights).sum()
            direction = (tokens[image, members] * weights.unsqueeze(1)).sum(0)
            torch.testing.assert_close(merged[image, place], direction * lengths / direction.norm())


def test_what_is_fused_counts_by_its_score_also_where_the_lowest_stay():
    tokens, scores = example(6)[0], torch.rand(3, 6)
    selection = FusePruner().choose(candidates(tokens, scores=-scores), 3)
    weights, gone = selection.weights, ~torch.zeros_like(scores, dtype=torch.bool).scatter(1, selection.kept, True)
    for image in range(3):
        own = scores[image][gone[image]]
        torch.testing.assert_close(weights[image][gone[image]] / weights[image][gone[image]].sum(), own / own.sum())


@pytest.mark.parametrize(
    ("pruner", "settings"),
    [
        (MutualNearestPruner, {"rounds": True}),
        (MutualNearestPruner, {"rounds": 1.0}),
        (MutualNearestPruner, {"exact": "no"}),
        (WardPruner, {"size_attention": "no"}),
        (BipartitePruner, {"size_attention": 1}),
    ],
)
def test_settings_of_another_kind_are_refused(pruner, settings):
    (value,) = settings.values()
    with pytest.raises(ScheduleError, match=f"got {value!r}"):
        pruner(**settings)
