"""How far two representations of a token lie apart: the ``D`` of ``s = D(F(x), x)``.

Each distance takes the tokens before and after, ``(batch, tokens, channels)`` of one shape and of any floating-point
dtypes, and returns ``(batch, tokens)`` in float32: norms in bfloat16 tie, and ties reorder the top-k.

Source: arXiv 2508.00367, eq. 4 and the study of distances.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repshift.errors import RepresentationError
from repshift.registry import Registry


def l2(before: Tensor, after: Tensor) -> Tensor:
    """Measure how far each token moved.

    Args:
        before: Tokens entering the operation, ``(batch, tokens, channels)``.
        after: Tokens leaving it, same shape.

    Returns:
        Euclidean distances ``(batch, tokens)``, float32, in the activations' units, never negative.

    Raises:
        RepresentationError: If the shapes differ or a tensor is not floating-point.

    Example:
        >>> import torch
        >>> l2(torch.zeros(1, 2, 2), torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]))
        tensor([[5., 1.]])

    Source: arXiv 2508.00367, eq. 4, D = L2.
    """
    _require_comparable(before, after)
    return length(after.float() - before.float(), overwrite=True)


def l1(before: Tensor, after: Tensor) -> Tensor:
    """Sum how much each token's channels changed; arguments, shape and errors as :func:`l2`.

    Example:
        >>> import torch
        >>> l1(torch.zeros(1, 2, 2), torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]))
        tensor([[7., 1.]])

    Source: arXiv 2508.00367, eq. 4, D = L1.
    """
    _require_comparable(before, after)
    return (after.float() - before.float()).abs().sum(-1)


def cosine(before: Tensor, after: Tensor) -> Tensor:
    """Measure how far each token turned: ``1 - cos``, between 0 and 2; shapes and errors as :func:`l2`.

    A zero vector has no direction; its distance to anything is 1.

    Example:
        >>> import torch
        >>> cosine(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]))
        tensor([[0., 1.]])

    Source: arXiv 2508.00367, eq. 4, D = cosine distance.
    """
    _require_comparable(before, after)
    # half the squared distance of the directions is 1 - cos without its cancellation, which at small angles would
    # leave nothing but rounding to rank by
    directions = [tokens / length(tokens).clamp_min(1e-12).unsqueeze(-1) for tokens in (before.float(), after.float())]
    distance = (directions[1] - directions[0]).square().sum(-1) / 2
    undirected = (directions[0] == 0).all(-1) | (directions[1] == 0).all(-1)
    return distance.masked_fill(undirected, 1.0)


def length(vectors: Tensor, *, overwrite: bool = False) -> Tensor:
    """Return the Euclidean norm over the last dimension.

    Args:
        vectors: ``(..., channels)`` floating-point.
        overwrite: Lets a tensor that nobody needs be reused.

    Returns:
        ``(...)`` of the vectors' dtype and units.
    """
    if vectors.stride(-1) == 1 or vectors.requires_grad:
        norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
        return norm
    # channels of a feature map lie far apart in memory, and there vector_norm is up to ten times as slow on a CPU; its
    # gradient at zero, which this form has not, is kept above
    squares = vectors.mul_(vectors) if overwrite else vectors.square()
    return squares.sum(-1).sqrt_()


DISTANCES = Registry("distance", {"l2": l2, "l1": l1, "cosine": cosine})


def _require_comparable(before: Tensor, after: Tensor) -> None:
    for tokens in (before, after):
        if not isinstance(tokens, Tensor):
            raise RepresentationError(
                f"A shift compares tokens in tensors, got {type(tokens).__name__!r}. Give (batch, tokens, channels)."
            )
    if before.shape != after.shape:
        raise RepresentationError(
            f"A shift compares tokens of one shape, got {tuple(before.shape)} before and {tuple(after.shape)} after. "
            "Choose a module that keeps the shape of its input."
        )
    for tensor in (before, after):
        if not tensor.is_floating_point():
            raise RepresentationError(
                f"A shift needs floating-point tokens, got {tensor.dtype}. Convert the input with .float()."
            )
