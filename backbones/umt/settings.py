"""The sizes of UMT models."""

from __future__ import annotations

from dataclasses import dataclass, field

from repshift.errors import UnsupportedModelError


def _require_heads(what: str, width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise UnsupportedModelError(
            f"The {what} has {width} channels, which {heads} heads do not divide. Give another width or number of "
            "heads."
        )


@dataclass(frozen=True)
class VisionSettings:
    """Of the video encoder; by default those of B.

    Attributes:
        width: Channels of a token.
        depth: Blocks.
        heads: Of attention.
        mlp: Channels inside the MLP.
        patch: Pixels a side of a patch; a token is one patch of one frame.
        image: Pixels a side of a frame. Other sizes that patches fill are welcome.
        frames: Of a video. Any other number is welcome.
        keep_temporal: Pool every frame by itself (as UMT), or all tokens together (as vid-TLDR).
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    patch: int = 16
    image: int = 224
    frames: int = 12
    keep_temporal: bool = True

    def __post_init__(self) -> None:
        _require_heads("video encoder", self.width, self.heads)
        if self.image % self.patch:
            raise UnsupportedModelError(
                f"Frames of {self.image} pixels a side do not come to whole patches of {self.patch}. Give a multiple, "
                f"such as img_size={max(1, self.image // self.patch) * self.patch}."
            )
        if self.frames < 1:
            raise UnsupportedModelError(f"A video has at least one frame, got frames={self.frames}. Give frames=12.")


@dataclass(frozen=True)
class TextSettings:
    """Of the text encoder and of the decoder of answers; by default those of B.

    Attributes:
        width: Channels of a word piece.
        layers: Of the encoder.
        heads: Of attention.
        ffn: Channels inside the feed-forward network.
        fusion: The first layer that looks at the video, counted from zero; all behind it do, too.
        vocabulary: Word pieces.
        positions: The longest text.
        vision_width: Channels of the video's tokens.
        class_token: The id of ``[CLS]``, which every text begins with.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    fusion: int = 9
    vocabulary: int = 30522
    positions: int = 512
    vision_width: int = 768
    class_token: int = 101

    def __post_init__(self) -> None:
        _require_heads("text encoder", self.width, self.heads)
        if not 0 <= self.fusion < self.layers:
            raise UnsupportedModelError(
                f"The first fusion layer is one of the {self.layers} layers, counted from zero; got {self.fusion}. "
                f"Give at most {self.layers - 1}."
            )


@dataclass(frozen=True)
class UMTSettings:
    """Of a whole model; by default those of B.

    Attributes:
        vision: Of the video encoder.
        text: Of the text encoder.
        embed_dim: Channels in which video and text are compared.
        decoder_layers: Of the decoder of answers.
    """

    vision: VisionSettings = field(default_factory=VisionSettings)
    text: TextSettings = field(default_factory=TextSettings)
    embed_dim: int = 512
    decoder_layers: int = 3


BASE = UMTSettings()
LARGE = UMTSettings(
    vision=VisionSettings(width=1024, depth=24, heads=16, mlp=4096),
    text=TextSettings(width=1024, layers=24, heads=16, ffn=4096, fusion=19, vision_width=1024),
    embed_dim=768,
    decoder_layers=5,
)
