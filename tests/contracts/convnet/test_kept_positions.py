"""Where the positions of a pruned convolutional network were in the dense one."""

import pytest
import torch


def halved(lines, floors):
    """Take the first of every two lines; it stands where half of its index says."""
    return [[line // 2 for line in each[::2][: len(each) // 2 if floors else None]] for each in lines]


@pytest.fixture
def pushed(net, model, written_out):
    """Send the rows and columns of the dense maps through the same cuts and strides, as plain lists of each image.

    Returns those at the end of every stage, and the sides of the dense maps there.
    """

    def push(images):
        sides = {name: shifts.shape[1:] for name, shifts in written_out(net, model, images).last_blocks.items()}
        sides = {name: sides.get(name) for name in net.stages if name in sides}
        cut = written_out(net, model, images, net.drops).lines
        places, previous = {}, None
        for name, side in sides.items():
            if previous is None:
                rows, columns = ([list(range(length))] * len(images) for length in side)
            elif side != previous:
                rows, columns = halved(rows, net.floors), halved(columns, net.floors)
            if name in cut:
                rows = [[row[index] for index in left] for row, (left, _) in zip(rows, cut[name], strict=True)]
                columns = [
                    [column[index] for index in left] for column, (_, left) in zip(columns, cut[name], strict=True)
                ]
            places[name], previous = list(zip(rows, columns, strict=True)), side
        return places, sides

    return push


def test_kept_positions_count_the_positions_of_the_dense_maps(net, pruned, sized_images, record, pushed):
    tracker = record(pruned, sized_images)
    places, sides = pushed(sized_images)
    assert list(tracker.kept) == [net.stages[index] for index, _ in net.drops]
    for name, kept in tracker.kept.items():
        width = sides[name][1]
        expected = [[row * width + column for row in rows for column in columns] for rows, columns in places[name]]
        assert kept.tolist() == expected


def test_maps_of_a_pruned_network_have_the_dense_sides_and_show_what_was_left(
    net, pruned, sized_images, record, pushed
):
    tracker = record(pruned, sized_images)
    places, sides = pushed(sized_images)
    last, _ = net.drops[-1]
    for name in (name for name in net.stages[last + 1 :] if name not in net.bare):  # behind all cuts
        shown = ~tracker.maps[name].isnan()
        expected = torch.zeros(3, *sides[name], dtype=torch.bool)
        for image, (rows, columns) in zip(expected, places[name], strict=True):
            for row in rows:
                image[row, columns] = True
        assert torch.equal(shown, expected)


def test_the_first_cut_stage_of_a_pruned_network_shows_the_shifts_of_the_dense_one(net, model, pruned, images, record):
    first = net.stages[net.drops[0][0]]
    assert torch.equal(record(pruned, images).shifts[first], record(model, images).shifts[first])


def test_shifts_behind_a_cut_are_those_of_the_written_out_network(net, model, pruned, images, written_out, record):
    expected = written_out(net, model, images, net.drops)
    for options, shifts in (({}, expected.stages), ({"sites": list(expected.blocks)}, expected.blocks)):
        tracker = record(pruned, images, **options)
        assert list(tracker.shifts) == list(shifts)
        for name, shift in tracker.shifts.items():
            torch.testing.assert_close(shift, shifts[name].flatten(1), atol=1e-4, rtol=1e-4)
