import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from repshift.analysis.samples import canvases
from repshift.analysis.samples.canvases import (
    IMAGES_FILE,
    LABELS_FILE,
    ClutteredDigits,
    Digits,
    batches,
    draw_canvas,
    draw_canvases,
    evaluation_canvases,
    read_digits,
    training_digits,
)
from repshift.errors import DataError

# SHA-256 of the first five canvases of the evaluation set
FIRST_FIVE = "c2041e5a753a9123bb6fefa0ac410fb362b088cf48f027e725fed172457f6e52"


@pytest.fixture(scope="module")
def evaluation():
    return evaluation_canvases()


def write_idx(path, array, magic=None, shape=None):
    header = struct.pack(">I", 0x0800 + array.ndim if magic is None else magic)
    header += struct.pack(f">{array.ndim}I", *(shape or array.shape))
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def folder(tmp_path):
    """A good pair of idx files with 12 digits."""
    random = np.random.RandomState(0)
    write_idx(tmp_path / IMAGES_FILE, random.randint(0, 256, (12, 28, 28)).astype(np.uint8))
    write_idx(tmp_path / LABELS_FILE, random.randint(0, 10, 12).astype(np.uint8))
    return tmp_path


# --- canvases ---------------------------------------------------------------------------------------------------


def test_canvases_are_the_same_on_every_machine(evaluation):
    assert hashlib.sha256(evaluation.images[:5].numpy().tobytes()).hexdigest() == FIRST_FIVE


def test_a_canvas_depends_on_nothing_but_digits_seed_and_index(few_digits):
    expected = draw_canvas(few_digits.images, 7, seed=3)
    np.random.seed(1)
    torch.manual_seed(1)
    dataset = ClutteredDigits(few_digits, seed=3)
    for index in (9, 2, 7):
        image, _, box = dataset[index]
    assert np.array_equal(image[0].numpy(), expected[0])
    assert tuple(box.tolist()) == expected[1]


@pytest.mark.parametrize(("index", "seed"), [(7, 4), (8, 3)])
def test_another_seed_or_index_gives_another_canvas(few_digits, index, seed):
    same_digit = few_digits.images.copy()
    same_digit[8] = same_digit[7]
    one, _ = draw_canvas(same_digit, 7, seed=3)
    other, _ = draw_canvas(same_digit, index, seed=seed)
    assert not np.array_equal(one, other)


def test_the_box_is_the_tightest_around_the_ink_of_the_digit(few_digits, monkeypatch):
    for index in range(20):
        monkeypatch.undo()
        _, box = draw_canvas(few_digits.images, index, seed=5)
        monkeypatch.setattr(canvases, "NOISE", 0.0)
        monkeypatch.setattr(canvases, "PIECES", 0)
        alone, _ = draw_canvas(few_digits.images, index, seed=5)
        rows, columns = np.nonzero(alone)
        assert box == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
        assert np.array_equal(
            np.sort(alone[alone > 0]), np.sort(few_digits.images[index][few_digits.images[index] > 0])
        )


def test_the_digit_is_never_covered_by_pieces(few_digits, monkeypatch):
    monkeypatch.setattr(canvases, "NOISE", 0.0)
    for index in range(20):
        canvas, (top, left, bottom, right) = draw_canvas(few_digits.images, index, seed=5)
        digit = few_digits.images[index]
        ink_rows, ink_columns = np.flatnonzero(digit.any(1)), np.flatnonzero(digit.any(0))
        ink = digit[ink_rows[0] : ink_rows[-1] + 1, ink_columns[0] : ink_columns[-1] + 1]
        assert (canvas[top:bottom, left:right] >= ink).all()


def test_pieces_come_from_other_digits_only(monkeypatch):
    monkeypatch.setattr(canvases, "NOISE", 0.0)
    digits = np.zeros((2, 28, 28), np.uint8)
    digits[0] = 200  # the other one is blank, so any ink outside the box would be the digit's own
    for seed in range(30):
        canvas, (top, left, bottom, right) = draw_canvas(digits, 0, seed)
        canvas[top:bottom, left:right] = 0
        assert not canvas.any()


def test_pieces_of_other_digits_clutter_the_canvas(monkeypatch):
    monkeypatch.setattr(canvases, "NOISE", 0.0)
    digits = np.full((2, 28, 28), 200, np.uint8)
    for seed in range(10):
        canvas, (top, left, bottom, right) = draw_canvas(digits, 0, seed)
        canvas[top:bottom, left:right] = 0
        assert 0 < np.count_nonzero(canvas) <= 8 * 8 * 8


def test_the_noise_has_the_documented_strength():
    blank = np.zeros((2, 28, 28), np.uint8)
    blank[:, 14, 14] = 1
    canvas, _ = draw_canvas(blank, 0, seed=0)
    # half of a normal distribution is clipped at 0; the mean of the rest is sigma / sqrt(2 pi)
    assert canvas.mean() == pytest.approx(25 / np.sqrt(2 * np.pi), rel=0.1)


