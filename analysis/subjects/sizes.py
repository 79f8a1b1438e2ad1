"""Fitting a model to images of another size."""

from __future__ import annotations

from typing import Any

from torch import nn

from repshift import UnsupportedModelError
from repshift.analysis.subjects.models import load_dense
from repshift.errors import RepshiftError, first_line


def resized(name: str, model: nn.Module, size: tuple[int, int, int], **loading: Any) -> nn.Module:
    """Fit a model that takes one size only to another one, as timm fits its weights; others take any size as they are.

    Args:
        name: What it was loaded by.
        model: May be changed.
        size: Channels, rows and columns of the images.
        **loading: What it was loaded with, see :func:`repshift.load_model`.

    Raises:
        UnsupportedModelError: If it cannot have this size.
    """
    own = getattr(model, "pretrained_cfg", None) or {}
    if not own.get("fixed_input_size") or "img_size" in loading or tuple(own["input_size"]) == tuple(size):
        return model
    try:
        if hasattr(model, "set_input_size"):
            resizable: Any = model
            resizable.set_input_size(img_size=size[1:])
            return model
        return load_dense(name, **loading, img_size=size[1:])
    except RepshiftError:
        raise
    except Exception as error:  # each family of timm has its own reasons
        raise UnsupportedModelError(
            f"{name} cannot take images of {size[1]}x{size[2]} pixels ({type(error).__name__}: {first_line(error)}). "
            "Leave out --img-size, or give a size that its patches and windows divide."
        ) from error
