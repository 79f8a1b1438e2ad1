"""Where representations change, and how a family of models tells it to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from repshift.attention_scores import AttentionScore, Heads
from repshift.companions import Built, Companion
from repshift.errors import UnknownNameError, UnsupportedModelError
from repshift.images import Images, Resizing
from repshift.layouts import Layout
from repshift.operations import OPERATIONS
from repshift.operations import Operation as Operation  # backbones describe sites and operations in one breath
from repshift.operations import inner as inner
from repshift.registry import suggest


@dataclass(frozen=True)
class Site:
    """One block, stage or layer: its operations, and the module after which tokens can go.

    Attributes:
        name: The block's module name; its output is what is shortened.
        operations: What can be watched, by name: those of other families where they mean the same (``attn``, ``mlp``,
            ``block``, ``stage``, ``mixer``), or names of the family's own.
        absent: Why something is missing: an operation that others have, or ``"heads"``.
        least: Of a feature map, how many rows and columns must be left for the strides behind it.
        multiple: Of a feature map, what the numbers of rows and columns left must be a multiple of, for strides behind
            it that take no odd sides.
        heads: Where the queries and keys of its attention can be watched, if that is known.
    """

    name: str
    operations: Mapping[str, Operation]
    absent: Mapping[str, str] = field(default_factory=dict)
    least: int = 1
    multiple: int = 1
    heads: Heads | None = None

    def attention(self, score: AttentionScore) -> Heads:
        """Return where a score of attention is read in this block.

        Raises:
            UnsupportedModelError: If it cannot be; the message says why.
        """
        lack, otherwise = "has no attention map to score by", "Choose another score, such as score='shift'."
        heads = self.shown_heads(lack, otherwise)
        if heads.incomplete:
            raise UnsupportedModelError(f"{self.name} {lack}: {heads.incomplete}. {otherwise}")
        if score.rows == "class" and not heads.class_token:
            raise UnsupportedModelError(
                f"{self.name} has no class token whose attention could be read. Choose score='mean_attention'."
            )
        return heads

    def shown_heads(self, lack: str, otherwise: str) -> Heads:
        """Return where queries and keys can be watched.

        Args:
            lack: What the message says of a block that shows none.
            otherwise: What it says can be done.

        Raises:
            UnsupportedModelError: If the block shows none.
        """
        if self.heads is None:
            why = self.absent.get("heads", "where its queries and keys are is not described")
            raise UnsupportedModelError(f"{self.name} {lack}: {why}. {otherwise}")
        return self.heads

    def within(self, prefix: str) -> Site:
        """Return the same site of a model that is a part of another."""
        return replace(
            self,
            name=inner(prefix, self.name),
            operations={name: operation.within(prefix) for name, operation in self.operations.items()},
            heads=self.heads and self.heads.within(prefix),
        )


@dataclass(frozen=True)
class Reading:
    """What the head reads of the tokens.

    Attributes:
        forward: Runs instead of the last block's own forward, called with the block and its arguments, and returns only
            the tokens in front that the head reads. It must be such that it can be pickled. ``None`` if there is none.
        why: Why there is none.
    """

    forward: Callable[..., Any] | None = None
    why: str = "what it reads is not described"


@dataclass(frozen=True)
class Structure:
    """What the engine needs to know about one model.

    Attributes:
        sites: Its blocks in order; a schedule counts them from zero.
        layout: How values between the blocks hold tokens.
        embedding: Name of the module that turns images into tokens; its first input is the images.
        grid: Rows and columns of the tokens for images of so many pixels (rows, columns), and of videos frames, rows
            and columns for so many (frames, rows, columns); ``None`` if the values themselves tell them, or nothing
            does. To be pickled with models whose pruner asks for places, so no lambda.
        tokens: How many prunable tokens there are, or ``None`` if that depends on the input.
        operation: The one that is watched unless another is asked for.
        pruner: Name of the pruner that suits the layout.
        unit: What the sites are called in this kind of model.
        parts: Further modules that are watched in a way of their own, though nothing is dropped behind them.
        grid_methods: Names of the model's methods that lay all tokens out on the grid; a pruned model that does
            not restore refuses them, because the tokens that are left may happen to fit another grid. They must take
            what the blocks return token by token, such as by a norm.
        rounds_up: Whether strides take half of an odd side of a feature map rounded up, or down.
        companions: Arguments of the blocks that have an entry for each token.
        built: What modules inside the blocks build with an entry for each token, in the order of the blocks.
        sides: Names of the blocks' arguments for the rows and columns of the tokens, if they are given these.
        counts_once: Why attention behind a block, or the head, cannot be told how many places a merged token stands
            for; pruners that would tell it are refused then. ``None`` if it can.
        bias: The argument of the blocks that is added to attention's logits, ``(batch, heads, queries, keys)``: there
            attention is told how many places each merged token stands for. ``None`` if there is none.
        weighs: Name of the module whose output is averaged over the tokens; merged tokens then count by their size.
        weighs_prefix: Whether prefix tokens take part in that average.
        weighs_present: Whether that average leaves padding out: it divides by the tokens that are there.
        weighs_taken: The average is over what ``weighs`` takes, inside of it, instead of over what it returns.
        weighs_bias: Of a module that pools the tokens by attention itself: its argument that is added to the logits,
            ``(batch, 1, 1, keys)``, or by the name ``key_padding_mask`` ``(batch, keys)`` as in torch's own attention.
            ``weighs`` is that module then.
        no_bias: Says why attention can be given no mask or bias at present, such as by the kernel that is chosen;
            ``None`` if it can. Asked in every forward that needs it.
        behind: Modules behind the blocks, by name, and their arguments that have an entry for each token.
        restores: Name of the module behind which dropped and merged tokens can have their places back.
        needs_all: Why they must have them: what stands behind the blocks reads tokens by their places. Empty if it
            takes any number of them.
        answers: Methods of the model that return a dictionary which holds, beside the tokens, something with an entry
            for each of them; by name, with what that is.
        shows_all: Whether they must have them behind every block, which then shows all tokens.
        reads_places: Modules behind the blocks that read tokens by their places, though models are used without them;
            by name, with why. A pruned model that does not restore refuses to run them.
        explained: Modules that fail when there are fewer tokens, by name: a part of what their error says, in small
            letters, and what is said instead.
        unpruned: Why such models are tracked and cannot be pruned. Empty if they can.
        root: Name of the module that all this was found in; empty for the model itself.
        images: What the embedding takes; ``None`` if that is not described, and then any tensor is welcome.
        resizes: How the model takes images of another size (rows, columns): asked once for each size, it raises
            :class:`UnsupportedModelError` for one that does not fit. ``None`` if that is not described. The model is
            described anew when its attributes have changed.
        reading: What the head reads of what the last block returns.
        methods: Methods that a pruned model, and what holds it, have otherwise than the dense one where they have any
            of the name: functions of the module and of what the method is called with.
    """

    sites: tuple[Site, ...]
    layout: Layout
    embedding: str
    grid: Callable[[Any], tuple[int, ...]] | None
    tokens: int | None
    operation: str = "mlp"
    pruner: str = "tokens"
    unit: str = "block"
    parts: Mapping[str, Operation] = field(default_factory=dict)
    grid_methods: tuple[str, ...] = ()
    rounds_up: bool = True
    companions: tuple[Companion, ...] = ()
    built: tuple[Built, ...] = ()
    sides: tuple[str, str] | None = None
    counts_once: str | None = None
    bias: str | None = None
    weighs: str | None = None
    weighs_prefix: bool = False
    weighs_present: bool = False
    weighs_taken: bool = False
    weighs_bias: str | None = None
    no_bias: Callable[[], str | None] | None = None
    behind: Mapping[str, tuple[Companion, ...]] = field(default_factory=dict)
    restores: str | None = None
    needs_all: str = ""
    answers: Mapping[str, Companion] = field(default_factory=dict)
    shows_all: bool = False
    reads_places: Mapping[str, str] = field(default_factory=dict)
    explained: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    unpruned: str = ""
    root: str = ""
    images: Images | None = None
    resizes: Callable[[tuple[int, int]], Resizing] | None = None
    reading: Reading = field(default_factory=Reading)
    methods: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def at(self, site: Site, operation: str) -> Operation:
        """Return an operation of one of the sites.

        Raises:
            UnknownNameError: If none of the sites has or lacks an operation of this name.
            UnsupportedModelError: If this one lacks it; the message says why, and which ones have it.
        """
        if operation in site.operations:
            return site.operations[operation]
        self.check_operation(operation)
        why = site.absent.get(operation, "it is built otherwise")
        message = f"{site.name} has no operation {operation!r} to watch: {why}."
        if having := [str(number) for number, other in enumerate(self.sites) if operation in other.operations]:
            of = f"of the {self.unit}s 0 to {len(self.sites) - 1}"
            message += f" It can be watched at {', '.join(having)} {of}: name one of these, or choose"
        else:
            message += " Choose"
        own = " or ".join(f"operation={name!r}" for name in site.operations)
        raise UnsupportedModelError(f"{message} {own or f'another {self.unit}'}.")

    def check_operation(self, operation: str) -> None:
        """Check that an operation is known here: at least one site has it, or says why it has not.

        Raises:
            UnknownNameError: If none does; the message has the closest names.
        """
        names = [name for site in self.sites for name in site.operations]
        absent = [name for site in self.sites for name in site.absent if name != "heads"]
        if operation not in (*names, *absent, *OPERATIONS):
            raise UnknownNameError(
                f"Unknown operation {operation!r}. {suggest(operation, dict.fromkeys((*names, *OPERATIONS)))}"
            )

    def grid_of(self, images: Tensor) -> tuple[int, ...] | None:
        """Return the grid of the tokens of images or videos; ``None`` if they do not tell it."""
        if self.grid is None:
            return None
        size = tuple(images.shape[-2:]) if self.images is None else self.images.size(images)
        return self.grid(size)

    def has_rows_and_columns(self) -> bool:
        """Say whether images tell the rows and columns of the tokens, and no frames before them."""
        return self.grid is not None and not (self.images is not None and self.images.frames)

    def has_frames(self) -> bool:
        """Say whether videos tell the frames, rows and columns of the tokens."""
        return self.grid is not None and self.images is not None and self.images.frames

    def places(self) -> tuple[str, ...]:
        """List the names of all modules that this speaks of, those of the blocks in order."""
        operations = [*self.parts.values(), *(each for site in self.sites for each in site.operations.values())]
        heads = [site.heads for site in self.sites if site.heads is not None]
        names = [self.embedding, *(site.name for site in self.sites), *self.parts]
        names += [name for each in operations for name in (each.enters, *each.leaves)]
        names += [name for each in heads for name in (each.queries, each.keys)]
        names += [*self.behind, *(each.module for each in self.built)]
        return tuple(dict.fromkeys(filter(None, (*names, self.weighs, self.restores))))

    def within(self, prefix: str) -> Structure:
        """Return the same structure of a model that is a part of another.

        Args:
            prefix: The name that the model has there.
        """
        return replace(
            self,
            sites=tuple(site.within(prefix) for site in self.sites),
            embedding=inner(prefix, self.embedding),
            parts={inner(prefix, name): operation.within(prefix) for name, operation in self.parts.items()},
            built=tuple(each.within(prefix) for each in self.built),
            weighs=self.weighs and inner(prefix, self.weighs),
            behind={inner(prefix, name): companions for name, companions in self.behind.items()},
            restores=self.restores and inner(prefix, self.restores),
            reads_places={inner(prefix, name): why for name, why in self.reads_places.items()},
            explained={inner(prefix, name): said for name, said in self.explained.items()},
            root=inner(prefix, self.root),
        )
