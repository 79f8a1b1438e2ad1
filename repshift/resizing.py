"""Smaller (or larger) images within a model: they are resized where they enter, and positions are resampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repshift.calls import Call
from repshift.errors import RepresentationError, UnsupportedModelError
from repshift.finding import require_structure
from repshift.images import OWN_SIZE, RESIZE, require_image_rank
from repshift.roles import Bystander, Role
from repshift.sites import Structure, inner

# where a module keeps what its attributes were before they were set for another size: a value, or nothing
BEFORE = "repshift_before"


@dataclass(frozen=True)
class Resize(Bystander):
    """Resizes the images, where they enter the model.

    Attributes:
        size: Rows and columns that the model computes with.
        own: Those that it is given; ``None`` for any.
    """

    size: tuple[int, int]
    own: tuple[int, int] | None

    def enter(self, call: Call) -> Call:
        """Resize the images, bicubic with antialias; those of the size are left as they are.

        Raises:
            RepresentationError: If the dense model would not take them.
        """
        images = call.first
        require_image_rank(images, "input_size")
        given = tuple(images.shape[-2:])
        if self.own is not None and given != self.own:
            rows, columns = self.own
            raise RepresentationError(
                f"The model takes images of {rows}x{columns} pixels, which it resizes to {self.size[0]}x"
                f"{self.size[1]} itself (input_size of its recipe), got {tuple(images.shape)}. {RESIZE}"
            )
        return call if given == self.size else call.with_first(resized(images, self.size))


@dataclass(frozen=True)
class ReadResampled(Bystander):
    """Lets a module read one of its parameters resampled; the parameter itself, and what is saved, stay as they are.

    Attributes:
        table: The parameter's name.
        resample: What makes the other table of it, at every forward: so gradients, devices and weights that are loaded
            later are right.
    """

    table: str
    resample: Callable[[Tensor], Tensor]


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images, bicubic with antialias.

    Args:
        images: ``(batch, channels, rows, columns)``, floating-point.
        size: Rows and columns.

    Returns:
        Images of this size, of the same dtype; half precision is computed in float32.
    """
    wide = images if images.dtype in (torch.float32, torch.float64) else images.float()
    small = F.interpolate(wide, size=size, mode="bicubic", antialias=True, align_corners=False)
    return small.to(images.dtype)


def take_size(
    model: nn.Module, structure: Structure, size: tuple[int, int]
) -> tuple[Structure, list[tuple[str, Role]]]:
    """Let a copy of a model compute with images of another size.

    Args:
        model: Shares its weights with the original, which is not touched: plain attributes change, tensors do not.
        structure: Of the original.
        size: Rows and columns.

    Returns:
        The structure that the model has at this size, and the roles that its modules play for it, by name.

    Raises:
        UnsupportedModelError: If it is not known how such a model takes another size, or this size does not fit it.
    """
    if structure.resizes is None:
        raise UnsupportedModelError(
            f"How a {type(model).__name__} takes images of another size is not described, so input_size cannot be "
            "given. Leave it out, or build the model with this size."
        )
    resizing = structure.resizes(size)
    if resizing.own == size:
        return structure, []
    changes = {name: dict(values) for name, values in resizing.attributes.items()}
    if resizing.own is not None:
        changes.setdefault(resizing.embedding, {})[OWN_SIZE] = resizing.own
    for name, values in changes.items():
        _set(model.get_submodule(inner(structure.root, name)), values)
    roles: list[tuple[str, Role]] = [(structure.embedding, Resize(size, resizing.own))]
    for path, resample in resizing.tables.items():
        holder, _, table = path.rpartition(".")
        roles.append((inner(structure.root, holder), ReadResampled(table, resample)))
    return require_structure(model), roles


def forget_size(model: nn.Module) -> None:
    """Undo what :func:`take_size` changed on a model."""
    for module in model.modules():
        for name, before in vars(module).pop(BEFORE, {}).items():
            delattr(module, name)
            for value in before:
                setattr(module, name, value)


def _set(module: nn.Module, values: Mapping[str, Any]) -> None:
    own = vars(module)
    before = {name: (own[name],) if name in own else () for name in values}
    for name, value in {BEFORE: before, **values}.items():
        setattr(module, name, value)
