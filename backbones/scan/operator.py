"""The selective scan as one operation of torch: what compilers, exporters, autograd and ``vmap`` are told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from repshift.backbones.scan.implementations import run_backward, run_scan
from repshift.backbones.scan.reference import Operands
from repshift.backbones.scan.transforms import PARAMETERS, doubled, folded, over_dimension
from repshift.errors import UnsupportedModelError


def scan(operands: Operands, implementation: str) -> Tensor:
    """Run a scan by an implementation as one operation; it has gradients, also under ``torch.func``."""
    scanned: Tensor
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        # a decomposition in torch's table would do, too, but inductor refuses operators that have one where CI is set
        scanned = doubled(operands)
    elif not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None:
        # torch.func takes derivatives of functions only, not of operators
        scanned = _Scan.apply(*operands, implementation)
    else:
        scanned = _scan(*operands, implementation)
    return scanned


@torch.library.custom_op("repshift::selective_scan", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    implementation: str,
) -> Tensor:
    """Scan as one operation, so that compilers take hundreds of steps as one node and do not look into kernels."""
    return _laid_out(run_scan(Operands(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse), implementation))


@_scan.register_fake
def _(u: Tensor, *operands: Any) -> Tensor:
    return _empty_like(u)


@torch.library.custom_op("repshift::selective_scan_backward", mutates_args=())
def _scan_backward(
    gradient: Tensor,
    wanted: list[int],
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    implementation: str,
) -> list[Tensor]:
    """Return the gradients of the operands with the wanted indices."""
    operands = Operands(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    found = run_backward(operands, gradient, implementation)
    return [_laid_out(found[index].to(operands[index].dtype)) for index in wanted]  # type: ignore[union-attr]


@_scan_backward.register_fake
def _(gradient: Tensor, wanted: list[int], *operands: Any) -> list[Tensor]:
    return [_empty_like(operands[index]) for index in wanted]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.softplus, ctx.reverse, ctx.implementation = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, gradient: Tensor, run: Callable[..., Any] = _scan_backward) -> tuple[Tensor | None, ...]:
    needed: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    wanted = [index for index, wants in enumerate(ctx.needs_input_grad) if wants]
    found = run(gradient, wanted, *ctx.saved_tensors, ctx.softplus, ctx.reverse, ctx.implementation)
    for index, value in zip(wanted, found, strict=True):
        needed[index] = value
    return tuple(needed)


_scan.register_autograd(_gradients, setup_context=_remember)


class _ScanGradients(torch.autograd.Function):
    """The gradients for the transformations of ``torch.func``, which differentiate what they run."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*given: Any) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(_scan_backward(*given))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise UnsupportedModelError(
            "The gradients of the selective scan have no gradients themselves. Build the model with scan='reference', "
            "which has."
        )


class _Scan(torch.autograd.Function):
    """The scan for the transformations of ``torch.func``, which do not see the operator's own gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*given: Any) -> Tensor:
        with torch.no_grad():
            scanned: Tensor = _scan(*given)
        return scanned

    setup_context = staticmethod(_remember)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, gradient, _ScanGradients.apply)


def _many(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> tuple[Tensor, int]:
    """Scan over a further dimension: as a larger batch, or one by one if parameters have it, too."""
    tensors, dims, settings = given[:8], in_dims[:8], given[8:]
    if any(dims[index] is not None for index in PARAMETERS):
        return over_dimension(lambda *one: _scan(*one, *settings), info.batch_size, dims, tensors), 0
    scanned = _scan(*_as_one_batch(tensors, dims, info.batch_size), *settings)
    return scanned.unflatten(0, (info.batch_size, -1)), 0


def _many_gradients(info: Any, in_dims: tuple[Any, ...], gradient: Tensor, wanted: list[int], *given: Any) -> Any:
    """Return the gradients over a further dimension; those of parameters are sums, each entry's its own."""
    tensors, settings = (gradient, *given[:8]), given[8:]
    dims = (in_dims[0], *in_dims[2:10])
    if any(index in PARAMETERS for index in wanted) or any(dims[1 + index] is not None for index in PARAMETERS):
        found = over_dimension(
            lambda of, *one: _scan_backward(of, wanted, *one, *settings), info.batch_size, dims, tensors
        )
    else:
        of = folded(gradient, dims[0], info.batch_size)
        parts = _scan_backward(of, wanted, *_as_one_batch(tensors[1:], dims[1:], info.batch_size), *settings)
        found = [part.unflatten(0, (info.batch_size, -1)) for part in parts]
    return found, [0] * len(wanted)


def _as_one_batch(tensors: Sequence[Any], dims: Sequence[int | None], size: int) -> list[Tensor | None]:
    return [
        value if index in PARAMETERS else folded(value, dim, size)
        for index, (value, dim) in enumerate(zip(tensors, dims, strict=True))
    ]


_scan.register_vmap(_many)
_scan_backward.register_vmap(_many_gradients)


@register_flop_formula(torch.ops.repshift.selective_scan)
def _flops(u_shape: torch.Size, delta_shape: torch.Size, A_shape: torch.Size, *others: Any, **kwargs: Any) -> int:
    """Count a multiply-accumulate for each of the four products a state and step: step*A, step*u*B, decay*h, C*h."""
    batch, channels, length = u_shape
    return 2 * 4 * batch * channels * length * A_shape[1]


def _laid_out(tensor: Tensor) -> Tensor:
    """Bring a result into the layout that compilers are told of: sequences with channels last, as models have them."""
    return tensor.mT.contiguous().mT if tensor.ndim == 3 else tensor.contiguous()


def _empty_like(tensor: Tensor) -> Tensor:
    turned = tensor.mT if tensor.ndim == 3 else tensor
    empty = torch.empty_like(turned, memory_format=torch.contiguous_format)
    return empty.mT if tensor.ndim == 3 else empty
