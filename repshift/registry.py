"""Names that stand for objects elsewhere, imported when first asked for; what is set otherwise than in these."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any

from repshift.errors import RecipeError, UnknownNameError, first_line


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
        # what is not imported yet cannot be equal, unless it stands where this thing is from
        home = getattr(thing, "__module__", None)
        for name, target in list(self._targets.items()):
            if isinstance(target, str) and target.partition(":")[0] == home:
                target = self.get(name)
            if target is thing or (type(target) is type(thing) and not isinstance(target, str) and target == thing):
                return name
        return None

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


def written(registry: Registry, value: Any) -> Any:
    """Write an object down: by its name, or by the name of one of its kind and what is set otherwise.

    Raises:
        RecipeError: If it has no name, or something is set that could not be read again.
    """
    if value is None or isinstance(value, str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        for name in registry.names():
            other = registry.get(name)
            if type(other) is type(value):
                plain = {"name": name, **_differences(value, other)}
                with suppress(RecipeError, TypeError, ValueError, RecursionError):
                    if read(registry, json.loads(json.dumps(plain))) == value:
                        return plain
                raise RecipeError(
                    f"{value!r} cannot be written down, since it would not be read back as it is. Register it under a "
                    f"name of its own: repshift.{registry.kind.upper()}S.register('name', ...)."
                )
    raise RecipeError(
        f"A recipe with {value!r} cannot be written down, since that has no name. Give it one: "
        f"repshift.{registry.kind.upper()}S.register('name', ...)."
    )


def read(registry: Registry, said: Mapping[str, Any]) -> Any:
    """Make what :func:`written` wrote down with settings.

    Raises:
        RecipeError: If there is nothing of the name, or it has no such settings.
    """
    kind, name = registry.kind, said.get("name")
    if not isinstance(name, str) or name not in registry:
        raise RecipeError(f"A {kind} with settings has a name, one of {registry.names()}, got {dict(said)!r}.")
    try:
        return _with_settings(registry.get(name), {key: said[key] for key in said if key != "name"})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"The {kind} {dict(said)!r} cannot be made: {first_line(error)}") from error


def _settings(thing: Any) -> dict[str, Any]:
    is_value = is_dataclass(thing) and not isinstance(thing, type)
    return {each.name: getattr(thing, each.name) for each in fields(thing) if each.init} if is_value else {}


def _differences(value: Any, other: Any) -> dict[str, Any]:
    """List what is set otherwise, also inside of settings that are dataclasses of the same kind."""
    default = _settings(other)
    return {
        name: _differences(own, default[name]) if _settings(own) and type(own) is type(default[name]) else _plain(own)
        for name, own in _settings(value).items()
        if own != default[name]
    }


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    return {name: _plain(own) for name, own in _settings(value).items()} or value


def _with_settings(registered: Any, given: Mapping[str, Any]) -> Any:
    default = _settings(registered)
    if unknown := [name for name in given if name not in default]:
        raise TypeError(f"it has no setting {unknown[0]!r}")
    return (
        registered
        if not given
        else replace(registered, **{name: _like(default[name], value, name) for name, value in given.items()})
    )


def _like(default: Any, plain: Any, name: str) -> Any:
    """Give a setting the form that it has by default, which JSON may not have."""
    if _settings(default) and isinstance(plain, Mapping):
        return _with_settings(default, plain)
    if isinstance(default, tuple) and isinstance(plain, list):
        likes = default + default[-1:] * len(plain) if default else plain
        return tuple(_like(like, each, name) for like, each in zip(likes, plain, strict=False))
    kinds = (bool, str, (int, float), Mapping)
    for kind in kinds:
        if isinstance(default, kind) and plain is not None:
            if not isinstance(plain, kind) or isinstance(plain, bool) != isinstance(default, bool):
                raise TypeError(f"{name} is such as {default!r}, got {plain!r}")
            break
    return plain


def suggest(name: str, candidates: Iterable[str], shown: int = 5) -> str:
    """Say which known names come closest to an unknown one."""
    known = list(candidates)
    close = difflib.get_close_matches(str(name), known, n=shown, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    listed = ", ".join(repr(candidate) for candidate in known[: 2 * shown])
    return f"Known: {listed}{' and more' if len(known) > 2 * shown else ''}."


def named(registry: Registry, given: Any) -> Any:
    """Return the name that an object is registered under, or the object itself.

    Raises:
        UnknownNameError: If it is a name that is not registered, or nothing that could be meant.
    """
    if isinstance(given, str):
        registry.get(given)
        return given
    name = registry.name_of(given)
    if name is not None:
        return name
    if not callable(given) and not hasattr(given, "choose"):
        raise UnknownNameError(f"Unknown {registry.kind} {given!r}. Give one of {registry.names()}, or an object.")
    return given


def object_of(registry: Registry, given: Any) -> Any:
    """Return the object behind a name, or the object itself."""
    return registry.get(given) if isinstance(given, str) else given
