"""What a model takes, and what is wrong with images that it does not take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from repshift.errors import RepresentationError, UnknownNameError, UnsupportedModelError, first_line

# where an embedding keeps the size of the images that it is given, if it computes with another one
OWN_SIZE = "repshift_own_size"


@dataclass(frozen=True)
class Images:
    """The images that a model takes: ``(batch, channels, rows, columns)``, floating-point; or videos.

    Attributes:
        channels: How many channels they have.
        fixed: Whether they must come to as many tokens as the embedding's ``num_patches`` says, because a table of
            positions has so many.
        frames: They are videos, ``(batch, frames, channels, rows, columns)``.
    """

    channels: int
    fixed: bool = False
    frames: bool = False

    @property
    def form(self) -> str:
        """What their dimensions are, in words."""
        return f"(batch, {'frames, ' if self.frames else ''}{self.channels}, rows, columns)"

    def size(self, images: Tensor) -> tuple[int, ...]:
        """Return the rows and columns of images; the frames, rows and columns of videos."""
        *_, rows, columns = images.shape
        return (images.shape[1], rows, columns) if self.frames else (rows, columns)

    @staticmethod
    def of(embedding: nn.Module, *, fixed: bool = False) -> Images | None:
        """Read the channels from the embedding's first convolution; ``None`` if it has none."""
        first = next((module for module in embedding.modules() if isinstance(module, nn.Conv2d)), None)
        return None if first is None else Images(first.in_channels, fixed)

    def require_rank(self, images: Tensor) -> None:
        """Refuse what is no batch of images: a convolution would take a single one, but nothing behind it does.

        Raises:
            RepresentationError: If it has not four dimensions, or five of videos.
        """
        rank, what = 4 + self.frames, "videos" if self.frames else "images"
        if images.ndim != rank:
            advice = (
                f"Give a batch of one, {what}.unsqueeze(0)" if images.ndim == rank - 1 else f"Give a batch of {what}"
            )
            raise RepresentationError(f"The model takes {what} {self.form}, got {tuple(images.shape)}. {advice}.")

    def require_tokens(self, embedding: nn.Module, output: Any) -> None:
        """Refuse images that come to no tokens, or to another number of them than the table of positions has.

        Args:
            embedding: The module that took them.
            output: What it returned.

        Raises:
            RepresentationError: If there are none, more or fewer.
        """
        if isinstance(output, Tensor) and output.device.type == "meta":  # some layers take the shape for the images
            weight = next(embedding.parameters(), output)
            if weight.device.type != "meta":
                raise RepresentationError(
                    f"The model takes images on {weight.device}, got images on meta, which hold no values. Move them "
                    "there as they were before."
                )
        expected = getattr(embedding, "num_patches", None)
        if self.fixed and isinstance(output, Tensor) and output.ndim == 3 and output.shape[1] != expected:
            raise RepresentationError(
                f"The model takes images of {_size(embedding)} pixels, which are {expected} tokens, got images that "
                f"are {output.shape[1]}. {RESIZE}"
            )

    def why_unfit(self, images: Tensor, embedding: nn.Module) -> str | None:
        """Say what is wrong with images that a model failed on; ``None`` if nothing is known to be.

        Args:
            images: What it was given.
            embedding: The module that takes them.
        """
        if self.frames:  # what these models say themselves is clear
            return None
        shape, size = tuple(images.shape), _own_size(embedding) if self.fixed else None
        weight = next((each for each in embedding.parameters() if each.is_floating_point()), None)
        rows, columns = size or ("rows", "columns")
        takes = f"The model takes images (batch, {self.channels}, {rows}, {columns})"
        if len(shape) != 4 or shape[1] != self.channels:
            last = len(shape) == 4 and shape[3] == self.channels
            return (
                f"{takes}, got {shape}. {'Give images.permute(0, 3, 1, 2).' if last else 'Give images of this form.'}"
            )
        if 0 in shape[2:] or (size is not None and shape[2:] != tuple(size)):
            return f"{takes}, got {shape}. {RESIZE}"
        if images.layout != torch.strided:
            return f"{takes} in a plain tensor, got {images.layout}. Convert them with .to_dense()."
        if weight is not None and images.device != weight.device:
            return f"{takes} on {weight.device}, got images on {images.device}. Move them there with images.to(device)."
        mixed = torch.is_autocast_enabled(images.device.type) if images.device.type != "meta" else False
        if weight is not None and images.dtype != weight.dtype and not mixed:
            return (
                f"{takes} of {weight.dtype}, as its weights are, got {images.dtype}. Convert them with images.to(...)."
            )
        return None


