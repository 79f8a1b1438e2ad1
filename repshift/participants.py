"""Modules that take part in pruning: a generated subclass of their own class, with roles to play.

As ``torch.nn.utils.parametrize`` does it. Hooks would not do: ``torch.compile`` does not guard them, so a hooked copy
of a model that was compiled before would silently run the dense graph. Subclasses and their attributes are guarded,
leave the names of modules and keys of ``state_dict`` alone, pickle and export.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial, wraps
from types import FunctionType
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from repshift.arriving import Explain
from repshift.calls import Call, positional_names
from repshift.images import refuse_symbolic_tracing
from repshift.kernel_calls import UseKernel
from repshift.reading import ReadOnly
from repshift.resizing import ReadResampled
from repshift.roles import Cut, Role, Surrounding, TakeImages
from repshift.travelling import Follow

Played = TypeVar("Played")


class Participant(nn.Module):
    """Mixed into the class of every module that takes part in pruning."""

    repshift_roles: tuple[Role, ...]
    repshift_names: ClassVar[tuple[str, ...]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward and play its roles around it."""
        roles, failed = self.repshift_roles, True
        if not isinstance(args, tuple):  # torch.fx hands in a proxy for all of them
            refuse_symbolic_tracing()
        try:
            call = Call(args, kwargs, self.repshift_names)
            for role in roles:
                call = role.enter(call)
            other, kernel = _playing(roles, ReadOnly), _playing(roles, UseKernel)
            own = super().forward if other is None else partial(other.run, self)
            output = own(*call.args, **call.kwargs) if kernel is None else kernel.run(own, *call.args, **call.kwargs)
            for role in roles:
                output = role.leave(output)
            failed = False
            return output
        finally:
            for role in roles:
                role.close(failed)

    def extra_repr(self) -> str:
        """Say what is dropped here, and by what attention is computed."""
        cuts = [role.words for role in self.repshift_roles if isinstance(role, Cut)]
        kernels = [f"attention by {role.kernel}" for role in self.repshift_roles if isinstance(role, UseKernel)]
        return ", ".join(filter(None, [super().extra_repr(), *cuts, *kernels]))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # the generated class cannot be found by name, so rebuild it from the module's own class
        return _rebuild, (own_class(self), *_kind_of(self.repshift_roles)), dict(vars(self))


def _playing(roles: tuple[Role, ...], kind: type[Played]) -> Played | None:
    """Return the role of a kind, if it is played; a loop, since older versions of dynamo know no `next(..., None)`."""
    for role in roles:
        if isinstance(role, kind):
            return role
    return None


class Receiver(Participant):
    """Mixed into the class of a module whose errors can be explained: it takes images, or needs all tokens."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run as any participant; say what an error comes of, and refuse images that do not fit what stands behind."""
        try:
            output = super().forward(*args, **kwargs)
        except Exception as error:
            for role in self.repshift_roles:
                if isinstance(role, (TakeImages, Explain)):
                    role.explain(error, Call(args, kwargs, self.repshift_names), self)
            raise
        for role in self.repshift_roles:
            if isinstance(role, TakeImages) and role.images is not None:
                role.images.require_tokens(self, output)
        return output


def take_part(module: nn.Module, roles: tuple[Role, ...]) -> None:
    """Let a module play roles, beside those that it plays already."""
    roles = (*(module.repshift_roles if isinstance(module, Participant) else ()), *roles)
    module.__class__ = _participant(own_class(module), *_kind_of(roles))
    module.repshift_roles = roles  # type: ignore[assignment]  # a plain attribute, neither tensor nor module


def take_leave(module: nn.Module) -> None:
    """Make a module what it was before it took part."""
    if isinstance(module, Participant):
        own = own_class(module)
        del module.repshift_roles
        object.__setattr__(module, "__class__", own)


