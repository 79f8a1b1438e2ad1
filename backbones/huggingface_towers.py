"""Which classes of transformers are image towers, how they differ, and what holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn

from repshift.companions import Companion

Value = TypeVar("Value")


@dataclass(frozen=True)
class Tower:
    """How one kind of image tower is built.

    Attributes:
        block: Name of the class of its blocks.
        embedding: Name of the class of what makes tokens of images.
        gridded: All patches stand in row order, and the embedding takes the image itself.
        padded: Blocks are given a mask that says which tokens are there.
        companions: What else they are given for each token.
        weighs: What averages or pools its tokens, if it is there.
        weighs_taken: That averages what it takes.
        built: What a block builds a bias of positions by, if it is there.
        behind: See :class:`repshift.sites.Structure`.
    """

    block: str
    embedding: str
    gridded: bool = True
    padded: bool = False
    companions: tuple[Companion, ...] = ()
    weighs: str | None = None
    weighs_taken: bool = False
    built: str = ""
    behind: Mapping[str, tuple[Companion, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Holder:
    """What a model around a tower, or one like it, does with all of its tokens.

    Attributes:
        needs_all: See :class:`repshift.sites.Structure`.
        weighs: What returns the tokens that it averages, by its name in the tower, or ``"last block"``.
    """

    needs_all: str = ""
    weighs: str | None = None


def named(module: nn.Module, table: Mapping[str, Value]) -> Value | None:
    """Look a module up by the full name of its class, or of one that it inherits from."""
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__)
    return next((table[name] for name in names if name in table), None)


def _of(folder: str, names: Iterable[str], value: Value) -> dict[str, Value]:
    return {f"transformers.models.{folder}.modeling_{folder}.{name}": value for name in names}


ROTARY = Companion("position_embeddings", "token channels -> batch 1 token channels")
PADDING = {"head": (Companion("attention_mask", "batch token"),)}
POOLED = "head.attention"
SIGLIP2 = Tower("Siglip2EncoderLayer", "Siglip2VisionEmbeddings", False, True, weighs=POOLED, behind=PADDING)
DINO = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters", "dinov3_vit": "DINOv3ViT"}
PLAIN = {"vit": "ViT", "deit": "DeiT", "vit_msn": "ViTMSN", "ijepa": "IJepa"}
UNGRIDDED = {"vit_mae": "ViTMAE", "audio_spectrogram_transformer": "AST"}
CLIP = {"clip": "CLIP", "metaclip_2": "MetaClip2", "altclip": "AltCLIP", "siglip": "Siglip"}
# what holds the tower is called a model in newer versions, and a transformer inside of one in older ones
VISION = ("VisionModel", "VisionTransformer")

TOWERS: dict[str, Tower] = {}
for _folder, _name in (PLAIN | UNGRIDDED).items():
    TOWERS |= _of(_folder, [f"{_name}Model"], Tower(f"{_name}Layer", f"{_name}Embeddings", _folder in PLAIN))
for _folder, _name in DINO.items():
    _tower = Tower(f"{_name}Layer", f"{_name}Embeddings", companions=(ROTARY,) if _folder == "dinov3_vit" else ())
    TOWERS |= _of(_folder, [f"{_name}Model", f"{_name}Backbone"], _tower)
for _folder, _name in CLIP.items():
    _tower = Tower(f"{_name}EncoderLayer", f"{_name}VisionEmbeddings", weighs=POOLED if _folder == "siglip" else None)
    TOWERS |= _of(_folder, [f"{_name}{kind}" for kind in VISION], _tower)
BIAS = "relative_position_bias"  # of each block; older versions give blocks one that all share by this name
SHARED = (Companion(BIAS, "batch heads token token", 1, optional=True),)
BEIT = Tower("BeitLayer", "BeitEmbeddings", companions=SHARED, weighs="pooler", weighs_taken=True, built=BIAS)
TOWERS |= _of("beit", ["BeitModel", "BeitBackbone"], BEIT)
TOWERS |= _of("siglip2", [f"Siglip2{kind}" for kind in VISION], SIGLIP2)

MAPS = Holder("it lays the tokens of several blocks out as feature maps")
PIXELS = Holder("it makes an image of all its tokens")
HOLDERS: dict[str, Holder] = {
    **{key: MAPS for _folder, _name in DINO.items() for key in _of(_folder, [f"{_name}Backbone"], MAPS)},
    **_of("beit", ["BeitBackbone", "BeitForSemanticSegmentation"], MAPS),
    **_of("beit", ["BeitForMaskedImageModeling"], Holder("it predicts a word for each of its tokens")),
    **_of("vit", ["ViTForMaskedImageModeling"], PIXELS),
    **_of("deit", ["DeiTForMaskedImageModeling"], PIXELS),
    **_of("dinov2", ["Dinov2ForImageClassification"], Holder(weighs="layernorm")),
    **_of("dinov2_with_registers", ["Dinov2WithRegistersForImageClassification"], Holder(weighs="layernorm")),
    **_of("ijepa", ["IJepaForImageClassification"], Holder(weighs="layernorm")),
    **_of("clip", ["CLIPForImageClassification"], Holder(weighs="last block")),
    **_of("metaclip_2", ["MetaClip2ForImageClassification"], Holder(weighs="last block")),
    **_of("siglip", ["SiglipForImageClassification"], Holder(weighs="post_layernorm")),
    **_of("siglip2", ["Siglip2ForImageClassification"], Holder("it averages all of its tokens by a mask of all")),
}
DECODER = (
    "its decoder puts tokens back by a shuffled order of all of them (ids_restore); prune the encoder inside, "
    "model.vit, which is what is used after pre-training"
)
REFUSED: dict[str, str] = _of("vit_mae", ["ViTMAEForPreTraining"], DECODER)
