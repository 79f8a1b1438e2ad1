"""Vision Mamba, as repshift builds it."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from repshift.images import Images, Resizing
from repshift.modules import has_class
from repshift.residual_pairs import ResidualPair
from repshift.sites import Operation, Site, Structure

ONE_BRANCH = "a state space layer has one branch, its mixer"


class VisionMamba:
    """Models built on :class:`repshift.backbones.vim_model.VisionMamba`.

    A layer's hidden values are the change that it makes to the residual stream, so both sides of the score are read
    from what it returns. Any patch can go: positions are added before the layers, the scans take any length, and the
    class token is found again by its place, which travels with the values.
    """

    serves = "Vision Mamba"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the class by its name."""
        return has_class(model, "repshift.backbones.vim_model.VisionMamba")

    def structure(self, model: Any) -> Structure:
        """List the layers."""
        from repshift.backbones.vim_embedding import class_index, grid_at, resampled_positions
        from repshift.backbones.vim_model import State

        embedding = model.patch_embed

        def resizing(size: tuple[int, int]) -> Resizing:
            old, (rows, columns) = tuple(embedding.grid_size), grid_at(embedding, size)
            sizes = {"img_size": size, "grid_size": (rows, columns), "num_patches": rows * columns}
            index = class_index(rows * columns, model.class_position)
            resample = partial(resampled_positions, grid=(rows, columns), old_grid=old, position=model.class_position)
            attributes: dict[str, dict[str, Any]] = {"patch_embed": sizes, "": {"class_index": index}}
            return Resizing("patch_embed", tuple(embedding.img_size), attributes, {"pos_embed": resample})

        return Structure(
            sites=tuple(_site(f"layers.{index}") for index in range(len(model.layers))),
            layout=ResidualPair(protected="protected", decay=State.aligned),
            embedding="patch_embed",
            images=Images.of(embedding, fixed=True),
            grid=partial(_grid_of, embedding),
            tokens=embedding.num_patches,
            operation="mixer",
            pruner="sequence",
            unit="layer",
            resizes=resizing,
        )


VIM = VisionMamba()


def _grid_of(embedding: Any, image: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the tokens: those of the model's own size, since it takes no other."""
    grid: tuple[int, int] = embedding.grid_size
    return grid


def _site(name: str) -> Site:
    stream = ResidualPair(part="residual", protected="protected")
    both = ResidualPair(part="sum", protected="protected")
    mixer = Operation(name, (name,), from_output=True, before=stream)
    whole = Operation(name, (name,), on_stream=True, from_output=True, before=stream, after=both)
    absent = {"attn": ONE_BRANCH, "mlp": ONE_BRANCH, "heads": "it has no attention"}
    return Site(name, {"mixer": mixer, "block": whole}, absent)
