"""What the shift of a model is like on some images: distributions, rank agreement, foreground, removal of pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from repshift import UnknownNameError
from repshift.analysis.statistics.distributions import ShiftStatistics
from repshift.analysis.statistics.foreground import TOP, Foreground
from repshift.analysis.statistics.rank_agreement import RankAgreement
from repshift.analysis.statistics.removal import Removal, area
from repshift.analysis.statistics.score_settings import (
    ScoreSetting,
    controls,
    foreground_settings,
    observe,
    own_setting,
    shift_settings,
)
from repshift.analysis.subjects.limits import check_blocks
from repshift.finding import require_structure

VERSION = 1  # of the layout of the file


class Study:
    """Everything that is measured, one batch after the other.

    Args:
        model: In evaluation mode, with a known backbone.
        blocks: Where pixels are removed and matrices drawn, counted from zero; by default the first, the middle and
            the last block.

    Raises:
        UnsupportedModelError: If no backbone knows the model.
        UnknownNameError: If a block does not exist, or is named twice.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[int] | None = None) -> None:
        structure = require_structure(model)
        self.model = model
        self.unit = structure.unit
        self.own = own_setting(structure).name
        self.ranked = [*shift_settings(structure), *controls(structure)]
        self.on_foreground = foreground_settings(structure)
        names = [site.name for site in structure.sites if structure.operation in site.operations]
        self.blocks = _chosen(names, blocks, structure.unit)
        self.statistics = {setting.name: ShiftStatistics() for setting in self.ranked}
        self.agreement = RankAgreement([setting.name for setting in self.ranked])
        self.foreground = Foreground()
        self.removal = Removal()
        self.images = 0

    @property
    def removed(self) -> list[ScoreSetting]:
        """The settings in whose order pixels are removed: the paper's and the controls."""
        return [setting for setting in self.on_foreground if not setting.residual]

    @property
    def chance(self) -> list[str]:
        """Where pixels are removed at random: stages have tokens of different sizes, blocks and layers have not."""
        return self.blocks if self.unit == "stage" else self.blocks[:1]

    def update(self, inputs: Tensor, masks: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            inputs: ``(images, channels, rows, columns)``, as the model takes them.
            masks: ``(images, rows, columns)`` bool, ``True`` on the object, if that is known.
        """
        both = list(dict.fromkeys([*self.ranked, *self.on_foreground]))
        observed = observe(self.model, inputs, both)
        for setting in self.ranked:
            self.statistics[setting.name].update(observed.scores[setting.name])
        self.agreement.update({setting.name: observed.scores[setting.name] for setting in self.ranked})
        if masks is not None:
            self.foreground.update({one.name: observed.maps[one.name] for one in self.on_foreground}, masks)
        self.images += len(inputs)

    def update_removal(self, inputs: Tensor, step: Callable[[], object] = lambda: None) -> None:
        """Take in a batch for the curves, which cost many forwards for each image; see :meth:`update`."""
        maps = observe(self.model, inputs, self.removed, self.blocks).maps
        chosen = {
            name: {block: layers[block] for block in (self.chance if name == "random" else self.blocks)}
            for name, layers in maps.items()
        }
        self.removal.update(self.model, inputs, chosen, step)

    def curves_for_each_batch(self) -> int:
        """Say how often :meth:`update_removal` reports."""
        return len(self.removal.kinds) * (len(self.blocks) * (len(self.removed) - 1) + len(self.chance))

    def measured(self) -> tuple[dict[str, ShiftStatistics], RankAgreement, Foreground, Removal, int]:
        """Return what was measured, without the model: what another process needs for :meth:`merge`."""
        return self.statistics, self.agreement, self.foreground, self.removal, self.images

    def merge(self, other: tuple[dict[str, ShiftStatistics], RankAgreement, Foreground, Removal, int]) -> None:
        """Take in what another process measured with the same model."""
        statistics, agreement, foreground, removal, images = other
        for name, of_setting in statistics.items():
            self.statistics[name].merge(of_setting)
        self.agreement.merge(agreement)
        self.foreground.merge(foreground)
        self.removal.merge(removal)
        self.images += images

    def results(self) -> dict[str, Any]:
        """Return all numbers as plain values, ``None`` where there is none."""
        return {
            "images": self.images,
            "setting": self.own,
            "distributions": {
                name: {layer: distribution.summary() for layer, distribution in of_setting.layers.items()}
                for name, of_setting in self.statistics.items()
            },
            "rank_agreement": {
                "settings": self.agreement.settings,
                "matrices": {layer: _plain(self.agreement.matrix(layer).tolist()) for layer in self.agreement.layers},
            },
            "foreground": {
                "top": TOP,
                "shares": _nested({key: tally.summary() for key, tally in self.foreground.tallies.items()}),
            },
            "removal": self._removal(),
        }

    def _removal(self) -> dict[str, Any]:
        kinds: dict[str, Any] = {}
        for kind, setting, layer in self.removal.sums:
            values = self.removal.curve(kind, setting, layer)
            curve = {"values": values, "area": area(values, self.removal.shares)}
            kinds.setdefault(kind, {}).setdefault(setting, {})[layer] = curve
        return {"images": self.removal.images, "shares": list(self.removal.shares), "curves": kinds}


def _chosen(names: Sequence[str], blocks: Sequence[int] | None, unit: str) -> list[str]:
    if blocks is None:
        blocks = sorted({0, len(names) // 2, len(names) - 1})
    for block in check_blocks(blocks):
        if not 0 <= block < len(names):
            raise UnknownNameError(
                f"There is no {unit} {block}: the model has {len(names)}, 0 to {len(names) - 1}. Choose among these "
                "(--blocks)."
            )
    return [names[block] for block in blocks]


def _nested(by_pair: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for (outer, inner), value in by_pair.items():
        nested.setdefault(outer, {})[inner] = _plain(value)
    return nested


def _plain(value: Any) -> Any:
    """Replace what JSON does not know: a number that is none is ``None``."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
