"""Figures of a study: how the shift is distributed, who agrees with whom, what lies on the object, what matters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from repshift.analysis.output.palette import BLACK, BLUE, MARKERS, colours_of
from repshift.analysis.statistics.distributions import Distribution
from repshift.analysis.statistics.foreground import TOP
from repshift.analysis.statistics.removal import area
from repshift.analysis.statistics.study import Study

BANDS = ((0.05, 0.95, 0.2), (0.25, 0.75, 0.35))  # from and to which share, and how opaque
AGREEMENT = "PuOr_r"  # two hues that all can tell apart, and as light as paper where nothing agrees
STYLES = ("-", "--", ":", "-.")
DOTTED = ("random", "norm")  # controls, in all figures


def draw_distributions(study: Study) -> Figure:
    """Draw for each operation how its l2 shift is distributed from layer to layer, and so for the controls."""
    shown = [setting.name for setting in study.ranked if setting.distance in ("l2", None)]
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(3.1 * columns, 2.5 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, name in zip(axes.flat, shown, strict=False):
        layers = study.statistics[name].layers
        _draw_bands(axis, list(layers.values()))
        axis.set_title(name, fontsize=9)
        axis.set_xticks(range(len(layers)), [_short(layer) for layer in layers], fontsize=7)
        axis.set_xlabel(study.unit, fontsize=8)
        axis.set_ylabel(_unit(name), fontsize=8)
        axis.tick_params(axis="y", labelsize=7, which="both")
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    axes[0][0].legend(fontsize=7, frameon=False)
    figure.suptitle(f"all tokens of {study.images} images", fontsize=9)
    return figure


def _draw_bands(axis: Axes, distributions: Sequence[Distribution]) -> None:
    places = range(len(distributions))
    for low, high, opacity in BANDS:
        lower, upper = ([one.quantile(share) for one in distributions] for share in (low, high))
        label = f"{100 * low:.0f} to {100 * high:.0f} %"
        axis.fill_between(places, lower, upper, color=BLUE, alpha=opacity, linewidth=0, label=label)
    axis.plot(
        places, [one.quantile(0.5) for one in distributions], color=BLUE, marker="o", markersize=3, label="median"
    )
    axis.plot(places, [one.mean for one in distributions], color=BLACK, linestyle=":", linewidth=1, label="mean")
    lows, highs = ([one.quantile(share) for one in distributions] for share in (BANDS[0][0], BANDS[0][1]))
    if min(lows) > 0 and max(highs) / min(lows) > 20:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        axis.set_ylim(bottom=0)


def draw_agreement(study: Study) -> Figure:
    """Draw the rank correlation of all pairs of settings at some blocks and, below, that with the own one by layer."""
    settings = study.agreement.settings
    count = len(study.blocks)
    side = 0.24 * len(settings)
    figure = Figure(figsize=((side + 0.6) * count + 2.2, side + 2.2 + 3.2), layout="constrained")
    top, below = np.asarray(figure.subfigures(2, 1, height_ratios=[side + 2.2, 3.2]))
    axes = top.subplots(1, count, squeeze=False)[0]
    for axis, block in zip(axes, study.blocks, strict=True):
        _draw_matrix(axis, study, block, first=axis is axes[0])
    bar = top.colorbar(ScalarMappable(Normalize(-1, 1), AGREEMENT), ax=list(axes), shrink=0.7)
    bar.set_label("Spearman's rank correlation x 100 in the cells,\nmean over images", fontsize=8)
    _draw_agreement_by_layer(below.subplots(1, 1), study)
    return figure


def _draw_matrix(axis: Axes, study: Study, block: str, *, first: bool) -> None:
    settings, values = study.agreement.settings, study.agreement.matrix(block).numpy()
    axis.imshow(values, cmap=AGREEMENT, vmin=-1, vmax=1)
    for row, column in np.ndindex(*values.shape):
        if not math.isnan(values[row, column]):
            ink = "white" if abs(values[row, column]) > 0.6 else "black"
            text = f"{100 * values[row, column]:.0f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=5, color=ink)
    axis.set_xticks(range(len(settings)), settings, rotation=90, fontsize=7)
    axis.set_yticks(range(len(settings)), settings if first else [], fontsize=7)
    axis.set_title(block, fontsize=9)


def _draw_agreement_by_layer(axis: Axes, study: Study) -> None:
    settings, layers = study.agreement.settings, study.agreement.layers
    own = settings.index(study.own)
    turned = f"{study.own.split()[0]} cosine"
    shown = [
        setting.name
        for setting in study.ranked
        if setting.name != study.own and (setting.distance in ("l2", None) or setting.name == turned)
    ]
    colours, _ = _method_colours(study, shown)
    for place, name in enumerate(shown):
        values = [float(study.agreement.matrix(layer)[own, settings.index(name)]) for layer in layers]
        marker, style = MARKERS[place % len(MARKERS)], STYLES[place % len(STYLES)]  # curves may lie on each other
        axis.plot(values, style, color=colours[name], marker=marker, markersize=4, label=name)
    axis.axhline(0, color=BLACK, linewidth=0.6)
    axis.set_ylim(-1.05, 1.05)
    axis.set_xticks(range(len(layers)), [_short(layer) for layer in layers], fontsize=8)
    axis.set_xlabel(study.unit, fontsize=8)
    axis.set_ylabel(f"rank correlation\nwith {study.own}", fontsize=8)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_foreground(study: Study) -> Figure:
    """Draw by layer how often the top token, and which share of the top tokens, lies on the object."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(setting for setting, _ in study.foreground.tallies))
    colours, labels = _method_colours(study, names)
    titles = ("pointing game: the highest token", f"the highest {100 * TOP:.0f} % of the tokens")
    for axis, what, title in zip(axes, ("pointing", "top"), titles, strict=True):
        for place, name in enumerate(names):
            found = {layer: tally.summary() for (one, layer), tally in study.foreground.tallies.items() if one == name}
            shares = [100 * summary[what] for summary in found.values()]
            axis.plot(shares, color=colours[name], marker=MARKERS[place], markersize=4, label=labels[name])
        chances = [100 * summary["chance"] for summary in found.values()]
        axis.plot(chances, color=BLACK, linestyle="--", linewidth=1, label="share of all tokens")
        axis.set_xticks(range(len(found)), [_short(layer) for layer in found], fontsize=8)
        axis.set_xlabel(study.unit, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.set_ylim(0, 102)
    axes[0].set_ylabel("on the object, %", fontsize=8)
    axes[1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_removal(study: Study) -> Figure:
    """Draw what the model says while pixels go: one row a block, one column a way to take them."""
    removal = study.removal
    shares = [100 * share for share in removal.shares]
    rows = len(study.blocks)
    figure = Figure(figsize=(3 * len(removal.kinds), 2.2 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, len(removal.kinds), squeeze=False, sharex=True, sharey=True)
    names = [setting.name for setting in study.removed]
    colours, labels = _method_colours(study, names)
    for row, block in enumerate(study.blocks):
        for axis, kind in zip(axes[row], removal.kinds, strict=True):
            for name in names:
                values = removal.curve(
                    kind.name, name, study.chance[0] if name == "random" and block not in study.chance else block
                )
                label = f"{labels[name]}, {area(values, removal.shares):.2f}"
                style = ":" if name in DOTTED else "-"
                axis.plot(shares, [100 * value for value in values], style, color=colours[name], label=label)
            better = "higher" if kind.higher_is_better else "lower"
            axis.legend(fontsize=6, frameon=False, title=f"area ({better} is better)", title_fontsize=6)
            if row == 0:
                axis.set_title(kind.title, fontsize=8)
        axes[row][0].set_ylabel(f"{block}\nprobability or same class, %", fontsize=8)
    for axis, kind in zip(axes[-1], removal.kinds, strict=True):
        axis.set_xlabel("pixels shown, %" if kind.reversed else "pixels changed, %", fontsize=8)
    figure.suptitle(f"{removal.images} images; the class that the model gives the whole image", fontsize=9)
    return figure


def _method_colours(study: Study, names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Choose colours and labels: the study's own setting is the shift."""
    methods = {name: name.replace(study.own, "shift") for name in names}
    colours = colours_of(methods.values())
    labels = {name: f"{method} ({study.own})" if method == "shift" else method for name, method in methods.items()}
    return {name: colours[method] for name, method in methods.items()}, labels


def _short(layer: str) -> str:
    """Leave of blocks.3 the number."""
    end = layer.rpartition(".")[2]
    return end if end.isdigit() else layer


def _unit(name: str) -> str:
    if "attention" in name:
        return "attention received"
    return "norm" if name == "norm" else "shift, in units of the activations"
