"""The images of a study, and where their objects are: boxes of the shipped canvases, or masks in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from repshift.analysis.samples.canvases import CANVASES, evaluation_canvases
from repshift.analysis.samples.data import Samples
from repshift.analysis.samples.pictures import read_image
from repshift.analysis.samples.preprocessing import preprocessing
from repshift.analysis.statistics.foreground import masks_of_boxes
from repshift.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif")

Found = TypeVar("Found")

# Masks of samples by their numbers, ``(images, rows, columns)`` bool in the pixels of the model's input
Masks = Callable[[Sequence[int]], Tensor]


def masks_for(samples: Samples, folder: Path | None = None) -> Masks | None:
    """Say how the objects of samples are found.

    Args:
        samples: From :func:`repshift.analysis.samples.data.open_samples`.
        folder: A mask for each image, by the name and path of the image under its own folder, with any ending; what
            is not black is the object, see :func:`read_mask`.

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
            DataError: If one is missing, cannot be read, or has another size than its image.
        """
        return torch.stack([self.transform(self._mask(index)) for index in indices])

    def _mask(self, index: int) -> Image.Image:
        image = self._image(index)
        file = self._file(image)
        mask, size = read_mask(file), read_image(image).size
        if mask.shape != size[::-1]:
            raise DataError(
                f"The mask {file} has {mask.shape[1]} x {mask.shape[0]} pixels, its image {image} has {size[0]} x "
                f"{size[1]}. Give a mask of the image's size, or leave out --masks."
            )
        return Image.fromarray(mask.astype(np.uint8) * 255)

    def _image(self, index: int) -> Path:
        return Path(self.samples.file_name(index)).absolute()

    def _file(self, image: Path) -> Path:
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


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read where an object is from the values of a file as they are stored, so that small label numbers count, too.

    Returns:
        ``(rows, columns)``, ``True`` where any colour, grey level of any depth or number of a palette's colour is not
        zero, and which is not fully transparent.

    Raises:
        DataError: If the file is no image, or has a palette whose first colour is neither black nor transparent.
    """
    return _opened(path, lambda image: _object(image, path))


def _object(image: Image.Image, path: Path) -> NDArray[np.bool_]:
    visible = np.ones(image.size[::-1], dtype=bool)
    if "A" in image.getbands() or ("transparency" in image.info and image.mode in ("1", "L", "P", "RGB")):
        visible = np.asarray(image.convert("RGBA"))[..., 3] > 0
    if image.mode in ("P", "PA"):
        numbers = np.asarray(image.getchannel(0))
        black = ~np.asarray(image.convert("RGB")).any(-1)
        if any((image.getpalette() or [])[:3]) and (visible & (black | (numbers == 0))).any():
            raise DataError(
                f"The first colour of the palette of {path} is not black, so it does not say what the object is. Save "
                "the mask in grey levels, black where the object is not."
            )
        on_object: NDArray[np.bool_] = visible & (numbers != 0)
        return on_object
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "La", "RGBa"):
        image = image.convert("RGB")
    marked: NDArray[np.bool_] = np.asarray(image) != 0
    if marked.ndim == 3:
        colours = marked[..., : -1 if "A" in image.getbands() else None]
        marked = np.logical_or.reduce(colours, axis=-1)
    return visible & marked


def _opened(path: Path, read: Callable[[Image.Image], Found]) -> Found:
    try:
        with Image.open(path) as image:
            return read(image)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not an image that Pillow can read ({error}). Give a PNG file.") from error


def _geometry(samples: Samples) -> Callable[[Image.Image], Tensor]:
    """Resize and crop masks as the images are, without blending."""
    config: dict[str, Any] = {**samples.config, "interpolation": "nearest", "mean": (0.0,), "std": (1.0,)}
    transform = preprocessing(config)
    return lambda mask: transform(mask)[0] > 0
