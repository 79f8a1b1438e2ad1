"""Vision towers that pack the tokens of all images into one long sequence: Qwen2-VL, Qwen2.5-VL. Tracked only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from repshift.backbones.huggingface_names import named
from repshift.errors import RepresentationError
from repshift.layouts import first_tensor, with_first_tensor
from repshift.sites import Operation, Site, Structure

PACKED = (
    "its tokens lie in one sequence for all images, whose lengths and rotations its blocks are told beside it, and its "
    "merger joins every 2x2 neighbours; give it smaller images instead (the processor's max_pixels)"
)
HEADS = "its queries and keys are not split into heads where they could be watched"
QWEN = {
    "qwen2_vl.modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel": PACKED,
    "qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel": PACKED,
}


@dataclass(frozen=True)
class PackedSequence:
    """A tensor ``(tokens, channels)`` with the tokens of all images, one image after the other; read as one image."""

    def tokens(self, value: Any) -> Tensor:
        """Return ``(1, tokens, channels)``.

        Raises:
            RepresentationError: If the value is no such tensor.
        """
        tensor = first_tensor(value)
        if tensor.ndim != 2:
            raise RepresentationError(
                f"Expected the packed tokens of all images, (tokens, channels), got {tuple(tensor.shape)}. Choose a "
                "module that carries the tokens."
            )
        return tensor.unsqueeze(0)

    def put(self, value: Any, tokens: Tensor) -> Any:
        """Return these tokens, ``(1, tokens, channels)``, as the value holds them."""
        return with_first_tensor(value, tokens.squeeze(0))

    def grid(self, value: Any) -> None:
        """Return ``None``: the images may be of many sizes."""
        return None

    def keep(self, value: Any, selection: Any) -> Any:
        """Refuse.

        Raises:
            RepresentationError: Always.
        """
        raise RepresentationError("Packed tokens cannot be dropped one by one. Give the model smaller images.")


class PackedTower:
    """The towers of Qwen2-VL and Qwen2.5-VL: shifts of all images in one row, in the order of the blocks."""

    serves = "no packed towers (they are tracked)"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the classes by their names."""
        return named(model, QWEN) is not None

    def structure(self, model: Any) -> Structure:
        """List the blocks and where their operations can be watched."""
        return Structure(
            sites=tuple(_site(f"blocks.{number}") for number in range(len(model.blocks))),
            layout=PackedSequence(),
            embedding="patch_embed",
            grid=None,
            tokens=None,
            unpruned=PACKED,
        )


PACKED_TOWER = PackedTower()


def _site(name: str) -> Site:
    operations = {
        kind: Operation(f"{name}.norm{place}", (f"{name}.{kind}",)) for place, kind in ((1, "attn"), (2, "mlp"))
    }
    return Site(name, {**operations, "block": Operation(name, (name,), on_stream=True)}, absent={"heads": HEADS})
