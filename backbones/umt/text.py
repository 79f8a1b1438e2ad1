"""BERT as UMT uses it: an encoder whose last layers look at a video, or at other states, too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repshift.backbones.umt.settings import TextSettings
from repshift.errors import RepresentationError

HIDDEN = -10000.0  # added to the logits of what must not be looked at, as published
Projected = list[tuple[Tensor, Tensor]]


class TextEncoder(nn.Module):
    """Embeddings and layers of BERT without its pooler; those from ``fusion`` on also attend to something else.

    Args:
        settings: Its sizes.
        layers: How many layers, instead of the settings' own.
        fusion: The first layer that looks elsewhere, instead of the settings' own.
        other: Channels of what it looks at, instead of the video's.
    """

    def __init__(
        self, settings: TextSettings, *, layers: int | None = None, fusion: int | None = None, other: int | None = None
    ) -> None:
        super().__init__()
        self.settings = settings
        self.embeddings = Embeddings(settings)
        self.encoder = nn.Module()
        self.fusion = settings.fusion if fusion is None else fusion
        other = settings.vision_width if other is None else other
        self.encoder.layer = nn.ModuleList(
            Layer(settings, other if number >= self.fusion else None)
            for number in range(settings.layers if layers is None else layers)
        )

    def forward(self, ids: Tensor, mask: Tensor, projected: Projected | None = None) -> Tensor:
        """Encode texts: in the mode ``text`` by themselves, in the mode ``multi_modal`` while looking elsewhere.

        Args:
            ids: ``(batch, length)`` int64.
            mask: ``(batch, length)``, 1 or ``True`` for what is no padding.
            projected: Of :meth:`project`; without it only the layers in front of the fusion run.

        Returns:
            States ``(batch, length, width)``.
        """
        states = self.text(ids, mask)
        return states if projected is None else self.fuse(states, mask, projected)

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Run what is in front of the fusion, the mode ``text``, on ``(batch, length)``; see :meth:`forward`."""
        states: Tensor = self.embeddings(ids)
        hidden = hiding(mask, states.dtype)
        for layer in self._layers()[: self.fusion]:
            states = layer(states, hidden)
        return states

    def project(self, tokens: Tensor) -> Projected:
        """Project what the fusion layers look at into their keys and values, once for all texts.

        Args:
            tokens: ``(videos, tokens, channels)``.

        Returns:
            For each fusion layer keys and values, ``(videos, heads, tokens, width / heads)``.
        """
        return [layer.crossattention.self.project(tokens) for layer in self._layers()[self.fusion :]]

    def fuse(
        self,
        states: Tensor,
        mask: Tensor,
        projected: Projected,
        *,
        seen: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Run the fusion layers: the mode ``fusion``.

        Args:
            states: ``(pairs, length, width)`` of :meth:`text`.
            mask: ``(pairs, length)``, 1 or ``True`` for what is no padding.
            projected: Of :meth:`project`, of so many videos that they divide the pairs: the first video's pairs come
                first, then the second's. So one video goes with all texts, and as many as texts go one by one.
            seen: ``(videos, tokens)``, which of what is looked at is no padding; all by default.
            causal: Each place sees itself and those before it only.

        Returns:
            ``(pairs, length, width)``.

        Raises:
            RepresentationError: If the videos do not divide the pairs.
        """
        require_pairs(states.shape[0], projected[0][0].shape[0])
        hidden = hiding(mask, states.dtype, causal=causal)
        elsewhere = None if seen is None else hiding(seen, states.dtype)
        for layer, keys_values in zip(self._layers()[self.fusion :], projected, strict=True):
            states = layer(states, hidden, keys_values, elsewhere)
        return states

    def _layers(self) -> list[Layer]:
        layers = self.encoder.layer
        assert isinstance(layers, nn.ModuleList)
        return [layer for layer in layers if isinstance(layer, Layer)]


def require_pairs(pairs: int, videos: int) -> None:
    """Refuse pairs that videos do not divide.

    Raises:
        RepresentationError: If they do not.
    """
    if videos < 1 or pairs % videos:
        raise RepresentationError(
            f"{pairs} text(s) cannot be paired with {videos} video(s). Give one video, as many videos as texts, or a "
            "multiple of texts, those of the first video first."
        )


def hiding(mask: Tensor, dtype: torch.dtype, *, causal: bool = False) -> Tensor:
    """Make what is added to attention's logits so that padding is not looked at.

    Args:
        mask: ``(batch, length)``, 1 or ``True`` for what is no padding.
        dtype: Of the states.
        causal: Hide also what comes later than the place that looks.

    Returns:
        ``(batch, 1, 1 or length, length)``: 0, or -10000.
    """
    shown = mask.to(torch.bool)[:, None, None]
    if causal:
        length = mask.shape[1]
        shown = shown & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return (~shown).to(dtype) * HIDDEN


class Embeddings(nn.Module):
    """Words, positions and the one type that is used, added up and normalised.

    Args:
        settings: Of the text encoder.
    """

    def __init__(self, settings: TextSettings) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(settings.vocabulary, settings.width, padding_idx=0)
        self.position_embeddings = nn.Embedding(settings.positions, settings.width)
        self.token_type_embeddings = nn.Embedding(2, settings.width)
        self.LayerNorm = nn.LayerNorm(settings.width, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed word pieces ``(batch, length)`` int64 as ``(batch, length, width)``."""
        words = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        embedded: Tensor = self.LayerNorm(words + self.position_embeddings.weight[: ids.shape[1]])
        return embedded


class Layer(nn.Module):
    """A layer of BERT, with attention to something else between its attention and its MLP if it is a fusion layer.

    Args:
        settings: Of the text encoder.
        other: Channels of what it looks at; ``None`` if it is no fusion layer.
    """

    def __init__(self, settings: TextSettings, other: int | None) -> None:
        super().__init__()
        self.attention = AttentionLayer(settings, settings.width)
        if other is not None:
            self.crossattention = AttentionLayer(settings, other)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(settings.width, settings.ffn)
        self.output = Output(settings.ffn, settings.width)

    def forward(
        self,
        states: Tensor,
        hidden: Tensor,
        projected: tuple[Tensor, Tensor] | None = None,
        elsewhere: Tensor | None = None,
    ) -> Tensor:
        """Change states ``(batch, length, width)``; ``hidden`` and ``elsewhere`` are added to logits."""
        states = self.attention(states, self.attention.self.project(states), hidden)
        if projected is not None:
            states = self.crossattention(states, projected, elsewhere)
        changed: Tensor = self.output(F.gelu(self.intermediate.dense(states)), states)  # type: ignore[operator]
        return changed


class AttentionLayer(nn.Module):
    """Attention, its output, the residual and the norm behind it.

    Args:
        settings: Of the text encoder.
        other: Channels of what keys and values are made of.
    """

    def __init__(self, settings: TextSettings, other: int) -> None:
        super().__init__()
        self.self = SelfAttention(settings, other)
        self.output = Output(settings.width, settings.width)

    def forward(self, states: Tensor, projected: tuple[Tensor, Tensor], hidden: Tensor | None) -> Tensor:
        """Change states ``(batch, length, width)``."""
        changed: Tensor = self.output(self.self(states, projected, hidden), states)
        return changed


class SelfAttention(nn.Module):
    """Queries of the states, keys and values of anything.

    Args:
        settings: Of the text encoder.
        other: Channels of what keys and values are made of.
    """

    def __init__(self, settings: TextSettings, other: int) -> None:
        super().__init__()
        self.heads = settings.heads
        self.query = nn.Linear(settings.width, settings.width)
        self.key = nn.Linear(other, settings.width)
        self.value = nn.Linear(other, settings.width)

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values ``(batch, heads, tokens, channels)`` of tokens ``(batch, tokens, channels)``."""
        return self._split(self.key(tokens)), self._split(self.value(tokens))

    def forward(self, states: Tensor, projected: tuple[Tensor, Tensor], hidden: Tensor | None) -> Tensor:
        """Attend.

        Args:
            states: ``(pairs, length, width)``.
            projected: Keys and values of so many videos that they divide the pairs.
            hidden: Added to the logits, ``(pairs or videos, 1, 1 or length, keys)``.
        """
        keys, values = projected
        pairs, length, _ = states.shape
        videos = keys.shape[0]
        queries = self.query(states)
        if videos != pairs:  # all texts of a video in one row, so that its keys and values are held once
            queries = queries.reshape(videos, -1, queries.shape[-1])
        gathered = F.scaled_dot_product_attention(self._split(queries), keys, values, attn_mask=hidden)
        return gathered.transpose(1, 2).reshape(pairs, length, -1)

    def _split(self, values: Tensor) -> Tensor:
        return torch.unflatten(values, -1, (self.heads, -1)).transpose(1, 2)


class Output(nn.Module):
    """A layer, the residual, and the norm behind their sum.

    Args:
        taken: Channels that it takes.
        width: Channels of the states.
    """

    def __init__(self, taken: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(taken, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        """Add ``x``, ``(batch, length, taken)``, to states ``(batch, length, width)``."""
        changed: Tensor = self.LayerNorm(self.dense(x) + states)
        return changed
