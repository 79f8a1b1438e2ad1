"""Reading images and writing results so that nothing is ever half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from repshift.errors import DataError


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
        raise DataError(f"Cannot write to {path} ({error.strerror}). Give a folder that can be written to.") from error
    return path


def output_file(path: Path) -> None:
    """Check that a file can be written, before anything is computed for it; its folder is made if needed.

    Raises:
        DataError: If it cannot.
    """
    output_folder(path.parent)
    if path.is_dir():
        raise DataError(f"Cannot write to {path}: it is a folder. Give the name of a file.")
    try:
        existed = path.exists()
        path.touch()
        if not existed:
            path.unlink()
    except OSError as error:
        raise DataError(f"Cannot write to {path} ({error.strerror}). Give another name.") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and move it there when it is complete; its folder is made if needed.

    Args:
        path: Where the file belongs.
        write: Writes it to the path it is given, which has the same ending.
    """
    output_file(path)
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece, as UTF-8."""

    def write(unfinished: Path) -> None:
        unfinished.write_text(text, encoding="utf-8")

    write_whole(path, write)
