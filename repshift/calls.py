"""The arguments of one forward of a module, as they were given and by their names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from repshift.errors import RepresentationError


@dataclass(frozen=True, eq=False)
class Call:
    """What a module was called with.

    Attributes:
        args: What was given by position.
        kwargs: What was given by name.
        names: The forward's parameters that can be given by position, in order.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    names: tuple[str, ...]

    @property
    def first(self) -> Any:
        """The value of the first parameter, whether it was given by position or by name.

        Raises:
            RepresentationError: If the module was called without any.
        """
        if self.args:
            return self.args[0]
        for name in (*self.names, *self.kwargs):
            if name in self.kwargs:
                return self.kwargs[name]
        raise RepresentationError(
            "A module was called without an input, so there is nothing to watch. Choose another one."
        )

    def with_first(self, value: Any) -> Call:
        """Return the call with another value for what :attr:`first` returns."""
        if self.args:
            return Call((value, *self.args[1:]), self.kwargs, self.names)
        name = next(name for name in (*self.names, *self.kwargs) if name in self.kwargs)
        return Call(self.args, {**self.kwargs, name: value}, self.names)

    def get(self, name: str) -> Any:
        """Return what was given for a parameter; ``None`` if nothing was."""
        if name in self.kwargs:
            return self.kwargs[name]
        if name in self.names and self.names.index(name) < len(self.args):
            return self.args[self.names.index(name)]
        return None

    def replaced(self, name: str, value: Any) -> Call:
        """Return the call with another value for one parameter, which goes where it was given, or else by name."""
        if name not in self.kwargs and name in self.names:
            place = self.names.index(name)
            if place < len(self.args):
                return Call((*self.args[:place], value, *self.args[place + 1 :]), self.kwargs, self.names)
        return Call(self.args, {**self.kwargs, name: value}, self.names)


def positional_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """List the parameters of a forward that can be given by position; those of a method without ``self``."""
    parameters = inspect.signature(forward).parameters.values()
    return tuple(each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD))
