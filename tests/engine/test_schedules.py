from fractions import Fraction

import numpy as np
import pytest
import torch

from repshift import Schedule, ScheduleError, ShiftTracker
from repshift.drops import dropped_count

FORMS = {
    "dictionary": {0: 0.2, 3: 0.2, 6: 0.2},
    "dictionary in another order": {6: 0.2, 0: 0.2, 3: 0.2},
    "list": [0.2, 0, 0, 0.2, 0, 0, 0.2, 0],
    "tuple": (0.2, 0, 0, 0.2, 0, 0, 0.2, 0),
    "string": "0.2@0,3,6",
    "string of groups": "0.2@0,3;0.2@6",
    "string with spaces": " 0.2 @ 0, 3, 6 ",
    "string of a list": "[0.2,0,0,0.2,0,0,0.2,0]",
    "string of a bare list": "0.2, 0, 0, 0.2, 0, 0, 0.2, 0",
    "schedule": Schedule({0: 0.2, 3: 0.2, 6: 0.2}),
    "numpy scalars": {np.int64(0): np.float64(0.2), np.int32(3): np.float64(0.2), np.uint8(6): np.float64(0.2)},
    "fractions": {0: Fraction(1, 5), 3: Fraction(1, 5), 6: Fraction(1, 5)},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_drops(form):
    assert list(Schedule.of(form).drops.items()) == [(0, 0.2), (3, 0.2), (6, 0.2)]


def test_shares_and_counts_can_be_mixed_in_a_string():
    assert Schedule.of("0.2@0;16@3").drops == {0: 0.2, 3: 16}


def test_an_integer_is_a_count_and_a_float_a_share():
    drops = Schedule.of("1@0;0.5@1").drops
    assert [type(drop) for drop in drops.values()] == [int, float]


def test_numpy_scalars_become_plain_numbers():
    drops = Schedule.of({np.int64(2): np.int64(5), np.int64(3): np.float64(0.5)}).drops
    assert [type(value) for pair in drops.items() for value in pair] == [int, int, int, float]


def test_a_schedule_is_taken_as_it_is():
    schedule = Schedule({1: 3})
    assert Schedule.of(schedule) is schedule


@pytest.mark.parametrize("drops", [{0: 0.2, 3: 0.2}, {0: 0.2, 3: 16, 5: 0.2}, {11: 1}, {2: 0.1 + 0.2}])
def test_a_schedule_written_out_reads_back(drops):
    schedule = Schedule(drops)
    assert Schedule.of(str(schedule)) == schedule


def test_a_schedule_is_written_with_the_blocks_of_one_drop_together():
    assert str(Schedule({0: 0.2, 3: 16, 6: 0.2})) == "0.2@0,6;16@3"


def test_kept_counts_of_the_paper_s_schedule():
    assert Schedule.of("0.2@0,3,6").kept(196) == {0: 157, 3: 126, 6: 101}


def test_kept_counts_of_counts_are_differences():
    assert Schedule.of({0: 10, 1: 1}).kept(20) == {0: 10, 1: 9}


def test_later_shares_are_of_the_tokens_that_are_left():
    assert Schedule.of({0: 50, 1: 0.5}).kept(100) == {0: 50, 1: 25}


@pytest.mark.parametrize(
    ("tokens", "share", "count"), [(196, 0.2, 39), (157, 0.2, 31), (126, 0.2, 25), (4, 0.2, 0), (10, 0.99, 9)]
)
def test_a_share_drops_the_floor(tokens, share, count):
    assert dropped_count(tokens, share, "block 0") == count


@pytest.mark.parametrize("percent", range(1, 100))
def test_every_whole_percent_of_a_hundred_tokens_is_meant_in_decimal(percent):
    # in binary 0.29 * 100 is 28.999999999999996
    assert dropped_count(100, percent / 100, "block 0") == percent


def test_the_last_token_may_stay_alone():
    assert dropped_count(7, 6, "block 0") == 6


@pytest.mark.parametrize("schedule", [[0.2, 0, 0], (0.2, 0, 0), "[0.2,0,0]"])
def test_a_list_of_another_length_than_the_model_has_blocks_is_refused(schedule):
    with pytest.raises(ScheduleError, match=r"3 entries, the model has 4 blocks.*Give a dictionary"):
        Schedule.of(schedule).check(4, 64)


def test_a_block_that_the_model_does_not_have_is_refused():
    with pytest.raises(ScheduleError, match=r"at block 12.*blocks are 0 to 11.*choose another block"):
        Schedule.of({12: 0.2}).check(12, 196)


def test_the_last_block_is_not_out_of_range():
    Schedule.of({11: 0.2}).check(12, 196)


def test_a_count_that_takes_every_token_is_refused():
    with pytest.raises(ScheduleError, match=r"Dropping 64 at block 2 leaves fewer than one of the 64.*at most 63"):
        Schedule.of({2: 64}).check(4, 64)


def test_a_count_is_checked_against_what_earlier_blocks_left():
    with pytest.raises(ScheduleError, match=r"Dropping 40 at block 1 leaves fewer than one of the 32"):
        Schedule.of({0: 0.5, 1: 40}).check(4, 64)


def test_shares_that_come_to_no_token_at_all_are_refused():
    with pytest.raises(ScheduleError, match=r"\{0: 0\.01, 1: 0\.01\} drops none of the model's 64 tokens.*Raise it"):
        Schedule.of({0: 0.01, 1: 0.01}).check(4, 64)


def test_a_share_that_comes_to_no_token_beside_one_that_drops_some_is_fine():
    Schedule.of({0: 0.5, 1: 0.01}).check(4, 64)


def test_counts_are_not_checked_when_the_tokens_depend_on_the_input():
    Schedule.of({0: 1000}).check(4, None)


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_share_outside_zero_and_one_is_refused(share):
    with pytest.raises(ScheduleError, match=rf"Block 3 .*share in \(0, 1\), got {share}.*give an integer"):
        Schedule.of({3: share})


def test_a_negative_count_is_refused():
    with pytest.raises(ScheduleError, match=r"Block 3 .*got -2\. Give 1 or more"):
        Schedule.of({3: -2})


@pytest.mark.parametrize("block", [-1, 1.0, "0", None, True])
def test_a_block_that_is_no_number_from_zero_is_refused(block):
    with pytest.raises(ScheduleError, match=rf"blocks by number from zero, got {block!r}.*Give a dictionary"):
        Schedule.of({block: 0.2})


@pytest.mark.parametrize("drop", [None, "0.2", True, [0.2], 1j])
def test_a_drop_that_is_no_number_is_refused(drop):
    with pytest.raises(ScheduleError, match=r"Block 0 should drop a share or a count, got .*Give a dictionary"):
        Schedule.of({0: drop})


@pytest.mark.parametrize("empty", [{}, [], {0: 0}, {0: 0.0}, [0, 0, 0], "0@1,2", "[0,0]"])
def test_a_schedule_that_drops_nothing_is_refused(empty):
    with pytest.raises(ScheduleError, match=r"drops nothing.*drop something"):
        Schedule.of(empty)


@pytest.mark.parametrize("text", ["", "abc", "0.2@", "@3", "0.2@0@3", "0.2@a", "0.2@0;", "20%@0", "0.2@1.5", "[0.2;0]"])
def test_a_string_that_cannot_be_read_is_quoted_with_the_forms(text):
    with pytest.raises(ScheduleError) as caught:
        Schedule.of(text)
    assert repr(text) in str(caught.value)
    assert "a string '0.2@0,3,6'" in str(caught.value)


def test_a_block_named_twice_is_refused():
    with pytest.raises(ScheduleError, match=r"'0\.2@0,3;16@3' names block 3 twice"):
        Schedule.of("0.2@0,3;16@3")


@pytest.mark.parametrize("schedule", [0.2, 5, None, {0, 3}])
def test_something_that_is_no_schedule_is_refused_with_the_forms(schedule):
    with pytest.raises(ScheduleError, match=rf"This is no schedule \({type(schedule).__name__}\): .*Give a dictionary"):
        Schedule.of(schedule)


# --- schedules that go on to the end ------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "start", "blocks"), [(3, 0, 12), (1, 0, 4), (2, 1, 7), (5, 2, 3)])
def test_a_drop_at_every_so_many_blocks_is_one_at_each_of_them(step, start, blocks):
    drops = Schedule.every(0.2, step, start).over(blocks).drops
    assert drops == {block: 0.2 for block in range(blocks) if block >= start and (block - start) % step == 0}


@pytest.mark.parametrize("text", ["0.2@0::3", "0.2@::3", "0.2@0,1;16@2::4", "7@1::1"])
def test_a_schedule_that_goes_on_is_read_and_written(text):
    schedule = Schedule.of(text)
    assert Schedule.of(str(schedule)) == schedule
    assert hash(Schedule.of(str(schedule))) == hash(schedule)


def test_single_drops_and_repeated_ones_stand_beside_each_other():
    assert Schedule.of("0.5@0;16@1::2").over(6).drops == {0: 0.5, 1: 16, 3: 16, 5: 16}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule.every(0.2, 0), "every block .* or every so many, got 0"),
        (lambda: Schedule.every(0.2, 1.5), "got 1.5"),
        (lambda: Schedule.every(1.2, 3), "share in"),
        (lambda: Schedule.every(0, 3), "drops nothing"),
        (lambda: Schedule.every(0.2, 3, -1), "by number from zero, got -1"),
        (lambda: Schedule.of("0.2@a::3"), "cannot be read"),
        (lambda: Schedule.of("0.2@0::3").kept(64), "depends on the number of blocks"),
        (lambda: Schedule.of("0.2@0;0.3@0::2").over(4), "names block 0 twice"),
        (lambda: Schedule({0: 0.2}, 4, Schedule.every(0.1, 2, 1).repeated), "nothing can be repeated beside it"),
        (lambda: Schedule({4: 0.2}, entries=4), "of 4 entries has no block 4"),
        (lambda: Schedule.every(0.2, 3, 12).over(12), "begins behind the model's 12 blocks"),
        (lambda: Schedule.every(0.2, 3, 12).check(12, 64), "begins behind the model's 12 blocks"),
    ],
)
def test_schedules_that_go_nowhere_are_refused(make, message):
    with pytest.raises(ScheduleError, match=message):
        make()


