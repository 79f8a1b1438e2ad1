"""Colours that everybody can tell apart: one for each method, the same in all figures.

Source: Okabe and Ito 2008, "Color universal design"; for more than nine methods Tol 2021, "Colour schemes" (of muted,
light and dark).
"""

from __future__ import annotations

from collections.abc import Iterable

BLACK, ORANGE, SKY, GREEN, YELLOW = "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, RED, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"
INDIGO, WINE, OLIVE, BROWN, PINK, FOREST = "#332288", "#882255", "#999933", "#663333", "#FFAABB", "#225522"
MARKERS = "osD^vP*Xhp"

_FIXED = {
    "dense": BLACK,
    "shift": BLUE,
    "shift residual": SKY,
    "norm": ORANGE,
    "random": GREY,
    "cls attention": PURPLE,
    "mean attention": RED,
    "oracle free": GREEN,
    "mnn": INDIGO,
    "lowres": OLIVE,
}
_OTHERS = (GREEN, RED, BLACK, BLUE, YELLOW, SKY, PURPLE, ORANGE, GREY, INDIGO, WINE, OLIVE, BROWN, PINK, FOREST)


def colours_of(methods: Iterable[str]) -> dict[str, str]:
    """Choose a colour for each method; those that this toolkit knows always have the same one.

    No two have the same as long as there are no more than 15.
    """
    chosen = {method: _FIXED.get(method.replace("_", " "), "") for method in methods}
    free = [colour for colour in _OTHERS if colour not in chosen.values()] or list(_OTHERS)
    unknown = [method for method, colour in chosen.items() if not colour]
    return chosen | {method: free[place % len(free)] for place, method in enumerate(unknown)}
