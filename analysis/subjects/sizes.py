"""Building a model for images of the size that is asked for."""

from __future__ import annotations

from typing import Any

from torch import nn

from repshift import DataError, UnsupportedModelError
from repshift.analysis.subjects.limits import check_side
from repshift.analysis.subjects.models import ModelOptions, load_dense, saved_model
from repshift.errors import RepshiftError, first_line
from repshift.loading import load_checkpoint, take_size


def build_model(name: str, given: ModelOptions) -> nn.Module:
    """Build the dense model of a command, at the size that was asked for, else at its own, with the attention chosen.

    Weights of another size are fitted as timm fits published ones; what the model knows of its preprocessing says the
    size, too.

    Args:
        name: A name or a folder.
        given: The command's options.

    Raises:
        RepshiftError: If there is no such model, its weights cannot be had, or it cannot have this size or attention.
    """
    weights: dict[str, Any] = {"checkpoint": given.checkpoint, "use_ema": given.use_ema}
    loading: dict[str, Any] = {"pretrained": given.pretrained, "attention": given.attention, **given.options}
    if not given.sized:
        return load_dense(name, **loading, **weights)
    # a file's weights may have been trained at the size that is asked for, so they come last
    later = given.checkpoint is not None and not given.pretrained and saved_model(name) is None
    if not later:
        loading |= weights
    model = load_dense(name, **loading)
    size = _asked_size(model, given)
    model = resized(name, model, size, **loading)
    if later:
        load_checkpoint(model, str(given.checkpoint), use_ema=given.use_ema, changed={*given.options, "img_size"})
    take_size(model, (size[1], size[2]))
    return model.eval()


def _asked_size(model: nn.Module, given: ModelOptions) -> tuple[int, int, int]:
    known = getattr(model, "pretrained_cfg", None) or {}
    channels = known.get("input_size", (3,))[0]
    side = given.img_size if given.img_size is not None else 0
    rows, columns = given.input_size[1:] if given.input_size is not None else (side, side)
    check_size((channels if given.input_size is None else given.input_size[0], rows, columns), channels)
    return (channels, rows, columns)


def check_size(size: tuple[int, ...], channels: int) -> None:
    """Check that images of a size are those of a model.

    Args:
        size: Channels, rows and columns.
        channels: The model's.

    Raises:
        DataError: If they are not.
    """
    if size[0] != channels:
        raise DataError(
            f"The size {size} does not fit the model's {channels} channel(s). Give --img-size, or --input-size "
            f"{channels} ROWS COLUMNS."
        )
    for side in size[1:]:
        check_side(side)


def size_option(model: nn.Module) -> dict[str, Any]:
    """Return what builds a model at the size that it has; nothing for one that takes any size as it is."""
    known = getattr(model, "pretrained_cfg", None) or {}
    return {"img_size": list(known["input_size"][1:])} if known.get("fixed_input_size") else {}


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
    if not own.get("fixed_input_size") or tuple(own["input_size"]) == tuple(size):
        return model
    try:
        if hasattr(model, "set_input_size"):
            resizable: Any = model
            resizable.set_input_size(img_size=size[1:])
            return model
        return load_dense(name, **{**loading, "img_size": size[1:]})
    except RepshiftError:
        raise
    except Exception as error:  # each family of timm has its own reasons
        raise UnsupportedModelError(
            f"{name} cannot take images of {size[1]}x{size[2]} pixels ({type(error).__name__}: {first_line(error)}). "
            "Leave out --img-size, or give a size that its patches and windows divide."
        ) from error
