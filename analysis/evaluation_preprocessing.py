"""How an evaluation preprocesses images: timm's transform for the model, with timm's own options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
from timm.data import create_transform
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from repshift.analysis.preprocessing import data_config
from repshift.errors import DataError, UnknownNameError, first_line

CROP_MODES = ("center", "squash", "border")


def evaluation_config(model: nn.Module, *, use_train_size: bool = False, **overrides: Any) -> dict[str, Any]:
    """Settle how images are preprocessed, as timm's ``validate.py`` does.

    Args:
        model: Its ``pretrained_cfg`` gives what is not overridden.
        use_train_size: Take the size of training also where timm evaluates at another one.
        **overrides: ``img_size``, ``crop_pct``, ``crop_mode``, ``interpolation``, ``mean``, ``std``; ``None`` for the
            model's own.

    Raises:
        DataError: If an override is out of range.
        UnknownNameError: If there is no such interpolation or crop mode.
    """
    channels = data_config(model)["input_size"][0]
    given = {name: value for name, value in overrides.items() if value is not None}
    for name in ("mean", "std"):
        if name in given and len(given[name]) not in (1, channels):
            raise DataError(f"--{name} got {len(given[name])} numbers, the model has {channels} channels. Give 1 each.")
    if given.get("img_size", 1) < 1 or given.get("crop_pct", 1) <= 0:
        raise DataError("--img-size must be at least 1 and --crop-pct above 0.")
    if given.get("crop_mode", "center") not in CROP_MODES:
        raise UnknownNameError(f"Unknown --crop-mode {given['crop_mode']!r}. Give {', '.join(CROP_MODES)}.")
    for name in ("mean", "std"):
        if name in given:
            given[name] = tuple(given[name]) * (3 if len(given[name]) == 1 else 1)
    if (size := given.pop("img_size", None)) is not None:
        given["input_size"] = (channels, size, size)
    fixed = (getattr(model, "pretrained_cfg", None) or {}).get("fixed_input_size", False)
    config = resolve_model_data_config(model, args=given, use_test_size=not (use_train_size or fixed))
    config = {**config, "mean": config["mean"][:channels], "std": config["std"][:channels]}
    preprocessing(config)
    return config


def preprocessing(config: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Make timm's evaluation transform.

    Raises:
        UnknownNameError: If there is no such interpolation.
    """
    try:
        transform: Callable[[Image.Image], Tensor] = create_transform(**config, is_training=False)
    except (LookupError, AssertionError, ValueError) as error:
        raise UnknownNameError(
            f"timm cannot preprocess images with {dict(config)} ({type(error).__name__}: {first_line(error)}). "
            "Check --interpolation: nearest, bilinear, bicubic, lanczos."
        ) from error
    return transform


def image_mode(config: Mapping[str, Any]) -> str:
    """Say as what Pillow should read images: ``RGB``, or ``L`` for a model of one channel."""
    return "L" if config["input_size"][0] == 1 else "RGB"
