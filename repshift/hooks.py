"""Hooks that are attached together or not at all, and always removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeAlias
from weakref import WeakSet

from torch import nn

When: TypeAlias = Literal["before", "after"]
# "before": hook(module, args, kwargs); "after": hook(module, args, output). What they return is ignored.
Hook: TypeAlias = tuple[nn.Module, When, Callable[..., None]]


@contextmanager
def attached(hooks: Iterable[Hook]) -> Iterator[None]:
    """Attach hooks while the context lasts.

    Args:
        hooks: Modules, whether to be called before or after their forward, and what to call.

    If one cannot be attached, none stays; whatever happens inside, all are removed.
    """
    with ExitStack() as stack:
        for module, when, hook in hooks:
            if when == "before":
                handle = module.register_forward_pre_hook(_observing(hook), with_kwargs=True)
            else:
                handle = module.register_forward_hook(_observing(hook))
            stack.callback(handle.remove)
        yield


def _observing(hook: Callable[..., None]) -> Callable[..., None]:
    def observe(*arguments: Any) -> None:
        hook(*arguments)  # torch would replace inputs or outputs by what a hook returns

    _own.add(observe)
    return observe


_own: WeakSet[Callable[..., None]] = WeakSet()


def detach_copies(model: nn.Module) -> None:
    """Remove the hooks of :func:`attached` from a copy that was made while the original was being watched."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if hook in _own]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
