"""Filling in removed pixels from those around them, so that their place does not give away what was there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

SIDE, CORNER = 1 / 6, 1 / 12  # weights of the eight neighbours
NOISE = 0.01  # standard deviation, in the units of the normalised images
TOLERANCE = 1e-3  # of the residual; a tenth of a percent is far below the noise
STEPS = 2_000


def impute(images: Tensor, missing: Tensor, noise: float = NOISE) -> Tensor:
    """Replace missing pixels by the weighted mean of their neighbours, missing ones included, plus noise.

    All missing pixels of an image are solved for together, by conjugate gradients. At the border the weights of the
    neighbours that exist are scaled up to 1. An image without any known pixel becomes 0, the mean of normalised images.

    Args:
        images: ``(images, channels, rows, columns)`` float32.
        missing: ``(images, rows, columns)`` bool; what is there does not matter.
        noise: Standard deviation of what is added to the missing pixels.

    Returns:
        The images' shape; known pixels are as they were.

    Source: Rong et al. 2022, arXiv 2202.00449, noisy linear imputation: 1/6 for direct, 1/12 for diagonal neighbours.
    How much noise is our choice.
    """
    free = missing.unsqueeze(1).to(images.dtype)
    # of a grey picture one channel is enough
    different = images[:, :1] if bool((images == images[:, :1]).all()) else images
    weights = _around(torch.ones_like(images[:1, :1]))
    solved = _solve(free, weights, _around(different * (1 - free)) * free)
    return images * (1 - free) + free * (solved + noise * torch.randn_like(images))


def _around(values: Tensor) -> Tensor:
    """Add up the neighbours by their weights."""
    kernel = torch.tensor([[CORNER, SIDE, CORNER], [SIDE, 0.0, SIDE], [CORNER, SIDE, CORNER]]).to(values)
    flat = values.flatten(0, 1).unsqueeze(1)
    return conv2d(pad(flat, (1, 1, 1, 1)), kernel[None, None]).reshape_as(values)


def _solve(free: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """Solve ``weights * x - neighbours of x = target`` on the free pixels, for each channel of each image at once.

    The matrix is symmetric and positive definite wherever a known pixel is near, so conjugate gradients converge.
    """
    values, residual = torch.zeros_like(target), target
    direction = residual
    squared = _product(residual, residual)
    enough = TOLERANCE**2 * squared
    for _ in range(STEPS):
        if bool((squared <= enough).all()):
            break
        image = (weights * direction - _around(direction)) * free
        curvature = _product(direction, image)
        # what is solved already stays as it is
        length = torch.where(squared > enough, squared / curvature.clamp_min(1e-30), 0.0)
        values = values + length * direction
        residual = residual - length * image
        before, squared = squared, _product(residual, residual)
        direction = residual + squared / before.clamp_min(1e-30) * direction
    return values


def _product(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((2, 3), keepdim=True)
