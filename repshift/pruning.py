"""The pruned model: a copy that shares every weight, in which a few modules take part in pruning.

The modules that take part get a generated subclass of their own class, as ``torch.nn.utils.parametrize`` does; it
calls the base class's forward and plays its roles before and after. Hooks would not do: ``torch.compile`` does not
guard them, so a hooked copy of a model that was compiled before would silently run the dense graph. Subclasses and
their attributes are guarded, leave the names of modules and keys of ``state_dict`` alone, pickle and export.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from repshift.errors import RepresentationError, UnsupportedModelError
from repshift.layouts import TokenLayout, first_tensor
from repshift.modules import refuse_compiled
from repshift.pruners import Pruner
from repshift.schedules import Drop, Schedule
from repshift.scores import Score
from repshift.sites import Structure

Model = TypeVar("Model", bound=nn.Module)
# Called with what a block returned before it was shortened, and the kept positions (None: all)
Observer = Callable[[Any, Tensor | None], None]


@dataclass(frozen=True)
class Pruning:
    """How a model is to be pruned.

    Attributes:
        schedule: How many tokens go after which block.
        operation: Which change is scored: ``attn``, ``mlp`` or ``block``.
        score: Turns the tokens before and after the operation into scores.
        residual: Whether ``after`` includes what the operation adds to, or is its branch alone.
        pruner: Takes away what scores lowest.
    """

    schedule: Schedule
    operation: str
    score: Score
    residual: bool
    pruner: Pruner


def prune(model: Model, structure: Structure, pruning: Pruning) -> Model:
    """Make a pruned copy of a model that shares its parameters and buffers; the model itself is not touched.

    Raises:
        UnsupportedModelError: If the model is compiled or pruned already, or a block cannot be watched or cut.
        ScheduleError: If the schedule does not fit the model.
    """
    refuse_compiled(model)
    if structure.unprunable is not None:
        raise UnsupportedModelError(f"{type(model).__name__} can be tracked, not pruned: {structure.unprunable}.")
    if cuts(model):
        raise UnsupportedModelError(
            f"This {type(model).__name__} is already pruned. Prune the model it was made from, with the whole schedule."
        )
    pruning.schedule.check(len(structure.sites), structure.tokens)
    roles = _assign_roles(structure, pruning)
    for name in roles:
        _require_own_forward(model, name)
    pruned = share_weights(model)
    for name, played in roles.items():
        _take_part(pruned.get_submodule(name), tuple(played))
    return pruned


def share_weights(model: Model) -> Model:
    """Copy a model's modules, but none of its parameters and buffers: both models use the same tensors."""
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def cuts(model: nn.Module) -> dict[str, Cut]:
    """List where a pruned model drops tokens, by module name; empty for a dense model."""
    return {
        name: role
        for name, module in model.named_modules()
        if isinstance(module, Participant)
        for role in module.repshift_roles
        if isinstance(role, Cut)
    }


class Relay(threading.local):
    """What the modules of one block tell each other during one forward.

    Empty between forwards, and separate in every thread, since servers run one model in several.
    """

    before: Tensor | None = None
    after: Tensor | None = None
    scores: Tensor | None = None

    def clear(self) -> None:
        """Forget everything."""
        self.before = self.after = self.scores = None

    def __reduce__(self) -> tuple[type[Relay], tuple[()]]:
        return Relay, ()


class Role(Protocol):
    """What a module does in pruning, around its own forward."""

    def enter(self, value: Any) -> None:
        """Look at the module's first input."""
        ...

    def leave(self, output: Any) -> Any:
        """Look at the module's output and return what takes its place."""
        ...

    def close(self) -> None:
        """Clean up after the forward, whether it succeeded or not."""
        ...


class _Bystander:
    """A role's parts that do nothing."""

    def enter(self, value: Any) -> None:
        return None

    def leave(self, output: Any) -> Any:
        return output

    def close(self) -> None:
        return None


@dataclass(frozen=True)
class RequireFloat(_Bystander):
    """Refuses images that are not floating-point, where they enter the model."""

    def enter(self, value: Any) -> None:
        """Check the images."""
        require_floating_point(value)


@dataclass(frozen=True)
class Remember(_Bystander):
    """Remembers the tokens that enter the operation."""

    relay: Relay
    layout: TokenLayout

    def enter(self, value: Any) -> None:
        """Remember ``x``."""
        self.relay.before = self.layout.tokens(value).detach()


