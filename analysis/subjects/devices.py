"""Which device a command runs on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repshift.errors import DataError


def choose_device(wanted: str | None = None, kinds: Sequence[str] = ("cpu", "cuda")) -> torch.device:
    """Settle the device: the one asked for, else a GPU if there is one.

    Args:
        wanted: A name of torch's.
        kinds: Which kinds of devices will do.

    Raises:
        DataError: If there is no such device, or it will not do.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted is None else wanted)
    except RuntimeError as error:
        raise DataError(f"There is no device {wanted!r}. Give cpu or cuda (--device cpu).") from error
    if device.type not in kinds:
        raise DataError(f"Nothing runs on the device {wanted!r} here. Give cpu or cuda (--device cpu).")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"There is no CUDA device for --device {wanted}. Give --device cpu.")
    if (device.index or 0) >= (torch.cuda.device_count() if device.type == "cuda" else 1):
        raise DataError(f"There is no device {wanted!r}: {device.type} has fewer. Give {device.type} (--device).")
    return device
