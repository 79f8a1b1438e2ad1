"""Cluttered MNIST: a small, real task on which every claim of the toolkit can be watched.

One handwritten digit stands at a random place of a 64x64 canvas, among 8x8 pieces of other digits and pixel noise
(Mnih et al. 2014, "Recurrent Models of Visual Attention", arXiv 1406.6247, section 4.1). Most of the canvas does not
matter for the label, and the digit's box says which part does. The digits are those of MNIST's test set (LeCun,
Cortes; CC BY-SA 3.0): the first 8,000 train the embedded models, the last 2,000 are shipped with the package and
evaluate them.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from repshift.errors import DataError
from repshift.network import why_unreachable

CANVASES = "cluttered-mnist"  # the word that stands for these data on the command line
CANVAS = 64  # pixels a side
PIECES = 8  # pieces of other digits on one canvas
PIECE = 8  # pixels a side of one piece
NOISE = 25.0  # standard deviation of the pixel noise, in grey levels of 255
TRAINING_DIGITS = 8_000  # of the 10,000 in MNIST's test set; the rest evaluates
EVALUATION_SEED = 2014
IMAGES_FILE = "t10k-images-idx3-ubyte.gz"
LABELS_FILE = "t10k-labels-idx1-ubyte.gz"


@dataclass(frozen=True)
class Digits:
    """Handwritten digits.

    Attributes:
        images: ``(digits, 28, 28)`` uint8, 0 is background.
        labels: ``(digits,)`` uint8 in 0..9.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels) or self.images.ndim != 3:
            raise DataError(
                f"Digits got images of shape {self.images.shape} and {len(self.labels)} labels; expected "
                "(digits, rows, columns) images and one label each. Check that both files belong together."
            )


@dataclass(frozen=True)
class Canvases:
    """A fixed set of canvases, in memory.

    Attributes:
        images: ``(canvases, 3, 64, 64)`` uint8, three equal channels.
        labels: ``(canvases,)`` int64.
        boxes: ``(canvases, 4)`` int64: top, left, bottom, right of the digit in pixels, ends exclusive.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor


class ClutteredDigits(Dataset[tuple[Tensor, int, Tensor]]):
    """Canvases made on demand; item ``i`` shows digit ``i`` and depends only on the digits, ``seed`` and ``i``.

    Args:
        digits: Where the digit and the pieces of other digits come from.
        seed: Another seed gives other places, pieces and noise for the same digits.

    Items are ``(image, label, box)``: ``(3, 64, 64)`` uint8, int, and ``(4,)`` int64 as in :class:`Canvases`.
    """

    def __init__(self, digits: Digits, seed: int) -> None:
        self.digits = digits
        self.seed = seed

    def __len__(self) -> int:
        return len(self.digits.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"canvas {index} of {len(self)}")
        canvas, box = draw_canvas(self.digits.images, index, self.seed)
        image = torch.from_numpy(canvas).expand(3, CANVAS, CANVAS)
        return image, int(self.digits.labels[index]), torch.tensor(box)


def draw_canvas(
    digits: NDArray[np.uint8], index: int, seed: int
) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """Draw one canvas.

    Args:
        digits: ``(digits, 28, 28)`` uint8.
        index: The digit to show.
        seed: Seed of this canvas, together with ``index``.

    Returns:
        The ``(64, 64)`` uint8 canvas and the digit's box ``(top, left, bottom, right)``: the smallest one that holds
        its ink.
    """
    # RandomState's streams are frozen by NumPy's compatibility policy: the same canvases on every version
    random = np.random.RandomState([seed, index])
    digit = digits[index]
    side = digit.shape[0]
    top, left = random.randint(0, CANVAS - side + 1, size=2)
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    canvas[top : top + side, left : left + side] = digit
    for _ in range(PIECES):
        other = (index + random.randint(1, len(digits))) % len(digits)  # never the digit itself
        from_top, from_left = random.randint(0, side - PIECE + 1, size=2)
        to_top, to_left = random.randint(0, CANVAS - PIECE + 1, size=2)
        piece = digits[other, from_top : from_top + PIECE, from_left : from_left + PIECE]
        region = canvas[to_top : to_top + PIECE, to_left : to_left + PIECE]
        np.maximum(region, piece, out=region)
    noisy = canvas + random.standard_normal(canvas.shape) * NOISE
    rows, columns = np.flatnonzero(digit.any(1)), np.flatnonzero(digit.any(0))
    box = (int(top + rows[0]), int(left + columns[0]), int(top + rows[-1] + 1), int(left + columns[-1] + 1))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), box


def evaluation_canvases() -> Canvases:
    """Draw the 2,000 canvases of the evaluation set; the same on every machine."""
    folder = resources.files("repshift.analysis.samples") / "cluttered_mnist"
    with resources.as_file(folder) as path:
        digits = read_digits(Path(path))
    return draw_canvases(ClutteredDigits(digits, EVALUATION_SEED))


def draw_canvases(dataset: ClutteredDigits) -> Canvases:
    """Draw every canvas of a dataset into memory."""
    images, labels, boxes = zip(*(dataset[index] for index in range(len(dataset))), strict=True)
    return Canvases(torch.stack(images), torch.tensor(labels), torch.stack(boxes))


def batches(canvases: Canvases, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield images, labels and boxes in order, ``size`` canvases at a time; the last batch may be smaller."""
    for start in range(0, len(canvases.labels), size):
        part = slice(start, start + size)
        yield canvases.images[part], canvases.labels[part], canvases.boxes[part]


