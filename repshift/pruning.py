"""The pruned model: a copy that shares every weight, in which a few modules take part in pruning.

The modules that take part get a generated subclass of their own class, as ``torch.nn.utils.parametrize`` does; it
calls the base class's forward and plays its roles before and after. Hooks would not do: ``torch.compile`` does not
guard them, so a hooked copy of a model that was compiled before would silently run the dense graph. Subclasses and
their attributes are guarded, leave the names of modules and keys of ``state_dict`` alone, pickle and export.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from repshift.attention import AttentionScore
from repshift.errors import UnsupportedModelError, first_line
from repshift.hooks import detach_copies
from repshift.layouts import first_argument
from repshift.modules import refuse_compiled
from repshift.pruners import Pruner, check_layout
from repshift.roles import Ask, Attend, Begin, Cut, Measure, Relay, Remember, RequireFloat, Role
from repshift.schedules import Schedule
from repshift.scores import Score
from repshift.sites import Site, Structure

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Pruning:
    """How a model is to be pruned.

    Attributes:
        schedule: How many tokens go after which block.
        operation: Which change is scored, by a name in :data:`repshift.sites.OPERATIONS`.
        score: Turns the tokens before and after the operation, or the queries and keys, into scores.
        residual: Whether ``after`` includes what the operation adds to, or is its branch alone.
        pruner: Takes away what scores lowest.
        keep: Whether the ``"top"`` or the ``"bottom"`` by score stays, or the ``"first"`` tokens without any score.
    """

    schedule: Schedule
    operation: str
    score: Score | AttentionScore
    residual: bool
    pruner: Pruner
    keep: Literal["top", "bottom", "first"] = "top"


def prune(model: Model, structure: Structure, pruning: Pruning) -> Model:
    """Make a pruned copy of a model that shares its parameters and buffers; the model itself is not touched.

    Raises:
        UnsupportedModelError: If the model is compiled or pruned already, or a block cannot be watched or cut.
        ScheduleError: If the schedule does not fit the model.
    """
    refuse_compiled(model)
    if cuts(model):
        raise UnsupportedModelError(
            f"This {type(model).__name__} is already pruned. Prune the model it was made from, with the whole schedule."
        )
    check_layout(pruning.pruner, structure.layout, type(model).__name__, structure.pruner)
    pruning.schedule.check(len(structure.sites), structure.tokens, structure.unit)
    roles = _assign_roles(structure, pruning)
    _require_own_forward(model, roles)
    pruned = share_weights(model)
    for name, played in roles.items():
        _take_part(pruned.get_submodule(name), tuple(played))
    for method in structure.grid_methods:
        setattr(pruned, method, partial(_refuse_grid, method))
    return pruned


def _refuse_grid(method: str, *args: Any, **kwargs: Any) -> None:
    raise UnsupportedModelError(
        f"{method} lays all tokens out on their grid, and this model has dropped some. Use the model it was pruned "
        "from, forward_features, or ShiftTracker(pruned), whose maps say where the tokens were."
    )


def share_weights(model: Model) -> Model:
    """Copy a model's modules, but none of its parameters and buffers: both models use the same tensors.

    Raises:
        UnsupportedModelError: If something on the model cannot be copied.
    """
    computed = (  # results left on a module, such as the weight that torch.nn.utils.prune makes, cannot be copied
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    )
    tensors = chain(model.parameters(), model.buffers(), computed)
    try:
        shared = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    except (RuntimeError, TypeError) as error:
        if "deepcopy" not in str(error) and "pickle" not in str(error):
            raise
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be copied ({first_line(error)}). Something attached to it, often "
            "a hook that stores outputs, is in the way: remove it, prune, and attach it again."
        ) from error
    detach_copies(shared)
    return shared


def cuts(model: nn.Module) -> dict[str, Cut]:
    """List where a pruned model drops tokens, by module name; empty for a dense model."""
    return {
        name: role
        for name, module in model.named_modules()
        if isinstance(module, Participant)
        for role in module.repshift_roles
        if isinstance(role, Cut)
    }


class Participant(nn.Module):
    """Mixed into the class of every module that takes part in pruning."""

    repshift_roles: tuple[Role, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward and play its roles around it."""
        roles = self.repshift_roles
        try:
            for role in roles:
                role.enter(first_argument(super().forward, args, kwargs))
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
        # our own module's name: dynamo may take classes of torch.nn for leaves and not look into their forward
        names = {"__module__": __name__, "__qualname__": name}
        _participants[base] = type(name, (Participant, base), names)
    return _participants[base]


def _rebuild(base: type[nn.Module]) -> nn.Module:
    generated = _participant(base)
    return generated.__new__(generated)


def _take_part(module: nn.Module, roles: tuple[Role, ...]) -> None:
    module.__class__ = _participant(type(module))
    module.repshift_roles = roles  # type: ignore[assignment]  # a plain attribute, neither tensor nor module


def _require_own_forward(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse a model that was patched on the way to a module that takes part: its copy would run the original."""
    paths = {"", *names}
    for name in names:
        paths.update(name[:end] for end, letter in enumerate(name) if letter == ".")
    for path in sorted(paths):
        if "forward" in vars(model.get_submodule(path)):
            raise UnsupportedModelError(
                f"The forward of {path or type(model).__name__!r} was replaced on the module itself, so pruning would "
                "have no effect. Give the model before it was patched (by accelerate or another pruning library, say)."
            )


def _assign_roles(structure: Structure, pruning: Pruning) -> dict[str, list[Role]]:
    roles: dict[str, list[Role]] = {structure.embedding: [RequireFloat()]}
    for block, drop in pruning.schedule.drops.items():
        site = structure.sites[block]
        relay = Relay()
        cut = Cut(relay, structure.layout, pruning.pruner, drop, site.least, pruning.keep)
        scoring = [] if pruning.keep == "first" else _scoring_roles(structure, site, pruning, relay)
        # a block may be what the operation enters or leaves, so its own first and last role surround the others
        for name, role in ((site.name, Begin(relay)), *scoring, (site.name, cut)):
            roles.setdefault(name, []).append(role)
    return roles


def _scoring_roles(structure: Structure, site: Site, pruning: Pruning, relay: Relay) -> list[tuple[str, Role]]:
    if isinstance(pruning.score, AttentionScore):
        heads = site.attention(pruning.score)
        return [(heads.queries, Ask(relay)), (heads.keys, Attend(relay, heads, pruning.score))]
    operation = site.operation(pruning.operation)
    before, after = operation.before or structure.layout, operation.after or structure.layout
    roles: list[tuple[str, Role]] = [(operation.enters, Remember(relay, before, operation.from_output))]
    for leaving in operation.leaves:
        measure = Measure(
            relay,
            after,
            pruning.score,
            add_before=pruning.residual and not operation.on_stream,
            last=leaving == operation.leaves[-1],
        )
        roles.append((leaving, measure))
    return roles
