"""How an evaluation preprocesses images: timm's transform for the model, with timm's own options."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
from timm.data import create_transform
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from repshift.analysis.samples.images import data_config
from repshift.analysis.subjects.sizes import check_size
from repshift.errors import DataError, UnknownNameError, first_line

CROP_MODES = ("center", "squash", "border")
OVERRIDES = ("img_size", "input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std", "use_train_size")


def evaluation_config(model: nn.Module, *, use_train_size: bool = False, **overrides: Any) -> dict[str, Any]:
    """Settle how images are preprocessed, as timm's ``validate.py`` does.

    Args:
        model: Its ``pretrained_cfg`` gives what is not overridden.
        use_train_size: Take the size of training also where timm evaluates at another one.
        **overrides: ``img_size``, ``input_size``, ``crop_pct``, ``crop_mode``, ``interpolation``, ``mean`` and
            ``std``; ``None`` for the model's own.

    Raises:
        DataError: If an override is out of range.
        UnknownNameError: If there is no such interpolation or crop mode.
    """
    channels = data_config(model)["input_size"][0]
    given = {name: value for name, value in overrides.items() if value is not None}
    size = given.pop("img_size", None)
    if size is not None and "input_size" not in given:
        given["input_size"] = (channels, size, size)
    _check(given, channels)
    statistics = {name: given.pop(name) for name in ("mean", "std") if name in given}
    fixed = (getattr(model, "pretrained_cfg", None) or {}).get("fixed_input_size", False)
    config = resolve_model_data_config(model, args=given, use_test_size=not (use_train_size or fixed))
    config |= {name: tuple(numbers) * (channels if len(numbers) == 1 else 1) for name, numbers in statistics.items()}
    # of a model built with in_chans=1, timm gives the size but three means
    config = {**config, "mean": config["mean"][:channels], "std": config["std"][:channels]}
    preprocessing(config)
    return config


def _check(given: Mapping[str, Any], channels: int) -> None:
    for name in ("mean", "std"):
        numbers = given.get(name, (0.0,))
        if len(numbers) not in (1, channels) and len(set(numbers)) > 1:
            raise DataError(
                f"--{name} got {len(numbers)} numbers, the model has {channels} channel(s). Give one for each."
            )
    check_size(tuple(given.get("input_size", (channels, 1, 1))), channels)
    if not 0.01 <= given.get("crop_pct", 1) <= 100:  # not a number is neither
        raise DataError(f"--crop-pct {given['crop_pct']} leaves nothing of an image. Give a share, such as 0.9.")
    if not all(map(math.isfinite, (*given.get("mean", ()), *given.get("std", ())))) or min(given.get("std", (1,))) <= 0:
        raise DataError("--mean and --std are finite numbers, and a standard deviation is above 0. Give others.")
    if given.get("crop_mode", "center") not in CROP_MODES:
        raise UnknownNameError(f"Unknown --crop-mode {given['crop_mode']!r}. Give {', '.join(CROP_MODES)}.")


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