def training_digits(folder: Path) -> Digits:
    """Read the 8,000 digits that train the embedded models from MNIST's test set.

    Args:
        folder: Holds ``t10k-images-idx3-ubyte.gz`` and ``t10k-labels-idx1-ubyte.gz``.

    Raises:
        DataError: If a file is missing, is no idx file, or the set does not have 10,000 digits.
    """
    digits = read_digits(folder)
    if len(digits.images) != 10_000:
        raise DataError(
            f"{folder} holds {len(digits.images)} digits; expected the 10,000 of MNIST's test set "
            "(the shipped models are trained on its first 8,000 and evaluated on the rest)."
        )
    return Digits(digits.images[:TRAINING_DIGITS], digits.labels[:TRAINING_DIGITS])


def download_digits() -> Path:
    """Download MNIST's test set by torchvision, unless that was done before, and return the folder of its two files.

    Raises:
        DataError: If it cannot be downloaded.
    """
    from torchvision.datasets import MNIST

    root = Path.home() / ".cache" / "repshift"
    raw = root / "MNIST" / "raw"
    reasons = [] if (raw / IMAGES_FILE).is_file() else [why_unreachable(address) for address in MNIST.mirrors]
    if reasons and all(reasons):
        raise DataError(
            f"MNIST could not be downloaded ({reasons[0]}). Give the folder that holds its two t10k files: --digits "
            "FOLDER."
        )
    try:
        MNIST(root, train=False, download=True)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"MNIST could not be downloaded ({error}). Give the folder that holds its two t10k files: --digits FOLDER."
        ) from error
    return raw


def read_digits(folder: Path) -> Digits:
    """Read a pair of gzipped idx files, MNIST's own format."""
    return Digits(_read_idx(folder / IMAGES_FILE, dimensions=3), _read_idx(folder / LABELS_FILE, dimensions=1))


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    if not path.is_file():
        raise DataError(
            f"{path} does not exist. Give the folder that holds {IMAGES_FILE} and {LABELS_FILE} "
            "(torchvision.datasets.MNIST downloads them)."
        )
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a complete gzip file ({error}). Download it again.") from error
    header = np.frombuffer(content[: len(content) // 4 * 4][: 4 + 4 * dimensions], dtype=">u4")
    # magic number of the format: 0x08 for unsigned bytes, then the number of dimensions
    if len(header) != 1 + dimensions or header[0] != 0x0800 + dimensions:
        raise DataError(f"{path} is not an idx file of {dimensions} dimension(s). Download it again.")
    shape = tuple(int(size) for size in header[1:])
    values = np.frombuffer(content[4 + 4 * dimensions :], dtype=np.uint8)
    if values.size != np.prod(shape):
        raise DataError(f"{path} holds {values.size} values, its header says {shape}. Download it again.")
    return values.reshape(shape)


class CanvasPictures(Dataset[tuple[Any, int]]):
    """Canvases as timm's loaders take them: pictures with a transform.

    Args:
        canvases: Items are ``(image, label, ...)``, the image ``(3, 64, 64)`` uint8.
        mode: ``RGB``, or ``L`` for a model of one channel.
    """

    def __init__(self, canvases: Dataset[Any], mode: str) -> None:
        self.canvases = canvases
        self.mode = mode
        self.transform: Callable[[Image.Image], Any] | None = None  # create_loader sets it

    def __len__(self) -> int:
        return len(self.canvases)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label, *_ = self.canvases[index]
        picture = Image.fromarray(image[0].numpy()).convert(self.mode)
        return picture if self.transform is None else self.transform(picture), int(label)
