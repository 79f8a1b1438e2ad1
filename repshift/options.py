"""What a model is asked to be built with: options that would build nothing, or what fails at its first image."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from torch import nn

from repshift.errors import UnknownNameError

# Numbers of something, or several of them as some families take them; and how few there can be
COUNTS = {"num_classes": 0} | dict.fromkeys(
    ("img_size", "in_chans", "patch_size", "embed_dim", "depth", "num_heads", "stride", "d_state", "d_conv", "expand"),
    1,
)
PAIRS = ("img_size",)
SHARES = tuple(f"{what}drop{kind}_rate" for what in ("", "pos_", "patch_", "proj_", "attn_") for kind in ("", "_path"))


def check_flags(**flags: bool | None) -> None:
    """Check settings that are ``True`` or ``False``; anything else would count as one of them.

    Raises:
        UnknownNameError: If one is neither, nor left out.
    """
    for name, value in flags.items():
        if value is not None and not isinstance(value, bool):
            raise UnknownNameError(f"{name} is True or False, got {value!r}.")


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Check the options of a model by their names, which timm's families share; what is not known here passes.

    Raises:
        UnknownNameError: If one is out of its range, or another argument says it.
    """
    if "checkpoint_path" in options:
        raise UnknownNameError("checkpoint_path is timm's own. Give checkpoint=FILE, which never unpickles code.")
    for option, value in options.items():
        if option in COUNTS and not _counts(value, COUNTS[option], pair=option in PAIRS):
            form = "a whole number, or rows and columns," if option in PAIRS else "a whole number"
            raise UnknownNameError(
                f"{option} of {name} is {form} from {COUNTS[option]}, got {value!r}. Choose another."
            )
        if option in SHARES and not (_is_number(value, Real) and 0 <= value <= 1):
            raise UnknownNameError(f"{option} of {name} is a share from 0 to 1, got {value!r}. Choose another.")


def check_built(name: str, model: nn.Module, options: Mapping[str, Any]) -> None:
    """Check that a model has at least one token.

    Raises:
        UnknownNameError: If its images are smaller than a patch.
    """
    if getattr(getattr(model, "patch_embed", None), "num_patches", None) == 0:
        raise UnknownNameError(
            f"{name} with {dict(options)} takes images smaller than one patch. Give a larger img_size."
        )


def _counts(value: Any, least: int, *, pair: bool) -> bool:
    several = isinstance(value, (tuple, list))
    if several and pair and len(value) != 2:
        return False
    return all(_is_number(number, Integral) and number >= least for number in (value if several else (value,)))


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
