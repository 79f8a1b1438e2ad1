import pytest

from repshift import DataError
from repshift.analysis.video import frame_indices
from repshift.analysis.video.sampling import limited_length


@pytest.mark.parametrize(
    ("length", "frames", "expected"),
    [
        (100, 4, [12, 37, 62, 87]),  # parts of 25 frames
        (12, 12, list(range(12))),
        (13, 4, [1, 4, 7, 10]),  # edges 0, 3.25, 6.5, 9.75, 13 are cut to 0, 3, 6, 9, 13
        (10, 12, [*range(10), 9, 9]),
        (1, 3, [0, 0, 0]),
        (1000, 1, [499]),
    ],
)
def test_the_middle_frame_of_each_part_is_taken(length, frames, expected):
    assert frame_indices(length, frames) == expected


@pytest.mark.parametrize("given", [(0, 4), (4, 0)])
def test_no_frames_are_refused(given):
    with pytest.raises(DataError, match="cannot be"):
        frame_indices(*given)


@pytest.mark.parametrize(
    ("length", "rate", "seconds", "expected"),
    [
        (1000, 29.97, 30, 899),  # int(30 * 29.97), not 900
        (899, 29.97, 30, 899),
        (1000, 29.97, None, 1000),
        (90, 30.0, 30, 90),
    ],
)
def test_only_the_beginning_of_a_long_video_counts(length, rate, seconds, expected):
    assert limited_length(length, rate, seconds) == expected