def test_a_model_is_pruned_to_its_end(vit, images):
    pruned = ShiftTracker(vit).prune(Schedule.every(0.25, 2))
    assert torch.equal(pruned(images), ShiftTracker(vit).prune("0.25@0,2")(images))


@pytest.mark.parametrize("drops", [None, "0.2@0", 0.2, [0.2], range(6), b"0.2@0"])
def test_the_class_takes_dictionaries_and_names_what_reads_the_rest(drops):
    with pytest.raises(ScheduleError, match=r"takes a dictionary.*Schedule\.of reads every form"):
        Schedule(drops)


@pytest.mark.parametrize("given", [b"0.2@0", bytearray(b"12"), memoryview(b"12"), range(6)])
def test_numbers_that_nobody_means_as_drops_are_refused(given):
    with pytest.raises(ScheduleError, match="This is no schedule"):
        Schedule.of(given)


@pytest.mark.parametrize("text", ["[0.2", "0.2]", "1_0@0", "\u0663@0", "0.2@\u0663"])
def test_texts_that_only_look_like_schedules_are_refused(text):
    with pytest.raises(ScheduleError, match="cannot be read"):
        Schedule.of(text)


@pytest.mark.parametrize(("drops", "entries"), [({0: 0.2}, -1), ({5: 0.2}, 2), ({0: 0.2}, [1]), ({0: 0.2}, True)])
def test_entries_count_the_blocks(drops, entries):
    with pytest.raises(ScheduleError, match="entries"):
        Schedule(drops, entries)