@dataclass(frozen=True)
class Resizing:
    """How a model takes images of another size; names are counted from the model itself.

    Attributes:
        embedding: The module that takes the images.
        own: Rows and columns of the model's images; ``None`` if it takes any.
        attributes: What its modules then have otherwise, by name: plain values, no tensors.
        tables: Parameters that have an entry for each place, and what makes of each the table of the other size. A
            function of a tensor that can be pickled, such as a ``functools.partial`` of one at the top of a file.
    """

    embedding: str
    own: tuple[int, int] | None = None
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tables: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class FixedGrid:
    """Rows and columns of tokens, whatever the images: an embedding resizes them all to one size."""

    rows: int
    columns: int

    def __call__(self, image: tuple[int, int]) -> tuple[int, int]:
        """Return the grid."""
        return self.rows, self.columns


@dataclass(frozen=True)
class PatchGrid:
    """Rows and columns of patches, as a convolution without padding makes them.

    Attributes:
        size: Rows and columns of a patch.
        stride: From one patch to the next.
    """

    size: tuple[int, int]
    stride: tuple[int, int]

    def __call__(self, image: tuple[int, int]) -> tuple[int, int]:
        """Return the grid of an image of so many rows and columns."""
        rows, columns = (
            (side - size) // step + 1 for side, size, step in zip(image, self.size, self.stride, strict=True)
        )
        return rows, columns


def read_size(given: Any) -> tuple[int, int]:
    """Read rows and columns from one number or two.

    Raises:
        UnknownNameError: If it is neither.
    """
    sides = given if isinstance(given, (tuple, list)) else (given, given)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise UnknownNameError(
            f"input_size is a number of pixels or (rows, columns), got {given!r}. Give input_size=182, say."
        )
    return (sides[0], sides[1])


RESIZE = "Resize the images, or build the model with img_size=(rows, columns)."


def explain(error: Exception, takes: Images | None, images: Any, embedding: nn.Module) -> None:
    """Say what is wrong with the images that an embedding failed on, instead of what a layer inside says.

    Raises:
        RepresentationError: If that is known. Otherwise the error stands as it is.
    """
    if takes is None or isinstance(error, RepresentationError) or not isinstance(images, Tensor):
        return
    why = takes.why_unfit(images, embedding)
    if why is None and (isinstance(error, AssertionError) or "Kernel size" in str(error)):
        why = f"The model does not take images {tuple(images.shape)} ({first_line(error)}). Give another size."
    if why is not None:
        raise RepresentationError(why) from error


def refuse_symbolic_tracing() -> NoReturn:
    """Say that a pruned model cannot be traced without values.

    Raises:
        UnsupportedModelError: Always.
    """
    raise UnsupportedModelError(
        "A pruned model chooses tokens by their values and shapes, which torch.fx's symbolic tracing does not know. "
        "Capture it with torch.export.export(model, (images,)), or trace the dense model."
    )


def require_image_rank(images: Any, what: str) -> None:
    """Refuse patches that were cut before, where the rows and columns of images are needed.

    Raises:
        RepresentationError: If these are no images.
    """
    shape = tuple(images.shape) if isinstance(images, Tensor) else f"a {type(images).__name__!r}"
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise RepresentationError(
            f"{what} takes images (batch, channels, rows, columns), whose rows and columns are known, got {shape}. "
            "Give images, or prune without it."
        )


def require_floating_point(value: Any) -> None:
    """Refuse images of whole numbers, and what are no images at all.

    Raises:
        RepresentationError: If they are not floating-point.
        UnsupportedModelError: If torch.fx is tracing the model.
    """
    if isinstance(value, fx.Proxy):
        refuse_symbolic_tracing()
    if not isinstance(value, Tensor):
        raise RepresentationError(
            f"The model got {type(value).__name__!r}, expected a floating-point tensor "
            "(batch, channels, rows, columns). Convert the images with torchvision or timm.data.create_transform."
        )
    if value.is_nested:
        raise RepresentationError(
            "The model got a nested tensor, expected one tensor (batch, channels, rows, columns). Give images of one "
            "size, or one image after the other."
        )
    if not value.is_floating_point():
        raise RepresentationError(
            f"The model got {value.dtype} images of shape {tuple(value.shape)}, expected floating-point ones. "
            "Scale and normalise them as the model was trained, for example with "
            "timm.data.create_transform(**timm.data.resolve_model_data_config(model))."
        )


def _own_size(embedding: nn.Module) -> Any:
    return getattr(embedding, OWN_SIZE, None) or getattr(embedding, "img_size", None)


def _size(embedding: nn.Module) -> str:
    size = _own_size(embedding)
    return "x".join(map(str, size)) if isinstance(size, (tuple, list)) else "one size of"