def with_kernel(module: nn.Module, run: Callable[..., Any], *args: Any) -> Any:
    """Run what computes a module's attention in its place, by the kernel that was chosen for the module."""
    kernel = _playing(module.repshift_roles, UseKernel) if isinstance(module, Participant) else None
    return run(*args) if kernel is None else kernel.run(run, *args)


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module has, or had before it took part in pruning."""
    line: tuple[type[nn.Module], ...] = type(module).__mro__
    return line[line.index(Participant) + 1] if isinstance(module, Participant) else line[0]


def participants(model: nn.Module) -> Iterator[tuple[str, Participant]]:
    """List the modules of a model that take part in pruning, by name."""
    for name, module in model.named_modules():
        if isinstance(module, Participant):
            yield name, module


def takes_part_in_pruning(model: nn.Module) -> bool:
    """Say whether any module plays a role other than computing its attention by one kernel."""
    roles = (role for _, module in participants(model) for role in module.repshift_roles)
    return any(not isinstance(role, UseKernel) for role in roles)


def cuts(model: nn.Module) -> dict[str, Cut]:
    """List where a pruned model drops tokens, by module name; empty for a dense model."""
    return {
        name: role for name, module in participants(model) for role in module.repshift_roles if isinstance(role, Cut)
    }


_participants: dict[tuple[type[nn.Module], bool, tuple[str, ...], tuple[str, ...], tuple[str, ...]], type[nn.Module]]
_participants = {}


def _kind_of(roles: tuple[Role, ...]) -> tuple[bool, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Say what a subclass is generated for: taking images, resampled tables, methods surrounded, methods followed."""
    receives = any(isinstance(role, (TakeImages, Explain)) for role in roles)
    tables = tuple(role.table for role in roles if isinstance(role, ReadResampled))
    methods = tuple(name for role in roles if isinstance(role, Surrounding) for name in role.methods)
    builds = tuple(role.companion.argument for role in roles if isinstance(role, Follow))
    return receives, tables, methods, builds


def _participant(
    base: type[nn.Module],
    receives: bool,
    tables: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
    builds: tuple[str, ...] = (),
) -> type[nn.Module]:
    """Generate the subclass, once for each class, so that compiled code recognises it."""
    kept = base, receives, tables, methods, builds
    if kept not in _participants:
        # the base's full name, by which libraries look classes up; not torch's, whose layers dynamo may take for leaves
        module = __name__ if base.__module__.startswith("torch.") else base.__module__
        own: dict[str, Any] = {"__module__": module, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        own["repshift_names"] = positional_names(base.forward)[1:]
        kind = Receiver if receives else Participant
        own["forward"] = _forward_of(kind, base)
        own |= {table: _resampled(table) for table in tables}  # a property goes before torch's own look-up
        own |= {method: _followed(getattr(base, method)) for method in builds}
        own |= {method: _surrounded(method, getattr(base, method)) for method in methods}
        # of two threads that come here at once, the first one's class is everybody's
        _participants.setdefault(kept, type(base.__name__, (kind, base), own))
    return _participants[kept]


def _resampled(table: str) -> property:
    """Make the attribute that stands in front of a parameter, as ``torch.nn.utils.parametrize`` does it."""

    def read(module: Participant) -> Tensor | None:
        parameter = module._parameters[table]
        for role in module.repshift_roles:
            if isinstance(role, ReadResampled) and role.table == table and parameter is not None:
                return role.resample(parameter)
        return parameter

    return property(read)


def _forward_of(kind: type[Participant], base: type[nn.Module]) -> FunctionType:
    """Return the participant's forward with the signature of the class's own, which torch.export goes by."""
    plain: Any = kind.forward
    forward = FunctionType(plain.__code__, plain.__globals__, "forward", plain.__defaults__, plain.__closure__)
    forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
    forward.__doc__, forward.__qualname__ = base.forward.__doc__, f"{base.__qualname__}.forward"
    return forward


def _surrounded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Make the method that runs a class's own one with what a role does around it."""

    @wraps(method)
    def surrounded(module: Participant, *args: Any, **kwargs: Any) -> Any:
        roles = (role for role in module.repshift_roles if isinstance(role, Surrounding))
        role = next(role for role in roles if name in role.methods)
        return role.around(partial(method, module, *args, **kwargs))

    return surrounded


def _followed(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make the method whose result follows the tokens that are left."""
    name = method.__name__

    @wraps(method)
    def following(module: Participant, *args: Any, **kwargs: Any) -> Tensor:
        value = method(module, *args, **kwargs)
        for role in module.repshift_roles:
            if isinstance(role, Follow) and role.companion.argument == name:
                value = role.followed(value)
        return value

    return following


def _rebuild(base: type[nn.Module], *kind: Any) -> nn.Module:
    generated = _participant(base, *kind)
    return generated.__new__(generated)
