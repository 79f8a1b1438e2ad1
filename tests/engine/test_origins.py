"""Where kept tokens stood: positions pushed through the same cuts and strides one by one, as plain lists."""

import random

import pytest
import torch

from repshift import RepresentationError, Selection
from repshift.origins import Origin
from repshift.records import Maps, Measurement

IMAGES = 3


class Pushed:
    """A map of places for each image, and the dense model's map beside it, sent through cuts and strides."""

    def __init__(self, rows, columns, rounds_up=True):
        self.side, self.rounds_up = (rows, columns), rounds_up
        places = [[(row, column) for column in range(columns)] for row in range(rows)]
        self.images = [places] * IMAGES

    def cut_lines(self, rows, columns, generator):
        """Keep some rows and columns of each image; return the kept positions as a pruner gives them."""
        kept = []
        for index, places in enumerate(self.images):
            width = len(places[0])
            left_rows = sorted(generator.sample(range(len(places)), rows))
            left_columns = sorted(generator.sample(range(width), columns))
            kept.append([row * width + column for row in left_rows for column in left_columns])
            self.images[index] = [[places[row][column] for column in left_columns] for row in left_rows]
        return Selection(torch.tensor(kept))

    def cut_positions(self, rows, columns, generator):
        """Keep other columns in every row, then other rows in every column."""
        kept = []
        for index, places in enumerate(self.images):
            width = len(places[0])
            flat = [[(row, column) for column in sorted(generator.sample(range(width), columns))]
                    for row in range(len(places))]  # fmt: skip
            left = [sorted(generator.sample(range(len(places)), rows)) for _ in range(columns)]
            new = [[flat[left[column][row]][column] for column in range(columns)] for row in range(rows)]
            kept.append([row * width + column for line in new for row, column in line])
            self.images[index] = [[places[row][column] for row, column in line] for line in new]
        return Selection(torch.tensor(kept))

    def stride(self):
        """Make one position of every two by two: the first of them, which stands at half of its place."""
        self.side = tuple(-(-side // 2) if self.rounds_up else side // 2 for side in self.side)
        rows, columns = self.current
        rows, columns = (rows, columns) if self.rounds_up else (rows // 2 * 2, columns // 2 * 2)
        self.images = [
            [[(row // 2, column // 2) for row, column in line[:columns:2]] for line in places[:rows:2]]
            for places in self.images
        ]

    @property
    def current(self):
        return len(self.images[0]), len(self.images[0][0])

    def assert_equals(self, origin):
        width = self.side[1]
        expected = [[row * width + column for line in places for row, column in line] for places in self.images]
        assert origin.positions.tolist() == expected
        assert (origin.grid, origin.current) == (self.side, self.current)
        assert origin.tokens == self.side[0] * self.side[1]


def start(rows, columns, rounds_up=True):
    return Origin(rows * columns, (rows, columns), None, (rows, columns), rounds_up), Pushed(rows, columns, rounds_up)


SIDES = [((16, 16), (12, 12)), ((17, 24), (13, 20)), ((9, 5), (8, 4)), ((23, 31), (9, 17)), ((61, 57), (48, 48))]
CUTS = [Pushed.cut_lines, Pushed.cut_positions]
every_cut = pytest.mark.parametrize("cut", CUTS, ids=["lines", "positions"])
every_rounding = pytest.mark.parametrize("rounds_up", [True, False], ids=["up", "down"])


@every_cut
@pytest.mark.parametrize(("dense", "left"), SIDES)
def test_positions_behind_a_cut_are_those_that_were_kept(dense, left, cut):
    origin, pushed = start(*dense)
    kept = cut(pushed, *left, random.Random(0))
    pushed.assert_equals(origin.cut(kept, left))


@every_rounding
@every_cut
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize(("dense", "left"), SIDES)
def test_positions_behind_a_cut_and_strides_are_the_first_that_each_was_made_of(dense, left, strides, cut, rounds_up):
    origin, pushed = start(*dense, rounds_up)
    origin = origin.cut(cut(pushed, *left, random.Random(1)), left)
    for _ in range(strides):
        if min(pushed.current) > 1:
            pushed.stride()
    pushed.assert_equals(origin.at(pushed.current))


@every_rounding
@pytest.mark.parametrize("dense", range(6, 30))
def test_a_stride_is_found_for_maps_of_every_size(dense, rounds_up):
    for left in range(4, dense):
        for strides in (1, 2):
            origin, pushed = start(dense, 40, rounds_up)
            origin = origin.cut(pushed.cut_lines(left, 24, random.Random(2)), (left, 24))
            for _ in range(strides):
                pushed.stride()
            pushed.assert_equals(origin.at(pushed.current))


@every_rounding
@every_cut
def test_positions_are_followed_through_cuts_and_strides_in_turn(cut, rounds_up):
    generator = random.Random(3)
    origin, pushed = start(57, 45, rounds_up)
    for left in ((49, 40), (20, 17), (7, 6)):
        origin = origin.at(pushed.current).cut(cut(pushed, *left, generator), left)
        pushed.assert_equals(origin)
        pushed.stride()
    pushed.assert_equals(origin.at(pushed.current))


def test_a_second_cut_counts_from_the_dense_map_too():
    origin = Origin(16, (4, 4), None, (4, 4)).cut(Selection(torch.tensor([[0, 1, 3, 8, 9, 11]])), (2, 3))
    assert origin.cut(Selection(torch.tensor([[1, 2, 4, 5]])), (2, 2)).positions.tolist() == [[1, 3, 9, 11]]


def test_positions_of_a_sequence_compose():
    origin = Origin(10).cut(Selection(torch.tensor([[1, 4, 6, 9]])), None).cut(Selection(torch.tensor([[0, 3]])), None)
    assert origin.positions.tolist() == [[1, 9]]
    assert origin.tokens == 10


def test_a_sequence_stays_where_it_is():
    origin = Origin(10).cut(Selection(torch.tensor([[1, 4]])), None)
    assert origin.at(None) is origin


def test_a_map_of_the_size_that_was_left_is_taken_as_it_is():
    origin = Origin(16, (4, 4), None, (4, 4)).cut(Selection(torch.tensor([[0, 1, 4, 5]])), (2, 2))
    assert origin.at((2, 2)) is origin


def test_all_positions_are_there_as_long_as_nothing_was_cut():
    origin = Origin(64, (8, 8), None, (8, 8)).at((4, 4))
    assert (origin.tokens, origin.grid, origin.positions, origin.current) == (16, (4, 4), None, (4, 4))


@every_rounding
def test_a_cut_behind_strides_rounds_like_those_before(rounds_up):
    origin, pushed = start(30, 30, rounds_up)
    pushed.stride()
    origin = origin.at((15, 15)).cut(pushed.cut_lines(14, 14, random.Random(4)), (14, 14))
    pushed.stride()
    pushed.assert_equals(origin.at((7, 7)))


@pytest.mark.parametrize("grid", [(16, 16), (5, 12), (3, 4, 4)])
def test_a_map_that_no_stride_explains_has_no_known_origin(grid):
    origin = Origin(256, (16, 16), None, (16, 16)).cut(Selection(torch.arange(144).expand(1, -1)), (12, 12))
    assert vars(origin.at(grid)) == vars(Origin())


# --- laid out as maps -------------------------------------------------------------------------------------------------


def test_a_map_shows_values_where_their_positions_stood_and_nan_elsewhere():
    origin = Origin(9, (3, 3), torch.tensor([[0, 2, 6, 8]]), (2, 2))
    maps = Maps({"stage": Measurement(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), origin, origin.grid)})
    nan = float("nan")
    expected = torch.tensor([[[1.0, nan, 2.0], [nan, nan, nan], [3.0, nan, 4.0]]])
    torch.testing.assert_close(maps["stage"], expected, equal_nan=True)


def test_shifts_of_unknown_origin_are_not_laid_out():
    maps = Maps({"stage": Measurement(torch.zeros(1, 4), Origin(), None)})
    with pytest.raises(RepresentationError, match=r"4 tokens of 'stage' have no known rows and columns"):
        maps["stage"]