def test_schedules_are_keys_however_they_were_made():
    by_hand = Schedule({}, repeated=list(Schedule.every(0.2, 3).repeated))
    assert {by_hand: 1}[Schedule.every(0.2, 3)] == 1
    with pytest.raises(ScheduleError, match=r"Schedule\.every"):
        Schedule({}, repeated=3)


@pytest.mark.parametrize("number", [None, 0, -1, 2.5, "12", True])
def test_models_have_whole_numbers_of_blocks_and_tokens(number):
    schedule = Schedule.of("0.2@0")
    for call in (schedule.kept, schedule.over, lambda blocks: schedule.check(blocks, 64)):
        with pytest.raises(ScheduleError, match="one or more"):
            call(number)


def test_where_one_token_is_left_nothing_can_be_dropped():
    with pytest.raises(ScheduleError, match="Drop nothing there"):
        Schedule.of("1@0").kept(1)


@pytest.mark.parametrize(
    ("text", "drops"),
    [
        ("13@0:3", {0: 13, 1: 13, 2: 13}),
        ("r13@0:3", {0: 13, 1: 13, 2: 13}),
        ("r13@:2", {0: 13, 1: 13}),
        ("0.2@1:6:2", {1: 0.2, 3: 0.2, 5: 0.2}),
        ("r4@2;0.5@3:4", {2: 4, 3: 0.5}),
    ],
)
def test_ranges_of_blocks_are_those_of_python(text, drops):
    assert Schedule.of(text).drops == drops


def test_a_number_at_every_block_is_written_as_of_merging():
    assert Schedule.of("r13") == Schedule.of("13@::1") == Schedule.of("r13@0:") == Schedule.every(13, 1)
    assert Schedule.of("r13").over(4).drops == dict.fromkeys(range(4), 13)


@pytest.mark.parametrize(
    "text", ["r", "r0.5", "r-3", "r13@", "13@0:1:2:3", "13@-1:3", "r13@3:1", "13@0:3,2", "13@0:3:0"]
)
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ScheduleError):
        Schedule.of(text)
