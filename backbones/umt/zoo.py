"""UMT models by name: the published sizes, and the embedded small ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from repshift.backbones.checkpoints import load_weights, shipped_weights
from repshift.backbones.umt.answering import UMTAnswering
from repshift.backbones.umt.retrieval import UMTRetrieval
from repshift.backbones.umt.settings import BASE, LARGE, TextSettings, UMTSettings, VisionSettings
from repshift.backbones.umt.vision import UMTVideoEncoder
from repshift.errors import CheckpointError

# What timm needs to know to preprocess a frame: its sides are resized to 224 each, nothing is cropped
IMAGENET = {
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "squash",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
# The same of moving digits, whose frames have 48 pixels a side. Divided by their own deviation of 0.12, patches would
# drown the positions that are added to them.
MOVING_DIGITS = IMAGENET | {"mean": (0.02, 0.02, 0.02), "std": (0.5, 0.5, 0.5), "license": "cc-by-sa-3.0"}
TINY = UMTSettings(
    vision=VisionSettings(width=64, depth=4, heads=2, mlp=256, patch=8, image=48, frames=6),
    text=TextSettings(
        width=64,
        layers=4,
        heads=2,
        ffn=256,
        fusion=2,
        vocabulary=31,
        positions=32,
        vision_width=64,
        class_token=2,
    ),
    embed_dim=64,
    decoder_layers=2,
)
KINDS: dict[str, Any] = {"vision": UMTVideoEncoder, "retrieval": UMTRetrieval, "qa": UMTAnswering}
# options of all models, by the name of what they set
VISION = {"frames": "frames", "img_size": "image", "keep_temporal": "keep_temporal"}
# further options of the embedded ones
TINY_VISION = {"patch_size": "patch", "depth": "depth"}
TINY_TEXT = {"vocabulary": "vocabulary", "positions": "positions", "class_token": "class_token", "layers": "layers"}


def umt(name: str, settings: UMTSettings, kind: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """Build a model of a published size.

    Args:
        name: Its name.
        settings: Its sizes.
        kind: ``vision`` (the video encoder), ``retrieval`` or ``qa``.
        pretrained: Refused: no weights can be fetched by name.
        **options: ``frames``, ``img_size``, ``keep_temporal``.

    Raises:
        CheckpointError: If ``pretrained`` is asked for.
        UnsupportedModelError: If the options build no model.
    """
    if pretrained:
        raise CheckpointError(
            f"The weights of {name} cannot be fetched by name. Download a checkpoint of Unmasked Teacher and give "
            "checkpoint=FILE (--checkpoint FILE)."
        )
    return _built(name, settings, kind, options)


def tiny(name: str, kind: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """Build an embedded model: the same classes, small enough to be trained and run in minutes on a CPU.

    Args:
        name: Its name.
        kind: ``retrieval`` or ``qa``.
        pretrained: Load the shipped weights (moving digits; see ``weights/tiny_umt.md`` and ``tiny_umt_qa.md``).
        **options: ``frames``, ``img_size``, ``keep_temporal``, ``patch_size``, ``depth``, ``width`` and ``heads`` (of
            video and text), ``layers``, ``fusion``, ``vocabulary``, ``positions``, ``class_token``, ``embed_dim``,
            ``decoder_layers``.

    Raises:
        CheckpointError: If the weights do not fit the model that the options build.
        UnsupportedModelError: If the options build no model.
    """
    model = _built(name, _resized(TINY, options), kind, options)
    if pretrained:
        load_weights(model, shipped_weights(name))
    return model


def _resized(settings: UMTSettings, options: dict[str, Any]) -> UMTSettings:
    """Take out of the options those of an embedded model, and return its sizes."""
    width = options.pop("width", settings.vision.width)
    heads = options.pop("heads", settings.vision.heads)
    vision = {"width": width, "heads": heads, "mlp": 4 * width} | _taken(options, TINY_VISION)
    text = {"width": width, "vision_width": width, "heads": heads, "ffn": 4 * width} | _taken(options, TINY_TEXT)
    fusion = text["layers"] - 1 if "layers" in text else settings.text.fusion
    text |= {"fusion": options.pop("fusion", fusion)}
    return UMTSettings(
        vision=replace(settings.vision, **vision),
        text=replace(settings.text, **text),
        embed_dim=options.pop("embed_dim", settings.embed_dim),
        decoder_layers=options.pop("decoder_layers", settings.decoder_layers),
    )


def _built(name: str, settings: UMTSettings, kind: str, options: dict[str, Any]) -> nn.Module:
    vision = replace(settings.vision, **_taken(options, VISION))
    if options:  # in the words that Python has for them
        raise TypeError(f"{name} got an unexpected keyword argument {next(iter(options))!r}")
    model: nn.Module = KINDS[kind](vision if kind == "vision" else replace(settings, vision=vision))
    model.pretrained_cfg = {  # type: ignore[assignment]
        **(MOVING_DIGITS if name.startswith("tiny_") else IMAGENET),
        "architecture": name,
        "fixed_input_size": False,
        "input_size": (3, vision.image, vision.image),
        "num_classes": 0,
        "frames": vision.frames,
    }
    return model


def _taken(options: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {field: options.pop(name) for name, field in names.items() if name in options}


umt_b = partial(umt, "umt_b", BASE, "vision")
umt_b_retrieval = partial(umt, "umt_b_retrieval", BASE, "retrieval")
umt_b_qa = partial(umt, "umt_b_qa", BASE, "qa")
umt_l = partial(umt, "umt_l", LARGE, "vision")
umt_l_retrieval = partial(umt, "umt_l_retrieval", LARGE, "retrieval")
umt_l_qa = partial(umt, "umt_l_qa", LARGE, "qa")
tiny_umt = partial(tiny, "tiny_umt", "retrieval")
tiny_umt_qa = partial(tiny, "tiny_umt_qa", "qa")
