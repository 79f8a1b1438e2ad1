"""One reader of pictures for every command: 8-bit colours as a person sees them, whatever the file holds.

- 16 bits a channel (and 12 in a TIFF) are scaled to 8; Pillow's own conversion would cut them off at white.
- Transparent parts become white; a palette's colours and CMYK become RGB.
- The camera's orientation (EXIF) is applied. timm and torchvision leave it out, so on photos that carry one, results
  differ from theirs. A deep TIFF that has to be turned is refused, because Pillow loses that without doing it.
- Of an animated file, the first picture counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from repshift.errors import DataError, first_line

BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION = 258, 262, 274  # tags of TIFF
WHITE_IS_ZERO = 0  # of the second


def read_image(path: Path) -> Image.Image:
    """Read an image file as 8-bit RGB, as a person sees it.

    Raises:
        DataError: If the file is missing, is no image, is damaged, or has values without a known range.
    """
    try:
        if path.is_file():
            with Image.open(path) as image:
                return as_seen(image)
        known = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
    except DataError as error:
        raise DataError(f"{path} {error}") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} is not an image that Pillow can read ({first_line(error)}). Give a JPEG or PNG file."
        ) from error
    raise DataError(f"Image {path} {known}. Give an image file.")


def read_picture(file: IO[bytes], mode: str) -> Image.Image:
    """Read an image from an open file, as :func:`read_image` does, and close it.

    Args:
        file: Open for reading.
        mode: ``RGB``, or ``L`` for a model of one channel.
    """
    with file, Image.open(file) as image:
        return as_seen(image, mode)


def as_seen(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """Turn an opened image into 8-bit colours, or with ``L`` into 8-bit grey.

    Raises:
        DataError: If its values have no known range.
    """
    seen = _eight_bits(image) if image.mode.startswith("I") or image.mode == "F" else ImageOps.exif_transpose(image)
    if "A" in seen.getbands() or "a" in seen.getbands() or "transparency" in seen.info:
        seen = seen.convert("RGBA")
        seen = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return seen.convert("RGB").convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    highest = 2**16 - 1
    tags = dict(getattr(image, "tag_v2", {})) if image.format == "TIFF" else {}
    if tags:
        highest = 2 ** max(tags.get(BITS_PER_SAMPLE, (16,))) - 1
    # Pillow holds deep greys of PNG and PGM as 32 bits, too; those of other files may have any range
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise DataError(
            f"holds {'floats' if image.mode == 'F' else 'whole numbers'} of 32 bits, whose range is not known. Save it "
            "with 8 or 16 bits a channel."
        )
    if tags.get(ORIENTATION, 1) != 1:  # which Pillow forgets without turning the image
        raise DataError("is a deep TIFF that has to be turned, which Pillow does not do. Save it upright.")
    stored = np.asarray(ImageOps.exif_transpose(image)).astype(np.float64)
    values = stored * (255 / highest)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = 255 - values
    grey = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    clear = image.info.get("transparency")  # a PNG may say that one grey stands for nothing
    if not isinstance(clear, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(stored == clear, 0, 255).astype(np.uint8))))
