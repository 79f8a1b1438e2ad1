"""Reading images and writing results so that nothing is ever half-written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from repshift.errors import DataError
from repshift.files import all_or_none, check_place, reason, write_whole

__all__ = ["all_or_none", "output_file", "output_folder", "read_image", "write_text", "write_whole"]


def read_image(path: Path) -> Image.Image:
    """Read an image file as 8-bit RGB, as a person sees it.

    The camera's orientation is applied, transparent parts become white, 16 bits are scaled to 8.

    Raises:
        DataError: If the file is missing, is no image, is damaged, or has values without a known range.
    """
    if not path.is_file():
        raise DataError(f"Image {path} {'is a folder' if path.is_dir() else 'does not exist'}. Give an image file.")
    try:
        with Image.open(path) as image:
            return _as_seen(image, path)
    except DataError:
        raise
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not an image that Pillow can read ({error}). Give a JPEG or PNG file.") from error


def _as_seen(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(
            f"{path} holds {'whole numbers' if image.mode == 'I' else 'floats'} of 32 bits, whose range is not known. "
            "Save it with 8 or 16 bits a channel."
        )
    upright = ImageOps.exif_transpose(image)
    if "A" in upright.getbands() or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    converted: Image.Image = upright.convert("RGB")
    return converted


def output_folder(path: Path) -> Path:
    """Make a folder for results and check that it can be written to.

    Raises:
        DataError: If it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".repshift-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"Cannot write to {path} ({reason(error)}). Give a folder that can be written to.") from error
    return path


def output_file(path: Path) -> None:
    """Check that a file can be written, before anything is computed for it; its folder is made if needed.

    Raises:
        DataError: If it cannot, or what the command prints goes there.
    """
    try:
        place = check_place(path)
        printed = place.exists() and any(_leads_to(stream, place) for stream in (1, 2))
    except OSError as error:
        raise DataError(
            f"Cannot write to {path} ({reason(error)}). Give the name of a file in a folder that can be written to."
        ) from error
    if printed:
        raise DataError(f"Cannot write to {path}: what this command prints goes there. Give another name.")


def _leads_to(stream: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream), place.stat())
    except OSError:  # a stream may be closed
        return False


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece, as UTF-8; what has no form there, of names in other encodings, is escaped.

    Raises:
        DataError: If it cannot be written.
    """
    data = text.encode("utf-8", "backslashreplace")
    write_whole(path, lambda unfinished: unfinished.write_bytes(data))
