import itertools

import pytest
import torch

from repshift.analysis.throughput.timing import Spread, order_of, paired_ratio, spread, time_in_turn


def test_a_spread_is_the_median_between_the_quartiles():
    assert spread((40.0, 10.0, 20.0)) == Spread(15.0, 20.0, 30.0)


def test_a_single_number_is_its_own_spread():
    assert spread((3.0,)) == Spread(3.0, 3.0, 3.0)


def test_a_machine_that_slows_down_for_whole_rounds_does_not_change_a_ratio():
    slowness = [1.0, 7.0, 1.0, 3.0, 2.0]
    slow, fast = [3.0 * factor for factor in slowness], [2.0 * factor for factor in slowness]
    assert paired_ratio(slow, fast) == Spread(1.5, 1.5, 1.5)


def test_a_ratio_is_how_many_times_as_fast_the_second_is():
    assert paired_ratio([4.0, 6.0, 9.0], [2.0, 2.0, 3.0]).median == 3.0


def test_ratios_of_different_numbers_of_rounds_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_each_has_one_turn_a_round(count):
    names = [f"method {number}" for number in range(count)]
    for number in range(2 * count):
        assert sorted(order_of(names, number)) == names


def test_each_comes_as_often_before_as_behind_each_of_the_others():
    names = ["a", "b", "c", "d", "e"]
    orders = [order_of(names, number) for number in range(10)]
    for one, other in itertools.combinations(names, 2):
        before = sum(order.index(one) < order.index(other) for order in orders)
        assert before == 5


def test_each_is_the_first_of_some_round():
    assert {order_of(["a", "b", "c"], number)[0] for number in range(6)} == {"a", "b", "c"}


@pytest.fixture
def called():
    """Three calls that write their names down."""
    names = []
    return names, {name: lambda name=name: names.append(name) for name in ("a", "b", "c")}


def test_calls_have_their_turns_in_order_and_one_number_a_round(called):
    names, calls = called
    seconds = time_in_turn(calls, rounds=4, threads=1, least_seconds=0)
    turns = [name for name, _ in itertools.groupby(names)]
    expected = [name for number in range(4) for name in order_of(["a", "b", "c"], number)]
    assert turns == [name for name, _ in itertools.groupby(expected)]
    assert list(seconds) == ["a", "b", "c"]
    assert all(len(taken) == 4 and min(taken) > 0 for taken in seconds.values())


def test_a_turn_begins_with_a_call_that_is_not_counted(called):
    names, calls = called
    time_in_turn(calls, rounds=1, threads=1, least_seconds=0)
    assert min(names.count(name) for name in calls) >= 2


def test_a_short_call_is_repeated_within_its_turn(called):
    names, calls = called
    time_in_turn({"a": calls["a"]}, rounds=1, threads=1, least_seconds=0.01)
    assert len(names) > 100  # one takes less than a microsecond


def test_a_turn_is_reported_when_it_is_over(called):
    _, calls = called
    reports = []
    time_in_turn(calls, rounds=3, threads=1, least_seconds=0, observe=lambda: reports.append(1))
    assert len(reports) == 9


def test_calls_run_with_the_threads_asked_for_and_leave_torchs_setting():
    before = torch.get_num_threads()
    seen = set()
    time_in_turn({"a": lambda: seen.add(torch.get_num_threads())}, rounds=1, threads=before + 1, least_seconds=0)
    assert seen == {before + 1}
    assert torch.get_num_threads() == before
