"""From images to what a model expects, by timm's own preprocessing for that model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from timm.data import create_transform
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from repshift.analysis.samples.pictures import read_image


def data_config(model: nn.Module) -> dict[str, Any]:
    """Return timm's data configuration of a model: ``input_size``, ``mean``, ``std``, ``interpolation``, ..."""
    config: dict[str, Any] = resolve_model_data_config(model)
    channels = config["input_size"][0]
    # of a model built with in_chans=1, timm gives the size but three means
    return {**config, "mean": config["mean"][:channels], "std": config["std"][:channels]}


def input_size(model: nn.Module) -> tuple[int, ...]:
    """Return channels, rows and columns of a model's images; of videos the frames before them."""
    size = tuple(data_config(model)["input_size"])
    frames = (getattr(model, "pretrained_cfg", None) or {}).get("frames")
    return size if frames is None else (frames, *size)


def load_images(model: nn.Module, paths: Iterable[str | Path], config: Mapping[str, Any] | None = None) -> Tensor:
    """Read image files as timm preprocesses them for the model, at the size that it was trained for.

    Args:
        model: Its data configuration says how.
        paths: The files.
        config: Another data configuration, for images of another size, such as
            :func:`repshift.analysis.samples.preprocessing.evaluation_config` gives.

    Returns:
        ``(images, channels, rows, columns)`` float32.

    Raises:
        DataError: If a file is no image; the message names it.
    """
    config = data_config(model) if config is None else config
    transform = cast("Callable[[Any], Tensor]", create_transform(**config, is_training=False))
    mode = "L" if config["input_size"][0] == 1 else "RGB"
    return torch.stack([transform(read_image(Path(path)).convert(mode)) for path in paths])


def normalised(model: nn.Module, images: Tensor) -> Tensor:
    """Turn 8-bit images that already have the model's size into its input.

    Args:
        model: Its data configuration gives mean and standard deviation.
        images: ``(batch, channels, rows, columns)`` uint8.

    Returns:
        The same shape, float32.
    """
    mean, std = _statistics(model, images)
    return (images / 255 - mean) / std


def pixels(model: nn.Module, inputs: Tensor) -> Tensor:
    """Turn a model's inputs back into what a person sees.

    Args:
        model: Its data configuration gives mean and standard deviation.
        inputs: ``(batch, channels, rows, columns)`` as :func:`load_images` returns.

    Returns:
        ``(batch, rows, columns, 3)`` float32 in 0..1.
    """
    mean, std = _statistics(model, inputs)
    return (inputs * std + mean).clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


def _statistics(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    config = data_config(model)
    mean, std = (torch.tensor(config[key], device=images.device).view(-1, 1, 1) for key in ("mean", "std"))
    return mean, std
