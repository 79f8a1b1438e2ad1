"""What has an entry for each token beside the tokens: masks, rotary tables, relative positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from repshift.errors import RepresentationError
from repshift.positions import behind_prefix, pick


@dataclass(frozen=True)
class Companion:
    """An argument of every block that has an entry for each token, so that it must be shortened with the tokens.

    Attributes:
        argument: Its name among the parameters of the block's forward. Of a tuple, such as cosines and sines, every
            value has these dimensions.
        pattern: Its dimensions in words, in the manner of einops; those called ``token`` are shortened, one called
            ``batch`` has an entry for each image, or a single one for all. What it becomes stands behind an arrow, if
            that is more: ``"token channels -> batch 1 token channels"``, because each image keeps tokens of its own.
            A value with fewer dimensions lacks the first ones.
        prefix: How many of the entries of a dimension of tokens belong to prefix tokens.
        optional: Models are usually called without it.
        padding: It is an attention mask that says where there is nothing: ``False``, or a large negative number.
        counted: A block that is not given it counts the tokens itself, 0, 1, 2 and so on, as if none had gone. So it is
            told the places of those that are left: ``"token -> batch token"``.
        holds: It is no value that is shortened: it is told, for each place that there was, which of the tokens that are
            left stands for it, -1 for none: ``"token -> batch token"``, int64.
        sizes: How long dimensions of other names are, as far as that is known, ``{"heads": 12}``; or they are 1.

    Example:
        >>> table = torch.arange(8.0).view(4, 2)
        >>> rotary = Companion("rope", "token channels -> batch 1 token channels")
        >>> rotary.shortened(table, torch.tensor([[0, 3], [1, 2]])).shape
        torch.Size([2, 1, 2, 2])
    """

    argument: str
    pattern: str
    prefix: int = 0
    optional: bool = False
    padding: bool = False
    counted: bool = False
    holds: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken, given = self._names()
        missing = [name for name in taken if name not in given]
        if "token" not in taken or given[:1] != ["batch"] or missing:
            raise RepresentationError(
                f"The dimensions of {self.argument!r} are written {self.pattern!r}. Expected at least one 'token', and "
                "that it becomes 'batch ...' with all the dimensions it had, for example "
                "'token channels -> batch 1 token channels'."
            )

    def given(self, value: Any, tokens: int, like: Tensor) -> Any:
        """Return the argument, or what the block takes it to be if it has none.

        Args:
            value: What is given; ``None`` for nothing.
            tokens: How many tokens there are, prefix tokens left out.
            like: A tensor on the device.
        """
        if value is None and self.counted:
            return torch.arange(self.prefix + tokens, device=like.device)
        return value

    def check(self, value: Any, tokens: Tensor, *, logits: bool = False) -> None:
        """Check what the first block is given.

        Args:
            value: The argument.
            tokens: ``(batch, tokens, channels)``, prefix tokens left out.
            logits: Whether it is added to attention's logits.

        Raises:
            RepresentationError: If it does not fit the tokens.
        """
        if isinstance(value, tuple):
            for each in value:
                self.check(each, tokens, logits=logits)
            return
        if not isinstance(value, Tensor):
            raise RepresentationError(f"{self.argument} got {type(value).__name__!r}. Give a tensor, or leave it out.")
        taken, _ = self._names()
        sizes = {"batch": tokens.shape[0], "token": self.prefix + tokens.shape[1], **self.sizes}
        names = taken[max(0, len(taken) - value.ndim) :]
        fits = 2 * logits <= value.ndim <= len(taken)
        if not fits or any(
            length not in (1, sizes.get(name, length)) for name, length in zip(names, value.shape, strict=False)
        ):
            form = ", ".join(str(sizes.get(name, name)) for name in taken)
            raise RepresentationError(
                f"{self.argument} is ({form}), {' '.join(taken)}, the first dimensions left out or each 1; got "
                f"{tuple(value.shape)}. Give one that fits the images, or leave it out."
            )
        if logits and value.dtype not in (torch.bool, torch.float32, tokens.dtype):
            raise RepresentationError(
                f"{self.argument} is boolean or {tokens.dtype}, as the tokens are, got {value.dtype}. Convert it."
            )
        if value.device != tokens.device:
            raise RepresentationError(
                f"{self.argument} is on {value.device}, the tokens are on {tokens.device}. Move it there."
            )

    @property
    def dimensions(self) -> list[str]:
        """The names of the dimensions that it is given with."""
        return self._names()[0]

    def shortened(self, value: Any, positions: Tensor) -> Any:
        """Take the entries of the tokens that are left.

        Args:
            value: Of the dimensions that the pattern names, or a tuple of such tensors.
            positions: ``(batch, kept)`` int64: where the tokens stood that are left.

        Returns:
            For each image the entries of its prefix tokens and of the tokens that it kept.

        Raises:
            RepresentationError: If the value has other dimensions.
        """
        if isinstance(value, tuple):
            return tuple(self.shortened(each, positions) for each in value)
        taken, given = self._names()
        if value.ndim > len(taken):
            raise RepresentationError(
                f"Expected {self.argument!r} to have the dimensions {' '.join(taken)!r}, got {tuple(value.shape)}. "
                "Prune without this argument, or describe it to the backbone."
            )
        names = taken[len(taken) - value.ndim :]
        for place, name in enumerate(given):
            if place >= len(names) or names[place] != name:
                value, names = value.unsqueeze(place), [*names[:place], name, *names[place:]]
        value = value.expand(positions.shape[0], *value.shape[1:])
        where = behind_prefix(positions, self.prefix)
        for place, name in enumerate(names):
            if name == "token" and value.shape[place] > 1:  # a single entry serves all tokens
                value = pick(value.transpose(1, place), where).transpose(1, place)
        shortened: Tensor = value.contiguous()  # kernels of GPUs take no mask whose last dimension lies apart
        return shortened

    def valid(self, value: Tensor) -> Tensor:
        """Read from an attention mask which tokens are there.

        Args:
            value: ``(batch, ..., queries, keys)``, boolean, or added to the logits.

        Returns:
            ``(batch, tokens)`` float32: 1 for what some query may look at, 0 for padding; prefix tokens left out.
        """
        seen = value[..., self.prefix :]
        seen = seen if seen.dtype == torch.bool else seen > -1
        # not one query alone: a mask that is symmetric lets padding look at nothing
        return (seen.flatten(1, -2).any(1) if seen.ndim > 2 else seen).float()

    def require_prefix(self, value: Tensor) -> None:
        """Refuse an attention mask that hides prefix tokens: the tokens stand somewhere else, then.

        Args:
            value: See :meth:`valid`.

        Raises:
            RepresentationError: If it does. Compiled models do not look, because that would wait for the device.
        """
        heads = value[..., : self.prefix]
        if not self.prefix or torch.compiler.is_compiling() or value.device.type == "meta":
            return
        seen = heads if heads.dtype == torch.bool else heads > -1
        if not bool((seen.flatten(1, -2).any(1) if seen.ndim > 2 else seen).all()):
            raise RepresentationError(
                f"{self.argument} hides the first {self.prefix} token(s), prefix tokens that are always there. Pad "
                "behind the tokens, not before them: tokenizer.padding_side = 'right'."
            )

    def _names(self) -> tuple[list[str], list[str]]:
        taken, _, given = self.pattern.partition("->")
        return taken.split(), (given or taken).split()


@dataclass(frozen=True)
class Built:
    """A companion that no block is given: a module inside builds it for all tokens, such as a bias of their distances.

    Attributes:
        module: Its name.
        companion: What is built; its ``argument`` is the name of the module's method that returns it.
        is_bias: It is added to attention's logits, and is what tells attention how many places a merged token stands
            for, since the blocks take no argument for that (see ``bias`` of :class:`repshift.sites.Structure`).
    """

    module: str
    companion: Companion
    is_bias: bool = False

    def within(self, prefix: str) -> Built:
        """Return the same of a model that is a part of another."""
        return replace(self, module=f"{prefix}.{self.module}")