def test_an_item_has_three_equal_channels_and_the_label_of_its_digit(few_digits):
    dataset = ClutteredDigits(few_digits, seed=0)
    for index in (0, 39):
        image, label, box = dataset[index]
        assert image.shape == (3, 64, 64)
        assert image.dtype == torch.uint8
        assert (image == image[0]).all()
        assert label == few_digits.labels[index]
        assert box.dtype == torch.int64


@pytest.mark.parametrize("index", [-1, 40])
def test_an_index_outside_the_set_is_refused(few_digits, index):
    with pytest.raises(IndexError, match=str(index)):
        ClutteredDigits(few_digits, seed=0)[index]


def test_the_evaluation_set_has_2000_canvases_of_all_ten_digits(evaluation, shipped_digits):
    assert evaluation.images.shape == (2000, 3, 64, 64)
    assert evaluation.labels.tolist() == shipped_digits.labels.tolist()
    assert set(evaluation.labels.tolist()) == set(range(10))


def test_all_boxes_lie_on_the_canvas_and_are_no_larger_than_a_digit(evaluation):
    top, left, bottom, right = evaluation.boxes.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= 64).all()
    assert (right <= 64).all()
    assert ((bottom - top > 0) & (bottom - top <= 28)).all()
    assert ((right - left > 0) & (right - left <= 28)).all()


def test_the_digit_stands_anywhere_on_the_canvas(evaluation):
    for centre in (
        (evaluation.boxes[:, 0] + evaluation.boxes[:, 2]),
        (evaluation.boxes[:, 1] + evaluation.boxes[:, 3]),
    ):
        assert centre.float().div(2).mean().item() == pytest.approx(32, abs=1.5)
        assert centre.float().div(2).std().item() > 8  # uniform over 37 places: 10.7


def test_batches_hold_every_canvas_once_and_in_order(few_digits):
    canvases = draw_canvases(ClutteredDigits(few_digits, seed=0))
    parts = list(batches(canvases, 16))
    assert [len(labels) for _, labels, _ in parts] == [16, 16, 8]
    for whole, pieces in zip((canvases.images, canvases.labels, canvases.boxes), zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces), whole)


# --- idx files --------------------------------------------------------------------------------------------------


def test_idx_files_are_read_as_they_were_written(tmp_path):
    images = np.arange(5 * 28 * 28).reshape(5, 28, 28).astype(np.uint8)
    labels = np.array([3, 1, 4, 1, 5], np.uint8)
    write_idx(tmp_path / IMAGES_FILE, images)
    write_idx(tmp_path / LABELS_FILE, labels)
    digits = read_digits(tmp_path)
    assert np.array_equal(digits.images, images)
    assert np.array_equal(digits.labels, labels)


def test_a_missing_file_is_named_with_what_to_do(folder):
    (folder / LABELS_FILE).unlink()
    with pytest.raises(DataError, match=r"labels-idx1-ubyte\.gz does not exist\. Give the folder") as caught:
        read_digits(folder)
    assert str(folder) in str(caught.value)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-30])


def scramble(path):
    content = path.read_bytes()
    path.write_bytes(content[:10] + b"\xff" * 8 + content[18:])  # behind gzip's header


def replace_by_text(path):
    path.write_text("not compressed")


def empty(path):
    path.write_bytes(b"")


def wrong_magic(path):
    write_idx(path, np.zeros((12, 28, 28), np.uint8), magic=0x0D03)


def header_only_begun(path):
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x03\x00"))


def wrong_size(path):
    write_idx(path, np.zeros((12, 28, 28), np.uint8), shape=(13, 28, 28))


@pytest.mark.parametrize(
    "damage", [shorten, scramble, replace_by_text, empty, wrong_magic, header_only_begun, wrong_size]
)
def test_a_damaged_file_is_named_with_what_to_do(folder, damage):
    damage(folder / IMAGES_FILE)
    with pytest.raises(DataError, match="Download it again") as caught:
        read_digits(folder)
    assert str(folder / IMAGES_FILE) in str(caught.value)


def test_labels_and_images_of_different_counts_are_refused(folder):
    write_idx(folder / LABELS_FILE, np.zeros(11, np.uint8))
    with pytest.raises(DataError, match=r"11 labels.*Check that both files belong together"):
        read_digits(folder)


def test_training_needs_all_ten_thousand_digits(folder):
    with pytest.raises(DataError, match="holds 12 digits; expected the 10,000") as caught:
        training_digits(folder)
    assert str(folder) in str(caught.value)


def test_training_takes_the_first_8000_digits(tmp_path):
    images = np.zeros((10_000, 28, 28), np.uint8)
    images[7_999], images[8_000] = 1, 2
    write_idx(tmp_path / IMAGES_FILE, images)
    write_idx(tmp_path / LABELS_FILE, np.zeros(10_000, np.uint8))
    digits = training_digits(tmp_path)
    assert len(digits.images) == len(digits.labels) == 8_000
    assert digits.images.max() == 1


def test_digits_must_be_images():
    with pytest.raises(DataError, match="expected"):
        Digits(np.zeros((3, 784), np.uint8), np.zeros(3, np.uint8))
