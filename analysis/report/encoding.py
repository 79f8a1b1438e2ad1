"""Images, maps and predictions in few bytes, as the page reads them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LEVELS = 254  # a map's values lie between its lowest, 0, and its highest, 254
DROPPED = 255
LARGEST = 448  # pixels of an image's longer side
SHARP = 96  # pixels; images up to there are kept without loss
SHOWN_CLASSES = 5


def encode_map(values: Tensor) -> dict[str, Any]:
    """Quantise a map to 8 bits between its own lowest and highest value.

    Args:
        values: ``(rows, columns)`` float32, NaN where a token was dropped.

    Returns:
        ``low`` and ``high`` to six digits, and ``data``: a byte a token, row by row, in base64.
    """
    present = values[~values.isnan()]
    low, high = float(present.min()), float(present.max())
    levels = torch.zeros_like(values) if high == low else (values - low) / (high - low) * LEVELS
    quantised = torch.where(values.isnan(), torch.tensor(float(DROPPED)), levels.round()).to(torch.uint8)
    return {"low": rounded(low), "high": rounded(high), "data": _base64(quantised.numpy().tobytes())}


def encode_mask(mask: Tensor) -> str:
    """Pack a mask, ``(rows, columns)`` bool, to a bit a token, row by row, the highest bit first, in base64."""
    return _base64(np.packbits(mask.flatten().numpy()).tobytes())


def encode_groups(groups: Tensor) -> str:
    """Write which token each place is part of.

    Args:
        groups: ``(rows, columns)`` int64, -1 where a token was dropped.

    Returns:
        Row by row, in base64: a byte a place, or two, the lower first, if there are more tokens than that; all bits are
        set where a token was dropped.
    """
    kind = np.dtype("u1" if int(groups.max()) < np.iinfo("u1").max else "<u2")
    return _base64(groups.numpy().astype(kind).tobytes())


def encode_image(seen: Tensor) -> dict[str, Any]:
    """Write an image as a data address: small ones as PNG, others as JPEG, at most :data:`LARGEST` pixels a side.

    Args:
        seen: ``(rows, columns, 3)`` float32 in 0..1.

    Returns:
        ``source``, ``width`` and ``height``.
    """
    image = Image.fromarray((seen * 255).round().to(torch.uint8).cpu().contiguous().numpy())
    image.thumbnail((LARGEST, LARGEST))
    content = io.BytesIO()
    small = max(image.size) <= SHARP
    if small:
        image.save(content, "PNG", optimize=True)
    else:
        image.save(content, "JPEG", quality=85, optimize=True)
    source = f"data:image/{'png' if small else 'jpeg'};base64,{_base64(content.getvalue())}"
    return {"source": source, "width": image.width, "height": image.height}


def encode_predictions(dense: Tensor, pruned: Tensor | None, names: Sequence[str]) -> list[dict[str, Any]]:
    """List the classes that are among the likeliest five of either model, with both models' probabilities.

    Args:
        dense: Probabilities ``(classes,)`` float32.
        pruned: The same of the pruned model, if there is one.
        names: Of the classes.

    Returns:
        ``name``, ``dense`` and, with a pruned model, ``pruned``: those of the dense model first, from its likeliest.
    """
    several = [dense] if pruned is None else [dense, pruned]
    count = min(SHOWN_CLASSES, len(dense))
    likeliest = [index for model in several for index in model.topk(count).indices.tolist()]
    ordered = sorted(set(likeliest), key=lambda index: (-float(dense[index]), index))
    return [
        {"name": names[index], "dense": rounded(float(dense[index]))}
        | ({} if pruned is None else {"pruned": rounded(float(pruned[index]))})
        for index in ordered
    ]


def encode_colours() -> str:
    """Write the colours of maps, 256 times red, green and blue, in base64: the perceptually uniform viridis."""
    from matplotlib import colormaps

    table = colormaps["viridis"](np.arange(256), bytes=True)[:, :3]
    return _base64(np.ascontiguousarray(table, dtype=np.uint8).tobytes())


def rounded(value: float) -> float:
    """Keep six digits, which is more than a page shows."""
    return float(f"{value:.6g}")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
