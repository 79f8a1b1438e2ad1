"""Vision Mamba in plain PyTorch: a bidirectional state space model on image patches, compatible with its checkpoints.

Source: Zhu et al. 2024, "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
arXiv 2401.09417, section 3 and algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from repshift.backbones.scan import IMPLEMENTATIONS
from repshift.backbones.vim_embedding import ClassPosition, PatchEmbed, class_index, resampled_positions
from repshift.backbones.vim_mixer import Mixer, at_least_float32
from repshift.errors import UnknownNameError
from repshift.registry import suggest


class State(NamedTuple):
    """What passes between layers.

    Attributes:
        hidden: What the last layer computed, ``(batch, length, channels)``: the change it makes to the stream.
        residual: The stream that it started from, same shape, float32; ``None`` before the first layer.
        protected: Where the class token stands, ``(batch, 1)`` int64: for each image its own place, since pruning may
            take different numbers of patches before it.
        steps: Step sizes that the last layer's two scans took, each ``(batch, length, inner channels)``.
        gaps: Step sizes of dropped tokens, to be taken before each token of the two scans; ``None`` for zero.
    """

    hidden: Tensor
    residual: Tensor | None
    protected: Tensor
    steps: tuple[Tensor, Tensor] | None = None
    gaps: tuple[Tensor, Tensor] | None = None

    def aligned(self, positions: Tensor) -> State:
        """Take the steps of the tokens that are about to be dropped over to those that the scans reach next.

        Args:
            positions: ``(batch, kept)`` int64, ascending: which tokens will stay.

        Returns:
            The whole state, in which the kept tokens have the right gaps.
        """
        if self.steps is None:
            return self
        batch, length = self.hidden.shape[:2]
        stays = torch.zeros(batch, length, dtype=torch.int64, device=positions.device).scatter(1, positions, 1)
        behind = stays.cumsum(1)
        before = behind - stays
        last = positions.shape[1] - 1
        # the next kept token in the order of each scan; behind the last one nothing is left to decay
        targets = (
            (positions.gather(1, before.clamp(max=last)), (stays == 0) & (before <= last)),
            (positions.gather(1, (behind - 1).clamp(min=0)), (stays == 0) & (behind > 0)),
        )
        gaps = []
        for index, (target, moves) in enumerate(targets):
            own = torch.zeros_like(self.steps[index]) if self.gaps is None else self.gaps[index]
            moved = torch.where(moves.unsqueeze(2), self.steps[index] + own, 0.0)
            gaps.append(own.scatter_add(1, target.unsqueeze(2).expand_as(moved), moved))
        return State(self.hidden, self.residual, self.protected, self.steps, (gaps[0], gaps[1]))


class Layer(nn.Module):
    """Add, normalise, mix: what the mixer returns is the change that the layer makes to the residual stream."""

    def __init__(self, mixer: Mixer, channels: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=1e-5)
        self.mixer = mixer
        self.drop_path = _drop_path(drop_path)

    def forward(self, state: State) -> State:
        """Run the layer on the state of the one before."""
        residual = add_to_stream(self.drop_path(state.hidden), state.residual)
        hidden, steps = self.mixer(self.norm(residual.to(self.norm.weight.dtype)), state.gaps)
        return State(hidden, residual, state.protected, steps, state.gaps)


class VisionMamba(nn.Module):
    """Vision Mamba: patches in row-major order, a class token among them, layers of bidirectional scans.

    Args:
        img_size: Rows and columns of the images in pixels, or one number for both.
        patch_size: Pixels a side of a patch.
        stride: Pixels between patches; ``None`` for patches side by side.
        in_chans: Channels of the images.
        num_classes: Size of the answer; 0 for the class token's features.
        embed_dim: Channels of the tokens.
        depth: Number of layers.
        d_state: States a channel of the scan.
        d_conv: Width of the causal convolution.
        expand: Inner channels by channels.
        class_position: Where the class token stands: ``"middle"``, behind half of the patches (the published
            checkpoints), or ``"head"``, before them.
        halve: Take the mean of both directions (the published checkpoints) instead of their sum.
        drop_path_rate: Stochastic depth while training, rising linearly from layer to layer.
        scan: Implementation of the scan, see :func:`repshift.backbones.scan.selective_scan`.
        embed_layer: Another patch embedding: called with ``img_size``, ``patch_size``, ``in_chans`` and ``embed_dim``,
            with the attributes ``grid_size`` and ``num_patches``.

    Raises:
        UnknownNameError: If the class position or the implementation does not exist.

    Source: arXiv 2401.09417; the names and shapes of the parameters are those of its published checkpoints.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        class_position: ClassPosition = "middle",
        halve: bool = True,
        drop_path_rate: float = 0.0,
        scan: str = "auto",
        embed_layer: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        if class_position not in ("head", "middle"):
            raise UnknownNameError(f"The class token stands at 'head' or 'middle', got {class_position!r}.")
        if scan not in IMPLEMENTATIONS:
            raise UnknownNameError(
                f"Unknown implementation of the selective scan {scan!r}. {suggest(scan, IMPLEMENTATIONS)}"
            )
        self.num_classes, self.num_features, self.embed_dim = num_classes, embed_dim, embed_dim
        embed = embed_layer or partial(PatchEmbed, stride=stride or patch_size)
        self.patch_embed = embed(img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim)
        patches = self.patch_embed.num_patches
        self.class_position = class_position
        self.class_index = class_index(patches, class_position)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, embed_dim))
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.layers = nn.ModuleList(
            Layer(Mixer(embed_dim, d_state, d_conv, expand, halve, scan), embed_dim, rate)
            # the change that enters a layer is the one before's
            for rate in [0.0, *rates][:depth]
        )
        self.drop_path = _drop_path(drop_path_rate)
        self.norm_f = nn.RMSNorm(embed_dim, eps=1e-5)
        self.head = self._classifier(num_classes)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        """Classify images ``(batch, channels, rows, columns)``; returns ``(batch, num_classes)``."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the class token's features, ``(batch, channels)``."""
        state = self._embedded(images)
        for layer in self.layers:
            state = layer(state)
        stream = add_to_stream(self.drop_path(state.hidden), state.residual)
        # only the class token is read, and the norm is each token's own
        where = state.protected.unsqueeze(-1).expand(-1, -1, stream.shape[-1])
        features: Tensor = self.norm_f(stream.gather(1, where).squeeze(1).to(self.norm_f.weight.dtype))
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify features ``(batch, channels)``; with ``pre_logits`` return them as they are."""
        answers: Tensor = features if pre_logits else self.head(features)
        return answers

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size: the table of positions is resampled, and the class token finds its new place.

        Args:
            img_size: Rows and columns in pixels, or one number for both.

        Raises:
            RepresentationError: If not even one patch fits into them.
        """
        old = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size=img_size)
        grid = rows, columns = self.patch_embed.grid_size
        if grid != old:
            table = resampled_positions(self.pos_embed.detach(), grid, old, self.class_position)
            self.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)
        self.class_index = class_index(rows * columns, self.class_position)

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; the class token is always what it reads."""
        self.num_classes = num_classes
        self.head = self._classifier(num_classes).to(self.cls_token.device, self.cls_token.dtype)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that optimisers should not let decay, beside biases and norms."""
        ends = ("A_log", "A_b_log", ".D", ".D_b")
        return {"cls_token", "pos_embed"} | {name for name, _ in self.named_parameters() if name.endswith(ends)}

    def _classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def _embedded(self, images: Tensor) -> State:
        patches = self.patch_embed(images)
        index = self.class_index
        token = self.cls_token.expand(patches.shape[0], -1, -1)
        # the class token's row of the table of positions is where the token stands
        tokens = torch.cat([patches[:, :index], token, patches[:, index:]], dim=1) + self.pos_embed
        protected = patches.new_full((patches.shape[0], 1), index, dtype=torch.int64)
        return State(tokens, None, protected)

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            for layer in self.layers:
                # each layer adds to the stream, so their sum keeps its size (GPT-2's initialisation)
                layer.mixer.out_proj.weight /= math.sqrt(len(self.layers))  # type: ignore[union-attr, operator]


def checkpoint_filter_fn(weights: dict[str, Tensor], model: VisionMamba) -> dict[str, Tensor]:
    """Fit weights of another image size to a model, under timm's name for it; the checkpoint's grid is a square.

    Args:
        weights: Of the same model; ``pos_embed`` is ``(1, patches + 1, channels)`` of any number of patches.
        model: Has the size that is wanted.
    """
    table = resampled_positions(weights["pos_embed"], model.patch_embed.grid_size, None, model.class_position)
    return {**weights, "pos_embed": table}


@torch.fx.wrap
def add_to_stream(change: Tensor, stream: Tensor | None) -> Tensor:
    """Add a layer's change to the stream, ``(batch, length, channels)`` both, which is float32 at least."""
    change = at_least_float32(change)
    return change if stream is None else stream + change


def _drop_path(rate: float) -> nn.Module:
    if not rate:
        return nn.Identity()
    from timm.layers import DropPath

    return DropPath(rate)
