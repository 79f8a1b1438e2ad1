"""Names that stand for objects elsewhere, imported when first asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from repshift.errors import UnknownNameError


class Registry:
    """A table of names and where their objects live.

    A target is either the object itself or a string ``"package.module:attribute"``, imported on first use, so that
    naming an object costs nothing: this is how the engine knows backbones without importing timm.

    Args:
        kind: What the names stand for, used in error messages.
        targets: Names and their targets.

    Example:
        >>> shapes = Registry("shape", {"half": "fractions:Fraction"})
        >>> shapes.register("whole", 1)
        >>> shapes.names(), "half" in shapes, shapes.get("half")(1, 2)
        (['half', 'whole'], True, Fraction(1, 2))
    """

    def __init__(self, kind: str, targets: dict[str, Any]) -> None:
        self.kind = kind
        self._targets = dict(targets)

    def register(self, name: str, target: Any) -> None:
        """Add a name; one that is taken raises :class:`UnknownNameError`, since silent replacement hides mistakes."""
        if not isinstance(name, str) or not name:
            raise UnknownNameError(f"A {self.kind} is registered under a name, got {name!r}. Give a string.")
        if isinstance(target, str) and target.count(":") != 1:
            raise UnknownNameError(
                f"{self.kind} {name!r} should stand at 'package.module:attribute', got {target!r}. Give that, or the "
                "object itself."
            )
        if name in self._targets:
            raise UnknownNameError(f"{self.kind} {name!r} is already registered. Choose another name.")
        self._targets[name] = target

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._targets

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self._targets)})"

    def names(self) -> list[str]:
        """List the names in the order of registration."""
        return list(self._targets)

    def name_of(self, thing: object) -> str | None:
        """Return the name that an object, or one equal to it, is registered under; ``None`` if there is none."""
        same = (
            name
            for name, target in self._targets.items()
            if target is thing or (type(target) is type(thing) and not isinstance(target, str) and target == thing)
        )
        return next(same, None)

    def get(self, name: str) -> Any:
        """Return the object behind a name, importing it if needed.

        Raises:
            UnknownNameError: If the name is not registered; the message has the closest ones.
        """
        if not isinstance(name, str) or name not in self._targets:
            raise UnknownNameError(f"Unknown {self.kind} {name!r}. {suggest(name, self._targets)}")
        target = self._targets[name]
        if isinstance(target, str):
            module, attribute = target.split(":")
            target = self._targets[name] = getattr(importlib.import_module(module), attribute)
        return target


def suggest(name: str, candidates: Iterable[str], shown: int = 5) -> str:
    """Say which known names come closest to an unknown one."""
    known = list(candidates)
    close = difflib.get_close_matches(str(name), known, n=shown, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    listed = ", ".join(repr(candidate) for candidate in known[: 2 * shown])
    return f"Known: {listed}{' and more' if len(known) > 2 * shown else ''}."