@dataclass(frozen=True)
class Measure(_Bystander):
    """Scores the tokens that leave the operation; of several parallel branches, the last one scores their sum."""

    relay: Relay
    layout: TokenLayout
    score: Score
    add_before: bool
    last: bool

    def leave(self, output: Any) -> Any:
        """Add this branch, and score if it was the last."""
        relay = self.relay
        after = self.layout.tokens(output).detach()
        if relay.after is not None:
            after = relay.after + after
        if not self.last:
            relay.after = after
        elif relay.before is not None:
            relay.scores = self.score(relay.before, relay.before + after if self.add_before else after)
        return output


@dataclass
class Cut(_Bystander):
    """Shortens what the block returns.

    Attributes:
        observers: Called at every forward; only a tracker sets them, and only while it is attached.
    """

    relay: Relay
    layout: TokenLayout
    pruner: Pruner
    drop: Drop
    observers: tuple[Observer, ...] = field(default=(), repr=False, compare=False)

    def leave(self, output: Any) -> Any:
        """Drop the tokens that scored lowest."""
        scores = self.relay.scores
        if scores is None:
            raise RepresentationError(
                "A block ended without running the operation that scores its tokens. Its forward does not call the "
                "modules it is described by; choose operation='block'."
            )
        shortened, kept = self.pruner.shorten(output, scores, self.drop, self.layout)
        for observe in self.observers:
            observe(output, kept)
        return shortened

    def close(self) -> None:
        """Leave nothing of this forward behind."""
        self.relay.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "observers": ()}  # a copy is not watched by the original's tracker


@contextmanager
def observed(cut: Cut, observer: Observer) -> Iterator[None]:
    """Let an observer see a cut while the context lasts."""
    cut.observers = (*cut.observers, observer)
    try:
        yield
    finally:
        cut.observers = tuple(other for other in cut.observers if other is not observer)


class Participant(nn.Module):
    """Mixed into the class of every module that takes part in pruning."""

    repshift_roles: tuple[Role, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward and play its roles around it."""
        roles = self.repshift_roles
        try:
            for role in roles:
                role.enter(args[0] if args else next(iter(kwargs.values())))
            output = super().forward(*args, **kwargs)
            for role in roles:
                output = role.leave(output)
            return output
        finally:
            for role in roles:
                role.close()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # the generated class cannot be found by name, so rebuild it from the module's own class
        return _rebuild, (type(self).__mro__[2],), dict(vars(self))


_participants: dict[type[nn.Module], type[nn.Module]] = {}


def _participant(base: type[nn.Module]) -> type[nn.Module]:
    """Generate the subclass, once for each class, so that compiled code recognises it."""
    if base not in _participants:
        name = f"Pruned{base.__name__}"
        names = {"__module__": base.__module__, "__qualname__": name}
        _participants[base] = type(name, (Participant, base), names)
    return _participants[base]


def _rebuild(base: type[nn.Module]) -> nn.Module:
    generated = _participant(base)
    return generated.__new__(generated)


def _take_part(module: nn.Module, roles: tuple[Role, ...]) -> None:
    module.__class__ = _participant(type(module))
    module.repshift_roles = roles  # type: ignore[assignment]  # a plain attribute, neither tensor nor module


def _require_own_forward(model: nn.Module, name: str) -> None:
    if "forward" in vars(model.get_submodule(name)):
        raise UnsupportedModelError(
            f"The forward of {name!r} was replaced on the module itself, so pruning it would have no effect. "
            "Give the model before it was patched (for example before accelerate or another pruning library)."
        )


def _assign_roles(structure: Structure, pruning: Pruning) -> dict[str, list[Role]]:
    roles: dict[str, list[Role]] = {structure.embedding: [RequireFloat()]}
    layout = structure.layout
    for block, drop in pruning.schedule.drops.items():
        site = structure.sites[block]
        operation = site.operation(pruning.operation)
        relay = Relay()
        roles.setdefault(operation.enters, []).append(Remember(relay, layout))
        for leaving in operation.leaves:
            measure = Measure(
                relay,
                layout,
                pruning.score,
                add_before=pruning.residual and not operation.on_stream,
                last=leaving == operation.leaves[-1],
            )
            roles.setdefault(leaving, []).append(measure)
        roles.setdefault(site.name, []).append(Cut(relay, layout, pruning.pruner, drop))
    return roles


def require_floating_point(value: Any) -> None:
    """Refuse images of whole numbers.

    Raises:
        RepresentationError: If they are not floating-point.
    """
    images = first_tensor(value)
    if not images.is_floating_point():
        raise RepresentationError(
            f"The model got {images.dtype} images of shape {tuple(images.shape)}, expected floating-point ones. "
            "Scale and normalise them as the model was trained, for example with "
            "timm.data.create_transform(**timm.data.resolve_model_data_config(model))."
        )
