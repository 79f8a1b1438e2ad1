"""Which pictures a report shows: files, folders of them, or canvases that ship with the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from repshift.analysis.samples.canvases import CanvasPictures, evaluation_canvases
from repshift.analysis.samples.images import load_images, normalised, pixels
from repshift.analysis.samples.listing import list_files
from repshift.analysis.samples.preprocessing import evaluation_config, image_mode, preprocessing
from repshift.errors import DataError

Item = TypeVar("Item")
# Pillow knows them by their beginning and reads them with another program's help, by chance of the system, or never
NO_PICTURES = frozenset({"MPEG", "PDF", "EPS", "WMF", "BUFR", "GRIB", "HDF5", "FITS"})


@dataclass(frozen=True)
class Pictures:
    """The pictures of a report.

    Attributes:
        names: What the page calls them.
        inputs: ``(images, channels, rows, columns)`` float32, as the model takes them.
        seen: ``(images, rows, columns, 3)`` float32 in 0..1, the same as a person sees them.
    """

    names: Sequence[str]
    inputs: Tensor
    seen: Tensor


def load_pictures(model: nn.Module, paths: Sequence[Path], most: int) -> Pictures:
    """Read image files as ``repshift eval`` does, at the size that the model is tested at.

    Args:
        model: Its data configuration says how, see
            :func:`repshift.analysis.samples.preprocessing.evaluation_config`.
        paths: Files, which are all shown, and folders.
        most: How many images of a folder are shown; of more, evenly spread ones.

    Raises:
        DataError: If a file is no image or a folder holds none; the message names it.
    """
    files = [file for path in paths for file in (find_images(path, most) if path.is_dir() else [path])]
    inputs = load_images(model, files, evaluation_config(model))
    return Pictures([file.name for file in files], inputs, pixels(model, inputs))


def shipped_pictures(model: nn.Module, count: int) -> Pictures:
    """Take the first canvases of the evaluation set, which the models of the zoo were made for."""
    canvases, config = evaluation_canvases(), evaluation_config(model)
    inputs = normalised(model, canvases.images[:count])
    if inputs.shape[-2:] != tuple(config["input_size"][1:]):
        shown = CanvasPictures(TensorDataset(canvases.images[:count], canvases.labels[:count]), image_mode(config))
        inputs = torch.stack([preprocessing(config)(shown[index][0]) for index in range(len(shown))])
    names = [f"canvas {index}, digit {int(label)}" for index, label in enumerate(canvases.labels[:count])]
    return Pictures(names, inputs, pixels(model, inputs))


def find_images(folder: Path, most: int) -> list[Path]:
    """List image files below a folder, in natural order; of more than ``most``, evenly spread ones.

    Raises:
        DataError: If there is none.
    """
    endings = picture_endings()
    files = [Path(file.path) for file in list_files(folder, sorted(endings)).files]
    if not files:
        raise DataError(f"There is no image file in {folder}. Give a folder that holds JPEG or PNG files.")
    return spread_evenly(files, most)


def picture_endings() -> set[str]:
    """List the endings of files, in lower case with the dot, that Pillow reads as pictures."""
    known = Image.registered_extensions()
    return {ending for ending, kind in known.items() if kind in {*Image.OPEN, "MPO"} and kind not in NO_PICTURES}


def spread_evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Take at most so many items, at equal distances, the first one among them."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]
