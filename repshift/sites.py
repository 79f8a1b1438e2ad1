"""Where representations change, and how a family of models tells it to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from repshift.attention import AttentionScore, Heads
from repshift.errors import UnknownNameError, UnsupportedModelError
from repshift.layouts import Layout
from repshift.registry import Registry, suggest

OPERATIONS = ("attn", "mlp", "block", "stage", "mixer")


@dataclass(frozen=True)
class Operation:
    """Where one operation ``F`` of a block can be watched, by module names.

    Attributes:
        enters: What it takes first is ``x``, the representation that the operation starts from.
        leaves: Their outputs, added up, are what the operation yields.
        on_stream: Whether that already contains the residual (``D(y, x)`` of a whole block) or is ``F(x)`` alone,
            what is added to the stream: after LayerScale, post-norm and drop-path.
        from_output: ``x`` is what ``enters`` returns instead of what it takes, as behind a shortcut.
        before: How ``x`` is held, if not as between the blocks.
        after: How what leaves is held, if not as between the blocks.
    """

    enters: str
    leaves: tuple[str, ...]
    on_stream: bool = False
    from_output: bool = False
    before: Layout | None = None
    after: Layout | None = None


@dataclass(frozen=True)
class Site:
    """One block, stage or layer: its operations, and the module after which tokens can go.

    Attributes:
        name: The block's module name; its output is what is shortened.
        operations: What can be watched, by the names in :data:`OPERATIONS`.
        absent: Why an operation is missing.
        least: Of a feature map, how many rows and columns must be left for the strides behind it.
        heads: Where the queries and keys of its attention can be watched, if it has one of its own.
    """

    name: str
    operations: Mapping[str, Operation]
    absent: Mapping[str, str] = field(default_factory=dict)
    least: int = 1
    heads: Heads | None = None

    def attention(self, score: AttentionScore) -> Heads:
        """Return where a score of attention is read in this block.

        Raises:
            UnsupportedModelError: If it cannot be; the message says why.
        """
        if self.heads is None:
            raise UnsupportedModelError(
                f"{self.name} has no attention map to score by: {self.absent.get('heads', 'it has no attention')}. "
                "Choose another score, such as score='shift'."
            )
        if score.rows == "class" and not self.heads.class_token:
            raise UnsupportedModelError(
                f"{self.name} has no class token whose attention could be read. Choose score='mean_attention'."
            )
        return self.heads

    def operation(self, name: str) -> Operation:
        """Return an operation of this block.

        Raises:
            UnknownNameError: If there is no operation of this name at all.
            UnsupportedModelError: If this block does not have it; the message says why.
        """
        if name in self.operations:
            return self.operations[name]
        if name in OPERATIONS:
            choice = " or ".join(repr(known) for known in self.operations)
            raise UnsupportedModelError(
                f"{self.name} has no operation {name!r} to watch: {self.absent.get(name, 'it is built otherwise')}. "
                f"Choose {f'operation={choice}' if choice else 'another block'}."
            )
        raise UnknownNameError(f"Unknown operation {name!r}. {suggest(name, OPERATIONS)}")


@dataclass(frozen=True)
class Structure:
    """What the engine needs to know about one model.

    Attributes:
        sites: Its blocks in order; a schedule counts them from zero.
        layout: How values between the blocks hold tokens.
        embedding: Name of the module that turns images into tokens; its first input is the images.
        grid: Rows and columns of the tokens for images of so many pixels (rows, columns); ``None`` if the values
            themselves tell them.
        tokens: How many prunable tokens there are, or ``None`` if that depends on the input.
        operation: The one that is watched unless another is asked for.
        pruner: Name of the pruner that suits the layout.
        unit: What the sites are called in this kind of model.
        parts: Further modules that are watched in a way of their own, though nothing is dropped behind them.
        grid_methods: Names of the model's methods that lay all tokens out on the grid; a pruned model refuses them,
            because the tokens that are left may happen to fit another grid.
        rounds_up: Whether strides take half of an odd side of a feature map rounded up, or down.
    """

    sites: tuple[Site, ...]
    layout: Layout
    embedding: str
    grid: Callable[[tuple[int, int]], tuple[int, int]] | None
    tokens: int | None
    operation: str = "mlp"
    pruner: str = "tokens"
    unit: str = "block"
    parts: Mapping[str, Operation] = field(default_factory=dict)
    grid_methods: tuple[str, ...] = ()
    rounds_up: bool = True


class Backbone(Protocol):
    """A family of models that the engine can serve."""

    def matches(self, model: nn.Module) -> bool:
        """Say whether a model belongs to the family."""
        ...

    def structure(self, model: nn.Module) -> Structure:
        """Describe a model of the family.

        Raises:
            UnsupportedModelError: If this one cannot be served; the message says why.
        """
        ...


BACKBONES = Registry(
    "backbone",
    {
        "vit": "repshift.backbones.vit:VIT",
        "resnet": "repshift.backbones.resnet:RESNET",
        "convnet": "repshift.backbones.convnet:CONVNET",
        "vim": "repshift.backbones.vim:VIM",
    },
)


def find_structure(model: nn.Module) -> Structure | None:
    """Describe a model if a registered backbone knows it, else return ``None``."""
    for name in BACKBONES.names():
        backbone: Backbone = BACKBONES.get(name)
        if backbone.matches(model):
            return backbone.structure(model)
    return None
