"""What modules do around the cuts: tell later blocks what became of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repshift.calls import Call
from repshift.companions import Companion
from repshift.errors import RepresentationError
from repshift.images import Images, require_image_rank
from repshift.layouts import Layout, first_tensor
from repshift.roles import Bystander
from repshift.stream import Streams, is_repeated

# the mask of torch.nn.MultiheadAttention that is added to the logits, (batch, keys)
PADDED = "key_padding_mask"


@dataclass(frozen=True)
class NoteGrid(Bystander):
    """Notes on how many rows and columns the tokens will stand, and in how many frames, where the images enter.

    Attributes:
        streams: What the modules of the model tell each other.
        grid: Of images or videos of so many pixels.
        images: What the model takes.
    """

    streams: Streams
    grid: Callable[[Any], tuple[int, ...]]
    images: Images | None = None

    def enter(self, call: Call) -> Call:
        """Note it."""
        if self.images is not None and self.images.frames:
            self.streams.own.grid = tuple(self.grid(self.images.size(call.first)))
            return call
        require_image_rank(call.first, "A pruner that asks where the tokens stood")
        self.streams.own.grid = tuple(self.grid((call.first.shape[-2], call.first.shape[-1])))
        return call


@dataclass(frozen=True)
class Start(Bystander):
    """Begins to follow the tokens, where they enter the first block.

    Attributes:
        streams: What the modules of the model tell each other.
        layout: How the value holds its tokens.
        companions: What the blocks are given beside the tokens.
        always: Follow them whatever is given; otherwise only if there is a companion to follow them.
        bias: The argument that is added to attention's logits.
        no_bias: Says why attention takes none at present.
    """

    streams: Streams
    layout: Layout
    companions: tuple[Companion, ...]
    always: bool
    bias: str | None = None
    no_bias: Callable[[], str | None] | None = None

    def enter(self, call: Call) -> Call:
        """Begin.

        Raises:
            RepresentationError: If this repeats a forward whose tokens are known no more, or what is given beside the
                tokens does not fit them.
        """
        stream = self.streams.own
        if not stream.heard_by() and not self.always:
            stream.clear()
        given = [(each, call.get(each.argument)) for each in self.companions]
        given = [(companion, value) for companion, value in given if value is not None]
        if self.always or given:
            _refuse_repetition()
            stream.begin(self.layout.tokens(call.first).shape[1], None)
        for companion, value in given:
            if companion.argument == self.bias:
                _refuse_bias(self.no_bias)
            companion.check(value, self.layout.tokens(call.first), logits=companion.argument == self.bias)
            if companion.padding:
                companion.require_prefix(value)
                stream.sizes, stream.padded = companion.valid(value), True
        return call


@dataclass(frozen=True)
class Carry(Bystander):
    """Shortens what a block is given beside the tokens, and tells its attention how many places each stands for.

    Attributes:
        streams: What the modules of the model tell each other.
        companions: Arguments with an entry for each token.
        bias: The argument that is added to attention's logits.
        prefix: How many prefix tokens the logits begin with; each stands for itself.
        always: Something is to be told at every forward; otherwise only if there is a companion.
        no_bias: Says why attention takes none at present.
    """

    streams: Streams
    companions: tuple[Companion, ...]
    bias: str | None
    prefix: int
    always: bool
    no_bias: Callable[[], str | None] | None = None

    def enter(self, call: Call) -> Call:
        """Change the call.

        Raises:
            RepresentationError: If this repeats a forward whose tokens are known no more.
        """
        stream = self.streams.own
        if self.always or any(call.get(companion.argument) is not None for companion in self.companions):
            _refuse_repetition()
        positions = None if stream.origin is None else stream.origin.positions
        if positions is None:
            return call
        for companion in self.companions:
            if companion.holds:
                call = call.replaced(companion.argument, None if stream.origin is None else stream.origin.held())
                continue
            value = call.get(companion.argument)
            if companion.counted and stream.origin is not None and stream.origin.tokens is not None:
                value = companion.given(value, stream.origin.tokens, positions)
            if value is not None:
                call = call.replaced(companion.argument, companion.shortened(value, positions))
        if self.bias is None or stream.sizes is None:
            return call
        _refuse_bias(self.no_bias)
        dtype = first_tensor(call.first).dtype
        given = call.get(self.bias)
        if self.bias == PADDED:  # where it is boolean, True is what is hidden
            hidden = ~given if given is not None and given.dtype == torch.bool else given
            given = None if hidden is None else hidden[:, None, None]
        bias = _with_sizes(given, stream.sizes, self.prefix, dtype)
        return call.replaced(self.bias, bias[:, 0, 0] if self.bias == PADDED else bias)

    def close(self, failed: bool) -> None:
        """Leave nothing behind if the forward ends here."""
        if failed:
            self.streams.own.clear()


@dataclass(frozen=True)
class Follow(Bystander):
    """Shortens what a method of the module builds for all tokens, and adds how many places each stands for.

    Attributes:
        streams: What the modules of the model tell each other.
        companion: What it builds; its ``argument`` is the method.
        sized: Whether it is added to attention's logits and says there how many places a token stands for.
        prefix: How many prefix tokens the logits begin with.
    """

    streams: Streams
    companion: Companion
    sized: bool
    prefix: int

    def followed(self, value: Tensor) -> Tensor:
        """Return what is left of it, ``(batch, heads, queries, keys)``.

        Raises:
            RepresentationError: If it was built for another number of tokens.
        """
        stream = self.streams.own
        if stream.origin is not None and stream.origin.positions is not None:
            tokens = self.prefix + (stream.origin.tokens or 0)
            if value.shape[-1] != tokens:
                raise RepresentationError(
                    f"What attention builds for all {tokens} tokens has {value.shape[-1]} entries: it is resampled to "
                    "those that are left. Leave the option out that resamples it, such as interpolate_pos_encoding."
                )
            value = self.companion.shortened(value, stream.origin.positions)
        if not self.sized or stream.sizes is None:
            return value
        return _with_sizes(value, stream.sizes, self.prefix, value.dtype)


def _refuse_repetition() -> None:
    if is_repeated():
        raise RepresentationError(
            "Gradient checkpointing repeats the blocks in the backward pass, where it is not known any more which "
            "tokens were left, and these blocks are told. Switch it off: model.set_grad_checkpointing(False) or "
            "model.gradient_checkpointing_disable()."
        )


def _refuse_bias(no_bias: Callable[[], str | None] | None) -> None:
    why = None if no_bias is None else no_bias()
    if why is not None:
        raise RepresentationError(why)


def _with_sizes(given: Tensor | None, sizes: Tensor, prefix: int, dtype: torch.dtype) -> Tensor:
    """Add the logarithms of the sizes to a mask: a token of size s then counts as s equal ones in the softmax."""
    if torch.compiler.is_compiling():  # FlexAttention's kernels take no padding into themselves (torch 2.11)
        place = torch.arange(-prefix, sizes.shape[1], device=sizes.device)
        counted = torch.where(place < 0, 1.0, sizes[:, torch.where(place < 0, 0, place)])
    else:
        counted = torch.nn.functional.pad(sizes, (prefix, 0), value=1.0)
    bias = counted.log().to(dtype)[:, None, None]
    return bias if given is None else added_to_mask(given, bias)


def added_to_mask(given: Tensor, bias: Tensor) -> Tensor:
    """Add to what is added to attention's logits, or says by ``False`` what is hidden; both ``(batch, 1, ...)``."""
    if given.dtype == torch.bool:
        given = torch.zeros(given.shape, dtype=bias.dtype, device=given.device).masked_fill(~given, -torch.inf)
    return (given + bias).to(bias.dtype)  # kernels of GPUs take no wider mask than the queries
