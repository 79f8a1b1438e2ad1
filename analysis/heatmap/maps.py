"""Maps of the representation shift as arrays, ready to be drawn.

::

    heatmaps = heatmap_array(model, input_tensor, normalisation="map")
    show_map_on_image(image, heatmaps["blocks.3"][0])

No gradient, no target layer and no function that reshapes tokens is needed: one forward is watched, and the engine
knows where the tokens stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repshift import DataError, ShiftTracker, UnknownNameError, UnsupportedModelError
from repshift.analysis.heatmap.shown_blocks import chosen_names
from repshift.analysis.output.overlays import kept_mask, show_map_on_image
from repshift.attention_scores import AttentionScore
from repshift.errors import RepshiftError, first_line
from repshift.finding import find_structure_if_served
from repshift.participants import cuts
from repshift.registry import suggest
from repshift.scores import Score

__all__ = [
    "NORMALISATIONS",
    "Heatmaps",
    "attention_score",
    "heatmap_array",
    "kept_mask",
    "shift_maps",
    "show_map_on_image",
    "token_groups",
]

# The range of the values, in words
NORMALISATIONS = {
    "none": "none: values as measured",
    "map": "of each map by itself the smallest value is 0 and the largest 1",
    "block": "of each block's maps of all images together the smallest value is 0 and the largest 1",
    "shared": "of all maps together the smallest value is 0 and the largest 1",
}
MEASURES: dict[object, tuple[str, str]] = {
    "cls_attention": ("attention", "attention received (class token)"),
    "mean_attention": ("attention", "attention received (mean of all tokens)"),
    "norm": ("norm", "norm of the token"),
}


@dataclass(frozen=True, eq=False)
class Heatmaps(Mapping[str, NDArray[np.float32]]):
    """Maps by block name, ``heatmaps["blocks.3"]``, in the order asked for.

    Attributes:
        arrays: ``(images, rows, columns)`` float32 for each block or module, of videos ``(videos, frames, rows,
            columns)``; NaN where a pruned model had dropped the token before.
        measure: What they show in one word, ``shift`` or ``attention``.
        unit: What is measured, and how: ``shift (mlp, l2)``.
        normalisation: A sentence on the range of the values, one of :data:`NORMALISATIONS`.
    """

    arrays: Mapping[str, NDArray[np.float32]]
    measure: str
    unit: str
    normalisation: str

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self.arrays:
            raise UnknownNameError(f"There is no map of {name!r}. {suggest(name, self.arrays)}")
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __contains__(self, name: object) -> bool:
        return name in self.arrays


def shift_maps(
    model: nn.Module,
    images: Tensor,
    sites: Sequence[str],
    *,
    operation: str | None = None,
    distance: str | Score = "l2",
    residual: bool = False,
    score: str | Score | AttentionScore | None = None,
) -> dict[str, Tensor]:
    """Measure the shift across some sites, or another score, and lay it out.

    Args:
        model: In evaluation mode, dense or pruned.
        images: ``(images, channels, rows, columns)`` float32.
        sites: Names of blocks or other modules, see :class:`repshift.ShiftTracker`.
        operation: Whose change, see :class:`repshift.ShiftTracker`; by default the model's own (``"mlp"`` of a
            transformer, ``"stage"`` of a convolutional network, ``"mixer"`` of a state space model).
        distance: ``"l2"``, ``"l1"``, ``"cosine"`` or a function.
        residual: Compare ``x + F(x)`` with ``x`` instead of ``F(x)`` with ``x``.
        score: Another score instead of the shift, see :class:`repshift.ShiftTracker`.

    Returns:
        For each site ``(images, rows, columns)`` float32 in the units of the score, not normalised; NaN where a
        pruned model had dropped the token.

    Raises:
        DataError: If the model does not take such images, or what it makes of them is not finite.
        RepresentationError: If what it takes instead is known.
    """
    tracker = ShiftTracker(model, sites, operation=operation, distance=distance, residual=residual, score=score)
    try:
        with tracker, torch.inference_mode():
            model(images)
    except RepshiftError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        raise DataError(
            f"{type(model).__name__} does not take images of shape {tuple(images.shape)} and {images.dtype} "
            f"({first_line(error)}). Preprocess them for it, as repshift.analysis.samples.images.load_images does."
        ) from error
    for name in sites:
        # a blank place means that a token was dropped, so nothing else may be blank
        if not bool(tracker.shifts[name].isfinite().all()):
            raise DataError(f"What was measured at {name} is not finite. Check the images and the weights.")
    return {name: tracker.maps[name] for name in sites}


def heatmap_array(
    model: nn.Module,
    input_tensor: Tensor,
    sites: str | Iterable[str] | None = None,
    *,
    blocks: Sequence[int] | None = None,
    operation: str | None = None,
    distance: str | Score = "l2",
    residual: bool = False,
    score: str | Score | AttentionScore | None = None,
    normalisation: str = "none",
) -> Heatmaps:
    """Measure maps of some images: how much each layer changes each token, or another score.

    Args:
        model: In evaluation mode, dense or pruned.
        input_tensor: ``(images, channels, rows, columns)`` floats, preprocessed as the model expects; of a model of
            videos ``(videos, frames, channels, rows, columns)``.
        sites: Names or globs of any modules, in the model's order; by default, see ``blocks``.
        blocks: Blocks counted from zero instead of names. By default all stages of a convolutional network, the
            first, the middle and the last block of another model.
        operation: Whose change, see :class:`repshift.ShiftTracker`.
        distance: ``"l2"``, ``"l1"``, ``"cosine"`` or a function.
        residual: Compare ``x + F(x)`` with ``x`` instead of ``F(x)`` with ``x``.
        score: ``"cls_attention"`` or ``"mean_attention"`` for how much attention the tokens receive, ``"norm"``, or a
            function; by default the shift.
        normalisation: ``"none"``; ``"map"``, ``"block"`` or ``"shared"`` bring the values to 0..1, see
            :data:`NORMALISATIONS`.

    Raises:
        UnknownNameError: If a name or a block does not exist.
        DataError: If the input is no batch of images.
        UnsupportedModelError: If the model has no blocks, or no attention that could be read.

    Example:
        >>> import torch
        >>> from repshift import load_model
        >>> heatmaps = heatmap_array(load_model("tiny_vit", pretrained=True), torch.rand(2, 3, 64, 64), blocks=[0, 5])
        >>> {name: values.shape for name, values in heatmaps.items()}
        {'blocks.0': (2, 16, 16), 'blocks.5': (2, 16, 16)}
        >>> heatmaps.unit
        'shift (mlp, l2)'
    """
    if normalisation not in NORMALISATIONS:
        raise UnknownNameError(f"Unknown normalisation {normalisation!r}. {suggest(normalisation, NORMALISATIONS)}")
    _check_batch(input_tensor)
    names = chosen_names(model, input_tensor, sites, blocks, operation)
    maps = shift_maps(
        model, input_tensor, names, operation=operation, distance=distance, residual=residual, score=score
    )
    arrays = {name: values.cpu().numpy() for name, values in maps.items()}
    measure, unit = _measured(model, names, operation, distance, residual, score)
    if normalisation != "none":
        arrays, unit = _normalised(arrays, normalisation), f"{unit}, scaled to 0..1"
    return Heatmaps(arrays, measure, unit, NORMALISATIONS[normalisation])


def attention_score(model: nn.Module) -> str:
    """Say which attention can be shown beside a model's shift.

    Returns:
        ``"cls_attention"``, or ``"mean_attention"`` of a model without a class token.

    Raises:
        UnsupportedModelError: If the model has no attention maps, or where they are is not known.
    """
    structure = find_structure_if_served(model)
    heads = next((site.heads for site in structure.sites if site.heads), None) if structure else None
    if heads is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no attention that could be shown: its blocks have no attention map, or where "
            "their queries and keys are is not known. Leave out attention=True (--attention)."
        )
    return "cls_attention" if heads.class_token else "mean_attention"


def token_groups(model: nn.Module, input_tensor: Tensor, *, operation: str | None = None) -> dict[str, Tensor]:
    """Say which token of a pruned model each place is part of: a kept one, or the one that it was merged into.

    Args:
        model: A pruned model in evaluation mode.
        input_tensor: ``(images, channels, rows, columns)`` floats.
        operation: By whose change it was pruned, if not the model's own.

    Returns:
        For each block that drops or merges some ``(images, rows, columns)`` int64 on the grid of the dense model
        there: the number of the token among those left, -1 where it was dropped.

    Raises:
        UnsupportedModelError: If the model drops nothing.
    """
    names = list(cuts(model))
    if not names:
        raise UnsupportedModelError(
            f"This {type(model).__name__} drops nothing, so there is nothing kept to show. Prune it first: "
            "ShiftTracker(model).prune(schedule) (--drop SCHEDULE)."
        )
    with ShiftTracker(model, names, operation=operation) as tracker, torch.inference_mode():
        model(input_tensor)
    return {name: _groups(tracker, name).reshape(tracker.maps[name].shape) for name in names}


def _groups(tracker: ShiftTracker[nn.Module], name: str) -> Tensor:
    if name in tracker.joined:
        return tracker.joined[name]
    kept, places = tracker.kept[name], tracker.maps[name].flatten(1).shape
    numbers = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    return torch.full(places, -1, device=kept.device).scatter(1, kept, numbers)


def _check_batch(input_tensor: Tensor) -> None:
    if not isinstance(input_tensor, Tensor) or input_tensor.ndim not in (4, 5) or not len(input_tensor):
        got = f"shape {tuple(input_tensor.shape)}" if isinstance(input_tensor, Tensor) else type(input_tensor).__name__
        raise DataError(
            "input_tensor is (images, channels, rows, columns), or (videos, frames, channels, rows, columns), got "
            f"{got}. Give one image as image.unsqueeze(0)."
        )


def _measured(
    model: nn.Module,
    names: Sequence[str],
    operation: str | None,
    distance: str | Score,
    residual: bool,
    score: str | Score | AttentionScore | None,
) -> tuple[str, str]:
    """Name what is measured, in one word and as the unit of a colour bar."""
    if score is not None and score != "shift":
        word = score if isinstance(score, str) else getattr(score, "__name__", type(score).__name__)
        return MEASURES.get(word, (word, word))
    structure = find_structure_if_served(model)
    # other modules are watched at their own input and output, whatever the operation
    known = structure is not None and {site.name for site in structure.sites} >= set(names)
    words = [operation or structure.operation] if structure is not None and known else []
    words.append(distance if isinstance(distance, str) else getattr(distance, "__name__", type(distance).__name__))
    return "shift", f"shift ({', '.join([*words, *(['residual'] if residual else [])])})"


def _normalised(arrays: Mapping[str, NDArray[np.float32]], how: str) -> dict[str, NDArray[np.float32]]:
    """Bring values to 0..1, so that the smallest and largest of a group are its ends; flat groups become 0."""
    axes = (-2, -1) if how == "map" else None
    lows = {name: np.min(a, axes, keepdims=True, initial=np.inf, where=~np.isnan(a)) for name, a in arrays.items()}
    highs = {name: np.max(a, axes, keepdims=True, initial=-np.inf, where=~np.isnan(a)) for name, a in arrays.items()}
    if how == "shared":
        lows = dict.fromkeys(lows, np.min(list(lows.values())))
        highs = dict.fromkeys(highs, np.max(list(highs.values())))
    spans = {name: np.where(highs[name] > lows[name], highs[name] - lows[name], 1) for name in arrays}
    return {name: ((values - lows[name]) / spans[name]).astype(np.float32) for name, values in arrays.items()}
