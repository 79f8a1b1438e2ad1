import json
import math
import pickle

import numpy as np
import pytest
import torch

from repshift.analysis.statistics.distributions import QUANTILE_ERROR, Distribution, ShiftStatistics
from repshift.errors import DataError, UnknownNameError

SHARES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999, 1.0)


@pytest.fixture
def values():
    """10,000 values over many orders of magnitude, with zeros and ties, far from symmetric."""
    random = np.random.RandomState(5)
    spread = np.exp(random.standard_normal(10_000) * 3 + 1)
    spread[:300] = 0
    spread[300:700] = 2.5
    random.shuffle(spread)
    return torch.from_numpy(spread)


def split(values, lengths, order):
    parts = values.split(lengths)
    whole = Distribution()
    for place in order:
        whole = whole + Distribution.of(parts[place])
    return whole


def test_count_mean_deviation_and_extremes_are_those_of_numpy_on_everything_at_once(values):
    streamed = split(values, [1, 499, 3000, 6500], [2, 0, 3, 1])
    numbers = values.numpy()
    assert streamed.count == 10_000
    assert streamed.mean == pytest.approx(numbers.mean(), rel=1e-12)
    assert streamed.deviation == pytest.approx(numbers.std(), rel=1e-12)
    assert (streamed.low, streamed.high) == (numbers.min(), numbers.max())


@pytest.mark.parametrize("share", SHARES)
def test_quantiles_are_those_of_numpy_up_to_the_stated_error(values, share):
    streamed = split(values, [4000, 6000], [0, 1])
    exact = np.quantile(values.numpy(), share, method="inverted_cdf")
    assert streamed.quantile(share) == pytest.approx(exact, rel=QUANTILE_ERROR * (1 + 1e-9))


def test_the_error_of_a_quantile_is_no_larger_than_needed(values):
    wrong = [
        abs(Distribution.of(values).quantile(share) / np.quantile(values.numpy(), share, method="inverted_cdf") - 1)
        for share in np.linspace(0.1, 0.99, 200)
    ]
    assert max(wrong) > QUANTILE_ERROR / 2  # the bound is not there for nothing


def test_the_deviation_of_large_close_values_keeps_its_digits():
    values = 1e8 + torch.arange(1000, dtype=torch.float64) / 1000
    streamed = split(values, [100] * 10, range(10))
    assert streamed.deviation == pytest.approx(values.numpy().std(), rel=1e-6)


def test_the_order_of_batches_and_their_sizes_change_nothing_that_counts(values):
    one, other = split(values, [2000] * 5, range(5)), split(values, [7, 4993, 5000], [1, 2, 0])
    assert (one.histogram == other.histogram).all()
    assert (one.count, one.low, one.high) == (other.count, other.low, other.high)
    assert [one.quantile(share) for share in SHARES] == [other.quantile(share) for share in SHARES]
    assert one.mean == pytest.approx(other.mean, rel=1e-12)
    assert one.deviation == pytest.approx(other.deviation, rel=1e-12)


def test_merging_commutes_to_the_last_digit(values):
    one, other = Distribution.of(values[:3000]), Distribution.of(values[3000:])
    assert (one + other).state() == (other + one).state()


def test_nothing_is_neutral(values):
    one = Distribution.of(values)
    assert (one + Distribution()).state() == (Distribution() + one).state() == one.state()
    assert Distribution.of(torch.empty(0, 4)).state() == Distribution().state()


def test_of_no_values_nothing_is_known():
    empty = Distribution()
    assert math.isnan(empty.deviation)
    assert math.isnan(empty.quantile(0.5))
    assert empty.summary()["mean"] is None


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-20, 1e-15], [1e15, 1e30]])
def test_values_beyond_the_scale_are_between_the_extremes(values):
    found = Distribution.of(torch.tensor(values, dtype=torch.float64))
    assert found.count == found.histogram.sum() == 2
    assert found.low <= found.quantile(0.5) <= found.high


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(DataError, match="from 0 to 1"):
        Distribution().quantile(share)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_values_that_no_shift_has_are_refused_with_their_layer_and_leave_nothing(wrong):
    statistics = ShiftStatistics()
    with pytest.raises(DataError, match=r"blocks\.1: .*finite"):
        statistics.update({"blocks.0": torch.ones(3), "blocks.1": torch.tensor([1.0, wrong])})
    assert statistics.layers == {}


def test_half_precision_is_summed_up_in_double():
    values = torch.full((70_000,), 0.1, dtype=torch.float16)
    assert Distribution.of(values).mean == pytest.approx(float(values[0]), rel=1e-12)


def test_layers_are_kept_apart_and_batches_of_any_shape_put_together():
    statistics = ShiftStatistics()
    statistics.update({"a": torch.ones(2, 3), "b": torch.zeros(2, 5)})
    statistics.update({"a": torch.full((1, 4), 3.0)})
    assert (statistics["a"].count, statistics["b"].count) == (10, 10)
    assert statistics["a"].mean == pytest.approx((6 * 1 + 4 * 3) / 10)


def test_a_layer_that_is_not_there_is_refused_with_the_closest():
    statistics = ShiftStatistics({"blocks.0": Distribution()})
    with pytest.raises(UnknownNameError, match=r"blocks\.0"):
        statistics["block.0"]


def test_a_state_survives_json_and_pickle(values):
    statistics = ShiftStatistics()
    statistics.update({"blocks.0": values, "blocks.1": values[:0]})
    through_json = ShiftStatistics.from_state(json.loads(json.dumps(statistics.state(), allow_nan=False)))
    assert through_json.state() == statistics.state()
    assert pickle.loads(pickle.dumps(statistics)).state() == statistics.state()
    through_json.merge(statistics)
    assert through_json["blocks.0"].count == 20_000


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("mean"),
        lambda state: state.update(histogram={"1000000": 1}),
        lambda state: state.update(count=7),
        lambda state: state.update(ends=3),
    ],
)
def test_a_damaged_state_is_refused(values, damage):
    state = Distribution.of(values).state()
    damage(state)
    with pytest.raises(DataError, match="state"):
        Distribution.from_state(state)
