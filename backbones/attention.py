"""Which modules compute attention by torch's function, and how they are told to: timm's and our own, transformers'."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from repshift.errors import UnsupportedModelError, first_line
from repshift.modules import has_class
from repshift.participants import own_class

# of timm's modules, what holds a bias of relative positions
BIASES = ("relative_position_bias_table", "rel_pos", "rel_pos_h", "attention_biases", "attention_bias_cache")
INTERFACE = "ALL_ATTENTION_FUNCTIONS"


class Fused:
    """Modules with an attribute ``fused_attn``, as timm's and ours have: on, they ask torch for attention."""

    def attends(self, module: nn.Module) -> bool:
        """Look for the attribute."""
        return hasattr(module, "fused_attn")

    def holders(self, model: nn.Module) -> Iterator[nn.Module]:
        """List the modules themselves."""
        yield from (module for module in model.modules() if self.attends(module))

    def told(self, holder: Any) -> Any:
        """Return the attribute."""
        return holder.fused_attn

    def tell(self, holder: Any, told: Any) -> None:
        """Set the attribute."""
        holder.fused_attn = told

    def words(self, plain: bool) -> bool:
        """Say whether it is on."""
        return not plain

    def biased(self, module: nn.Module) -> bool:
        """Look for tables of relative positions."""
        return any(getattr(module, name, None) is not None for name in BIASES)

    def channels(self, module: nn.Module) -> int | None:
        """Return what the module calls the channels of a head."""
        channels = getattr(module, "head_dim", None)
        return channels if isinstance(channels, int) else None


class Transformers:
    """Attention of transformers that is computed by what the configuration names."""

    def attends(self, module: nn.Module) -> bool:
        """Recognise a forward that looks the function up by that name."""
        if not hasattr(getattr(module, "config", None), "_attn_implementation"):
            return False
        code = getattr(inspect.unwrap(own_class(module).forward), "__code__", None)
        return code is not None and INTERFACE in code.co_names

    def holders(self, model: nn.Module) -> Iterator[nn.Module]:
        """List the models of transformers that hold such modules, the whole before its parts."""
        for module in model.modules():
            if has_class(module, "transformers.modeling_utils.PreTrainedModel") and any(
                self.attends(part) for part in module.modules()
            ):
                yield module

    def told(self, holder: Any) -> Any:
        """Return the name in its configuration."""
        return holder.config._attn_implementation

    def tell(self, holder: Any, told: Any) -> None:
        """Let transformers set the name, as its own method does.

        Raises:
            UnsupportedModelError: If the model does not take it.
        """
        if holder.config._attn_implementation == told:
            return
        try:
            holder.set_attn_implementation(told)
        except (ImportError, ValueError, AttributeError) as error:
            raise UnsupportedModelError(
                f"{own_class(holder).__name__} does not take attn_implementation={told!r} ({first_line(error)}). "
                "Leave its attention as it is."
            ) from error
        if holder.config._attn_implementation != told:
            raise UnsupportedModelError(
                f"{own_class(holder).__name__} keeps attn_implementation={holder.config._attn_implementation!r}: it "
                "does not let it be changed. Build the model with another one."
            )

    def words(self, plain: bool) -> str:
        """Name what transformers calls them."""
        return "eager" if plain else "sdpa"

    def biased(self, module: nn.Module) -> bool:
        """Look for tables of relative positions, as BEiT has them."""
        return getattr(module, "relative_position_bias", None) is not None

    def channels(self, module: nn.Module) -> int | None:
        """Return what the module calls the channels of a head."""
        sizes = (getattr(module, name, None) for name in ("head_dim", "attention_head_size"))
        return next((size for size in sizes if isinstance(size, int)), None)


FUSED = Fused()
TRANSFORMERS = Transformers()
