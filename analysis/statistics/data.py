"""The images of a study, and where their objects are: boxes of the shipped canvases, or masks in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from repshift.analysis.datasets import CANVASES, evaluation_canvases
from repshift.analysis.evaluation.data import Samples
from repshift.analysis.evaluation.preprocessing import preprocessing
from repshift.analysis.files import read_image
from repshift.analysis.statistics.foreground import masks_of_boxes
from repshift.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif")

# Masks of samples by their numbers, ``(images, rows, columns)`` bool in the pixels of the model's input
Masks = Callable[[Sequence[int]], Tensor]


def masks_for(samples: Samples, folder: Path | None = None) -> Masks | None:
    """Say how the objects of samples are found.

    Args:
        samples: From :func:`repshift.analysis.evaluation.data.open_samples`.
        folder: A mask for each image, by the name and path of the image under its own folder, with any ending; what
            is not black is the object.

    Returns:
        ``None`` if nothing is known of the objects.

    Raises:
        DataError: If there is no such folder.
    """
    if folder is None:
        return CanvasMasks(samples) if samples.name == CANVASES else None
    if not folder.is_dir():
        raise DataError(f"There is no folder of masks {folder}. Give one with a mask for each image (--masks).")
    return FolderMasks(samples, folder)


class CanvasMasks:
    """The digits' boxes on the shipped canvases.

    Args:
        samples: Of the canvases.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples, self.boxes = samples, evaluation_canvases().boxes
        self.transform = _geometry(samples)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """Return the masks of some samples."""
        boxes = self.boxes[[self.samples.chosen[index] for index in indices]]
        masks = masks_of_boxes(boxes, (64, 64)).byte() * 255
        return torch.stack([self.transform(Image.fromarray(mask.numpy())) for mask in masks])


class FolderMasks:
    """A mask file for each image.

    Args:
        samples: In a folder.
        folder: The masks', laid out like that of the images.
    """

    def __init__(self, samples: Samples, folder: Path) -> None:
        self.samples, self.folder = samples, folder
        self.transform = _geometry(samples)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """Return the masks of some samples.

        Raises:
            DataError: If one is missing or cannot be read.
        """
        return torch.stack([self.transform(read_image(self._file(index)).convert("L")) for index in indices])

    def _file(self, index: int) -> Path:
        image = Path(self.samples.file_name(index))
        try:
            place = self.folder / image.relative_to(Path(self.samples.name).absolute())
        except ValueError as error:
            raise DataError(
                f"{image} is no file in {self.samples.name}, so it has no mask. Leave out --masks."
            ) from error
        found = next((place.with_suffix(ending) for ending in ENDINGS if place.with_suffix(ending).is_file()), None)
        if found is None:
            raise DataError(f"{image} has no mask {place.with_suffix('.png')}. Draw it, or leave out --masks.")
        return found


def _geometry(samples: Samples) -> Callable[[Image.Image], Tensor]:
    """Resize and crop masks as the images are, without blending."""
    config: dict[str, Any] = {**samples.config, "interpolation": "nearest", "mean": (0.0,), "std": (1.0,)}
    transform = preprocessing(config)
    return lambda mask: transform(mask)[0] > 0
