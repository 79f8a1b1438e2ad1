"""The blocks of transformers' image towers, by the names of what they hold, and the kernels of their attention."""

from __future__ import annotations

from typing import Any

from torch import nn

from repshift.errors import UnsupportedModelError
from repshift.images import PatchGrid
from repshift.modules import children
from repshift.sites import Operation, Site

IN_FRONT = ("cls_token", "class_embedding", "distillation_token")
ATTENTION = "the queries and keys of transformers' attention are not split into heads where they could be watched"
NORMS = (("norm1", "norm2"), ("layernorm_before", "layernorm_after"), ("layer_norm1", "layer_norm2"))
# where the branches leave: behind LayerScale, or else what computes them; older ViTs add the residual in `output`
ATTN = ("layer_scale1", "attention", "self_attn")
MLP = ("layer_scale2", "mlp", "output.dense")


def site_of(name: str, block: nn.Module) -> Site:
    """Describe one block by the names of what it holds.

    Args:
        name: Its name in the tower.
        block: The block.

    Raises:
        UnsupportedModelError: If it holds something else than expected.
    """
    inside = {*children(block), *(f"{key}.dense" for key, child in children(block).items() if hasattr(child, "dense"))}
    norms = next((pair for pair in NORMS if inside.issuperset(pair)), None)
    attn, mlp = (next((leaf for leaf in leaves if leaf in inside), None) for leaves in (ATTN, MLP))
    if norms is None or attn is None or mlp is None:
        raise UnsupportedModelError(
            f"{name} is of the class {type(block).__name__}, which is built otherwise than the versions of "
            f"transformers that are known here. Track it by module names: ShiftTracker(model, sites=[{name!r}])."
        )
    operations = {
        "attn": Operation(f"{name}.{norms[0]}", (f"{name}.{attn}",), scaled_by=_parameter(name, block, "lambda_1")),
        "mlp": Operation(f"{name}.{norms[1]}", (f"{name}.{mlp}",), scaled_by=_parameter(name, block, "lambda_2")),
        "block": Operation(name, (name,), on_stream=True),
    }
    return Site(name, operations, absent={"heads": ATTENTION})


def _parameter(name: str, block: nn.Module, scale: str) -> str | None:
    return f"{name}.{scale}" if isinstance(getattr(block, scale, None), nn.Parameter) else None


def why_no_bias(config: Any) -> str | None:
    """Say why the attention that a configuration chooses takes no mask of single tokens; ``None`` if it takes one."""
    kernel = getattr(config, "_attn_implementation", None)
    if kernel in (None, "eager", "sdpa"):
        return None
    return (
        f"Attention is computed by {kernel!r}, which cannot be told how many places a merged token stands for, nor "
        "take a mask of which tokens are gone. Choose another: model.set_attn_implementation('sdpa') or 'eager'."
    )


def prefix_of(embedding: Any) -> int:
    """Count the class, distillation and register tokens that an embedding puts in front."""
    registers = getattr(embedding, "register_tokens", None)
    single = sum(getattr(embedding, name, None) is not None for name in IN_FRONT)
    return single + (0 if registers is None else registers.shape[1])


def grid_of(embedding: nn.Module) -> PatchGrid:
    """Say how many rows and columns of patches an embedding makes."""
    patches: Any = next(module for module in embedding.modules() if isinstance(module, nn.Conv2d))
    return PatchGrid(tuple(patches.kernel_size), tuple(patches.stride))
