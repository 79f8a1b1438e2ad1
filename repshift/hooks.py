"""Hooks that are attached together or not at all, and always removed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

When: TypeAlias = Literal["before", "after"]
# "before": hook(module, args, kwargs); "after": hook(module, args, output). What they return is ignored.
Hook: TypeAlias = tuple[nn.Module, When, Callable[..., None]]


@contextmanager
def attached(hooks: Iterable[Hook]) -> Iterator[None]:
    """Attach hooks while the context lasts; they see the forwards of this thread and of no other.

    Args:
        hooks: Modules, whether to be called before or after their forward, and what to call.

    If one cannot be attached, none stays; whatever happens inside, all are removed.
    """
    with ExitStack() as stack:
        for module, when, hook in hooks:
            if when == "before":
                handle = module.register_forward_pre_hook(_Observer(hook), with_kwargs=True)
            else:
                handle = module.register_forward_hook(_Observer(hook))
            stack.callback(handle.remove)
        yield


class _Observer:
    """A hook that only looks: it never replaces what a module takes or returns, and a copy of it sees nothing."""

    def __init__(self, hook: Callable[..., None] | None = None) -> None:
        self.hook = hook
        self.thread = threading.get_ident()

    def __call__(self, *arguments: Any) -> None:
        if torch.compiler.is_compiling():
            return  # what is compiled while somebody watches also runs when nobody does
        if self.hook is not None and threading.get_ident() == self.thread and not in_backward():
            self.hook(*arguments)

    def __reduce__(self) -> tuple[type[_Observer], tuple[()]]:
        return _Observer, ()


def in_backward() -> bool:
    """Say whether autograd is running: activation checkpointing then repeats forwards that were seen before."""
    return torch._C._current_graph_task_id() != -1


def detach_copies(model: nn.Module) -> None:
    """Remove the hooks of :func:`attached` from a copy that was made while the original was being watched."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Observer)]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
