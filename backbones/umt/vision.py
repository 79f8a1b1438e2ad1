"""UMT's video encoder: a plain vision transformer over the patches of all frames, and what pools its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repshift.backbones.umt.checkpoints import VISION, fitted
from repshift.backbones.umt.initial import initialise
from repshift.backbones.umt.positions import sinusoid
from repshift.backbones.umt.settings import VisionSettings


class UMTVideoEncoder(nn.Module):
    """The video encoder; its parameters have the names of the published weights.

    Args:
        settings: Its sizes.
        normalised: Whether pooled vectors are normalised, by ``pool_norm``; the files of question answering have none.
    """

    def __init__(self, settings: VisionSettings | None = None, *, normalised: bool = True) -> None:
        super().__init__()
        self.settings = settings or VisionSettings()
        self.encoder = Encoder(self.settings)
        self.pooling = FramePooling(self.settings.keep_temporal)
        self.pool_norm = nn.LayerNorm(self.settings.width, eps=1e-6) if normalised else nn.Identity()
        self.apply(initialise)

    def forward(self, videos: Tensor) -> tuple[Tensor, Tensor]:
        """Encode videos.

        Args:
            videos: ``(batch, frames, 3, rows, columns)`` of the weights' dtype, normalised; any number of frames.

        Returns:
            All tokens ``(batch, tokens, width)`` behind the last norm, and the pooled vectors, which stand for frames
            ``(batch, frames, width)``, or with ``keep_temporal=False`` for the video ``(batch, 1, width)``. Of a pruned
            model, **a frame that has no token left has zeros for its vector**, which no other frame has:
            :func:`frames_present` says which ones are there.
        """
        patches = self.encoder.patch_embed(videos)
        tokens = self.encoder(patches)
        frames = videos.shape[1]
        pooled, present = self.pooling(tokens, frames, patches.shape[1] // frames)
        pooled = self.pool_norm(pooled)
        return tokens, pooled if present is None else pooled.masked_fill(~present.unsqueeze(-1), 0.0)

    def fit_checkpoint(self, weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """Take from a file what this model has; see :func:`repshift.backbones.umt.checkpoints.fitted`.

        Args:
            weights: Of any shapes, by their names in the file.
            path: The file, for messages.
        """
        return fitted(weights, self.state_dict(), VISION, path)


def frames_present(pooled: Tensor) -> Tensor:
    """Say which frames have tokens left: those whose pooled vector is not zero throughout.

    Args:
        pooled: ``(batch, frames, width)``.

    Returns:
        ``(batch, frames)`` bool.
    """
    return (pooled != 0).any(-1)


class Encoder(nn.Module):
    """Blocks over all tokens of a video, and a norm behind them.

    Args:
        settings: Its sizes.
    """

    table: Tensor

    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(settings)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width, eps=1e-6)
        tokens = settings.frames * (settings.image // settings.patch) ** 2
        self.register_buffer("table", sinusoid(tokens, settings.width).to(torch.get_default_dtype()), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Return the tokens ``(batch, tokens, width)`` of embedded patches of the same shape."""
        x = patches + self.positions(patches)
        for block in self.blocks:
            x = block(x)
        normalised: Tensor = self.norm(x)
        return normalised

    def positions(self, patches: Tensor) -> Tensor:
        """Return the positions ``(tokens, width)`` of so many patches; videos longer than usual have a longer table."""
        tokens = patches.shape[1]
        if tokens <= self.table.shape[0]:
            return self.table[:tokens]
        return sinusoid(tokens, self.table.shape[1]).to(self.table)


class PatchEmbedding(nn.Module):
    """Patches of single frames, in the order frame, row, column.

    Args:
        settings: Sizes of the encoder.
    """

    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        patch = (1, settings.patch, settings.patch)
        self.proj = nn.Conv3d(3, settings.width, kernel_size=patch, stride=patch)

    def forward(self, videos: Tensor) -> Tensor:
        """Embed videos ``(batch, frames, 3, rows, columns)`` as ``(batch, tokens, width)``."""
        embedded: Tensor = self.proj(videos.transpose(1, 2))
        return embedded.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual.

    Args:
        settings: Sizes of the encoder.
    """

    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(settings.width, eps=1e-6)
        self.attn = Attention(settings.width, settings.heads)
        self.norm2 = nn.LayerNorm(settings.width, eps=1e-6)
        self.mlp = MLP(settings.width, settings.mlp)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Change tokens.

        Args:
            x: ``(batch, tokens, width)``.
            bias: Added to attention's logits, ``(batch, heads or 1, queries or 1, keys)``.
        """
        x = x + self.attn(self.norm1(x), bias)
        changed: Tensor = x + self.mlp(self.norm2(x))
        return changed


