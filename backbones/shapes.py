"""What convolutions and pools inside a module do to a map: its size, its channels, and how odd sides are rounded."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import nn


def stride_of(module: nn.Module) -> int:
    """Return by how much a unit shrinks the map: the largest stride of its convolutions and pools."""
    return max(chain.from_iterable(_pair(getattr(part, "stride", 1)) for part in module.modules()))


def keeps_shape(module: nn.Module) -> bool:
    """Say whether what enters the first convolution has the size and channels of what leaves the last one."""
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    if not convolutions:
        return False
    return stride_of(module) == 1 and convolutions[0].in_channels == convolutions[-1].out_channels


def narrows(module: nn.Module) -> bool:
    """Say whether the first convolution takes more channels than the last one gives."""
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    return bool(convolutions) and convolutions[0].in_channels > convolutions[-1].out_channels


def rounds_up(module: nn.Module) -> bool:
    """Say whether a unit that takes strides makes two lines of three, as padded convolutions do, or one."""
    return not any(rounds_down(part) for part in module.modules())


def rounds_down(part: nn.Module) -> bool:
    """Say whether a layer makes one line of three: it takes strides, and padding does not fill up the last one."""
    # timm's own layers of that kind pad when they run
    if type(part) not in (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d) or isinstance(part.padding, str):
        return False
    stride, kernel, padding = (max(_pair(each)) for each in (part.stride, part.kernel_size, part.padding))
    if stride == 1:
        return False
    odd = 2 * stride + 1
    steps = odd + 2 * padding - kernel
    return 1 + (-(-steps // stride) if getattr(part, "ceil_mode", False) else steps // stride) < odd / stride


def _pair(value: Any) -> tuple[int, ...]:
    """Read a convolution's or pool's setting, given as one number or as two."""
    return tuple(size for size in (value if isinstance(value, tuple) else (value,)) if isinstance(size, int)) or (1,)
