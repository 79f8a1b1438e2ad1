import hashlib
import re

import numpy as np
import pytest
import torch

from repshift.analysis.samples.moving_digits import (
    ANSWERS,
    DIGIT,
    DIRECTIONS,
    FRAMES,
    NUMBERS,
    SIDE,
    VOCABULARY,
    DigitPool,
    all_moves,
    caption,
    numbered_video,
    questions,
    shrink,
)


@pytest.fixture(scope="module")
def pool(shipped_digits):
    return DigitPool(shipped_digits)


def what_is_seen(frames, digits, labels):
    """Read a caption off drawn frames: which small digit it is, and which way its ink goes."""
    phrases = []
    for half in np.split(frames, 2):
        first, last = (np.argwhere(half[index] > 0).mean(0) for index in (0, -1))
        rows, columns = np.sign(np.round(last - first)).astype(int)
        (direction,) = [name for name, step in DIRECTIONS.items() if step == (rows, columns)]
        corner = np.argwhere(half[0] > 0).min(0) // 8 * 8
        shown = half[0, corner[0] :, corner[1] :][:DIGIT, :DIGIT]
        (number,) = {int(labels[index]) for index in np.flatnonzero((digits == shown).all((1, 2)))}
        phrases.append(f"a {NUMBERS[number]} moves {direction}")
    return " then ".join(phrases)


@pytest.mark.parametrize("index", [0, 1, 7, 399, 1441])
def test_the_caption_says_what_the_frames_show(pool, shipped_digits, index):
    video = numbered_video(pool, 3, index)
    frames = video.draw()
    assert frames.shape == (FRAMES, SIDE, SIDE)
    assert video.caption == what_is_seen(frames, shrink(shipped_digits.images), shipped_digits.labels)


def test_each_frame_holds_one_whole_digit_on_the_grid(pool):
    video = numbered_video(pool, 1, 5)
    for frame, (top, left) in zip(video.draw(), video.corners, strict=True):
        assert top % 8 == left % 8 == 0
        assert 0 <= min(top, left) <= max(top, left) <= SIDE - DIGIT
        outside = frame.copy()
        outside[top : top + DIGIT, left : left + DIGIT] = 0
        assert frame.any()
        assert not outside.any()


def test_a_digit_crosses_the_frame_in_three_places(pool):
    video = numbered_video(pool, 1, 5)
    for half in np.split(video.corners, 2):
        places = np.unique(half, axis=0)
        assert len(places) == 3
        assert sorted(np.ptp(places, axis=0)) == [0, SIDE - DIGIT]


def test_frames_can_be_drawn_alone(pool):
    video = numbered_video(pool, 1, 5)
    assert np.array_equal(video.draw([1, 13, 21]), video.draw()[[1, 13, 21]])


def test_a_video_follows_from_seed_and_number(pool):
    def seen(seed, index):
        video = numbered_video(pool, seed, index)
        return video.caption, video.draw().tobytes()

    assert seen(1, 5) == seen(1, 5)
    assert len({seen(seed, index) for seed in (1, 2) for index in (5, 6)}) == 4


def test_the_evaluation_videos_are_the_same_on_every_machine(pool):
    drawn = b"".join(numbered_video(pool, 2014, index).draw().tobytes() for index in range(20))
    assert hashlib.sha256(drawn).hexdigest() == "61aee1e9a11aff4ee6665390254e2b3f76df9da0b387f2b15c11024872e59b45"


def test_the_first_videos_all_have_different_captions(pool):
    order = {numbered_video(pool, 0, index).caption for index in range(0, 1440, 7)}
    assert len(order) == len(range(0, 1440, 7))
    assert len({caption(moves) for moves in all_moves()}) == 1440 == 10 * 9 * 4 * 4


def test_shrinking_averages_areas(shipped_digits):
    images = shipped_digits.images[:50]
    inside = torch.from_numpy(images[:, 2:-2, 2:-2].astype(np.float64)).unsqueeze(1)
    # 24 pixels become 48 equal ones, of which three by three are averaged
    expected = torch.nn.functional.avg_pool2d(torch.kron(inside, torch.ones(2, 2, dtype=torch.float64)), 3)[:, 0]
    assert np.array_equal(shrink(images), expected.round().byte().numpy())


@pytest.mark.parametrize("number", [0, 700, 1439])
def test_questions_are_answered_by_the_caption(number):
    moves = all_moves()[number]
    first, way, last, other = re.fullmatch(r"a (\w+) moves (\w+) then a (\w+) moves (\w+)", caption(moves)).groups()
    assert questions(moves) == [
        ("which digit comes first?", first),
        ("which digit comes last?", last),
        (f"where does the {first} move?", way),
        (f"where does the {last} move?", other),
    ]
    assert {first, way, last, other} <= set(ANSWERS)


def test_every_word_is_in_the_vocabulary_once():
    texts = [caption(moves) for moves in all_moves()] + [q.strip("?") for m in all_moves() for q, _ in questions(m)]
    words = {word for text in texts for word in text.split()}
    assert sorted(VOCABULARY) == sorted({*words, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"})
    assert VOCABULARY[0] == "[PAD]"