class Attention(nn.Module):
    """Attention among all tokens of a video. Queries and values have biases; one of keys would change nothing.

    Args:
        width: Channels of a token.
        heads: How many.

    Attributes:
        fused_attn: Compute it by torch's fused kernels instead of holding the attention map.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale, self.fused_attn = heads, (width // heads) ** -0.5, True
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        # what stands here in other transformers are norms; these are the places where queries and keys are seen
        self.q_norm = nn.Identity()
        self.k_norm = nn.Identity()

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return what is added to the stream ``(batch, tokens, width)``; see :meth:`Block.forward`."""
        biases = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        split = torch.unflatten(F.linear(x, self.qkv.weight, biases), -1, (3, self.heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        queries, keys = self.q_norm(queries), self.k_norm(keys)
        if self.fused_attn:
            gathered = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        else:
            logits = (queries * self.scale) @ keys.mT
            gathered = (logits if bias is None else logits + bias).softmax(-1) @ values
        merged: Tensor = self.proj(gathered.transpose(1, 2).flatten(2))
        return merged


class MLP(nn.Module):
    """Two layers with an exact GELU between them.

    Args:
        width: Channels of a token.
        hidden: Channels between the layers.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the stream ``(batch, tokens, width)``."""
        changed: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return changed


class FramePooling(nn.Module):
    """Averages the tokens of each frame, or all of a video.

    Args:
        keep_temporal: Each frame by itself.
    """

    def __init__(self, keep_temporal: bool) -> None:
        super().__init__()
        self.keep_temporal = keep_temporal

    def forward(
        self, tokens: Tensor, frames: int, each: int, held: Tensor | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Average tokens.

        Args:
            tokens: ``(batch, tokens, width)``.
            frames: How many the video has.
            each: How many tokens a frame had in the beginning.
            held: ``(batch, frames * each)`` int64, which token stands for each place of the beginning, -1 for none;
                ``None`` if all tokens are there. A token that others were merged into counts in each frame for its
                places there.
            bias: ``(batch, 1, 1, tokens)``, the logarithms of how much each token counts; one each if ``None``.

        Returns:
            ``(batch, frames or 1, width)`` of the tokens' dtype, and ``(batch, frames)`` bool which frames have any
            token, zeros standing for the others; ``None`` if all have.
        """
        complete = bias is None and tokens.shape[1] == frames * each  # and then each at its place
        if self.keep_temporal and (held is None or complete):
            return torch.unflatten(tokens, 1, (frames, each)).mean(2), None
        if not self.keep_temporal and bias is None:
            return tokens.mean(1, keepdim=True), None
        wide = tokens if tokens.dtype == torch.float64 else tokens.float()
        weights = torch.ones_like(wide[..., :1]).mT if bias is None else bias[:, 0].to(wide.dtype).exp()
        if held is not None and self.keep_temporal:
            places = _places_by_frame(held, frames, tokens.shape[1]).to(wide.dtype)
            weights = places * (weights / places.sum(1, keepdim=True).clamp_min(1))
        totals = weights.sum(2, keepdim=True)
        shares = weights / torch.where(totals > 0, totals, 1.0)
        present = (totals > 0).squeeze(2) if self.keep_temporal else None
        return (shares @ wide).to(tokens.dtype), present


def _places_by_frame(held: Tensor, frames: int, tokens: int) -> Tensor:
    """Count for how many places of each frame each token stands: ``(batch, frames, tokens)`` int64."""
    frame = torch.arange(frames, device=held.device).repeat_interleave(held.shape[1] // frames)
    seats = frame * tokens + held.clamp_min(0)
    counts = held.new_zeros(held.shape[0], frames * tokens).scatter_add(1, seats, (held >= 0).to(held.dtype))
    return torch.unflatten(counts, 1, (frames, tokens))
