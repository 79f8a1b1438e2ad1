"""The pruned model: a copy that shares every weight, in which a few modules take part in pruning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from torch import nn

from repshift.attention import AttentionScore
from repshift.drops import Drop
from repshift.errors import UnsupportedModelError
from repshift.finding import refuse_wrappers
from repshift.measuring import Ask, Attend, Begin, Measure, Rate, Remember, Replay
from repshift.modules import refuse_compiled, require_model
from repshift.participants import cuts, participants, take_leave, take_part
from repshift.pruners import Pruner, check_layout
from repshift.recipes import Recipe
from repshift.roles import Cut, Role, TakeImages
from repshift.scores import OF_BEFORE, READ_ONLY, PlaceScore
from repshift.sharing import give_each_place_its_own, share_weights
from repshift.sites import Site, Structure, say_second_residual
from repshift.stream import Streams
from repshift.travelling import Carry, End, Restore, Start, Weigh

Model = TypeVar("Model", bound=nn.Module)


def prune(model: Model, structure: Structure, recipe: Recipe) -> Model:
    """Make a pruned copy of a model that shares its parameters and buffers; the model itself is not touched.

    Raises:
        UnsupportedModelError: If the model is compiled or pruned already, or a block cannot be watched or cut.
        ScheduleError: If the schedule does not fit the model.
        UnknownNameError: If a name in the recipe is not known.
    """
    refuse_compiled(model)
    if cuts(model):
        raise UnsupportedModelError(
            f"This {type(model).__name__} is already pruned. Prune the model it was made from, with the whole schedule."
        )
    refuse_wrappers(model, structure.root)
    recipe, pruner = _settled(structure, recipe)
    check_layout(pruner, structure.layout, type(model).__name__, structure.pruner)
    recipe.schedule.check(len(structure.sites), structure.tokens, structure.unit)
    if recipe.restore and structure.restores is None:
        raise UnsupportedModelError(
            f"The tokens of {type(model).__name__} cannot have their places back: nothing behind its {structure.unit}s "
            "has one for each. Leave restore out."
        )
    plan = _Plan(structure, recipe, pruner)
    roles = plan.roles()
    plan.say_second_residual()
    if not plan.follows:  # then these would only follow a companion that is seldom given
        roles = {
            name: played for name, played in roles.items() if not (_only_follows(played) and _patched(model, name))
        }
    blocks = [site.name for site in structure.sites]
    _require_own_forward(model, roles, blocks)
    pruned = share_weights(model)
    give_each_place_its_own(pruned, structure.places(), blocks, roles)
    for name, module in plan.replays(pruned).items():
        roles = {other: [_with_replay(role, name, module) for role in played] for other, played in roles.items()}
    for name, played in roles.items():
        take_part(pruned.get_submodule(name), tuple(played))
    inside = pruned.get_submodule(structure.root)
    inside.repshift_recipe = recipe  # type: ignore[assignment]  # a plain attribute, neither tensor nor module
    for method in structure.grid_methods:
        setattr(inside, method, partial(_refuse_grid, method))
    return pruned


def recipe_of(model: nn.Module) -> Recipe | None:
    """Return the recipe that a model was pruned by, with what was left to the model settled.

    Args:
        model: Any model, or one that holds a pruned one.

    Returns:
        The recipe; ``None`` for a dense model.

    Raises:
        UnsupportedModelError: If it is no model.

    Example:
        >>> from repshift import ShiftTracker, load_model, recipe_of
        >>> recipe_of(ShiftTracker(load_model("tiny_vit")).prune("0.2@0,2"))
        Recipe('0.2@0,2', operation='mlp', pruner='tokens')
    """
    require_model(model)
    found = (vars(module).get("repshift_recipe") for module in model.modules())
    return next((recipe for recipe in found if isinstance(recipe, Recipe)), None)


def dense(model: Model) -> Model:
    """Return the dense model that a pruned one was made from, or one like it: of its class, with the same weights.

    Args:
        model: A pruned model, or one that holds one; a dense one is copied.

    Returns:
        A copy that shares parameters and buffers and drops nothing.

    Raises:
        UnsupportedModelError: If the model is compiled, or something on it cannot be copied.

    Example:
        >>> import torch
        >>> from repshift import ShiftTracker, dense, load_model
        >>> model, images = load_model("tiny_vit"), torch.rand(1, 3, 64, 64)
        >>> torch.equal(dense(ShiftTracker(model).prune("0.2@0,2"))(images), model(images))
        True
    """
    require_model(model)
    refuse_compiled(model)
    whole = share_weights(model)
    for _, participant in list(participants(whole)):
        take_leave(participant)
    for module in whole.modules():
        if "repshift_recipe" in vars(module):
            del module.repshift_recipe
            for method in [name for name, value in vars(module).items() if _is_refusal(value)]:
                delattr(module, method)
    return whole


def _settled(structure: Structure, recipe: Recipe) -> tuple[Recipe, Pruner]:
    """Fill in what the recipe leaves to the model."""
    pruner = recipe.the_pruner(structure.pruner)
    return (
        replace(
            recipe,
            schedule=recipe.schedule.over(len(structure.sites)),
            operation=recipe.operation or structure.operation,
            pruner=structure.pruner if recipe.pruner is None else recipe.pruner,
        ),
        pruner,
    )


class _Plan:
    """Which modules play which roles, for one recipe."""

    def __init__(self, structure: Structure, recipe: Recipe, pruner: Pruner) -> None:
        self.structure, self.recipe, self.pruner = structure, recipe, pruner
        self.score = recipe.the_score
        self.streams = Streams()
        self.played: dict[str, list[Role]] = {}
        joins = not getattr(pruner, "drops_only", False)
        wanted = tuple(each for each in structure.companions if not each.optional)
        self.follows = bool(wanted or recipe.restore or joins)
        self.bias = structure.bias if joins or any(each.padding for each in structure.companions) else None

    def roles(self) -> dict[str, list[Role]]:
        """Assign the roles; within a module they are played in this order."""
        structure, schedule = self.structure, self.recipe.schedule
        self._play(structure.embedding, TakeImages(structure.images))
        first = min(schedule.drops)
        if self.follows or structure.companions:
            start = Start(self.streams, structure.layout, structure.companions, self.follows, structure.bias)
            self._play(structure.sites[first].name, start)
        for number, site in enumerate(structure.sites):
            if number > first and (self.follows or structure.companions):
                carry = Carry(self.streams, structure.companions, self.bias, self._prefix(), self.follows)
                self._play(site.name, carry)
            if number in schedule.drops:
                self._cut(site, schedule.drops[number])
        self._finish()
        return self.played

    def say_second_residual(self) -> None:
        """Warn if the residual is contained in what is scored already."""
        sites = [self.structure.sites[number] for number in self.recipe.schedule.drops]
        operations = (site.operations.get(self.recipe.operation or "") for site in sites)
        if self.recipe.residual and not isinstance(self.score, (AttentionScore, PlaceScore)):
            say_second_residual(operation for operation in operations if operation is not None)

    def replays(self, pruned: nn.Module) -> dict[str, nn.Module]:
        """List the modules that may run a second time, by the name of their block."""
        sites = [self.structure.sites[number] for number in self.recipe.schedule.drops]
        if isinstance(self.score, AttentionScore) or self.score not in READ_ONLY:
            return {}
        operations = {site.name: site.operations.get(self.recipe.operation or "") for site in sites}
        return {
            name: pruned.get_submodule(operation.enters)
            for name, operation in operations.items()
            if operation is not None and operation.cheap
        }

    def _play(self, name: str, role: Role) -> None:
        self.played.setdefault(name, []).append(role)

    def _prefix(self) -> int:
        return int(getattr(self.structure.layout, "prefix", 0))

    def _cut(self, site: Site, drop: Drop) -> None:
        recipe, streams, measured = self.recipe, self.streams, not isinstance(self.score, PlaceScore)
        cut = Cut(
            streams,
            site.name,
            self.structure.layout,
            self.pruner,
            drop,
            recipe.keep,
            measured,
            site.least,
            site.multiple,
            self.follows,
            recipe.restore,
            _in_words(drop, recipe),
        )
        # a block may be what the operation enters or leaves, so its own first and last role surround the others
        self._play(site.name, Begin(streams, site.name))
        if measured:
            self._measure(site)
        self._play(site.name, cut)

    def _measure(self, site: Site) -> None:
        recipe, score, streams, block = self.recipe, self.score, self.streams, site.name
        if isinstance(score, AttentionScore):
            heads = site.attention(score)
            self._play(heads.queries, Ask(streams, block))
            self._play(heads.keys, Attend(streams, block, heads, score))
            return
        operation = self.structure.at(site, recipe.operation or self.structure.operation)
        before, after = operation.before or self.structure.layout, operation.after or self.structure.layout
        if score in OF_BEFORE:
            self._play(operation.enters, Rate(streams, block, before, score, operation.from_output))
            return
        self._play(operation.enters, Remember(streams, block, before, operation.from_output))
        adds_before = recipe.residual and not operation.on_stream
        for leaving in operation.leaves:
            last = leaving == operation.leaves[-1]
            self._play(
                leaving,
                Measure(streams, block, after, score, score in READ_ONLY, adds_before, last, source_layout=before),
            )

    def _finish(self) -> None:
        """Use and forget what is known of the tokens, behind the last block."""
        structure, ends = self.structure, self.structure.sites[-1].name
        if self.follows and structure.weighs:
            ends, prefix = structure.weighs, self._prefix() if structure.weighs_prefix else 0
            if structure.weighs_bias:
                self._play(ends, Carry(self.streams, (), structure.weighs_bias, prefix, always=True))
            else:
                self._play(ends, Weigh(self.streams, structure.layout, structure.weighs_prefix))
        if self.recipe.restore and structure.restores:
            self._play(structure.restores, Restore(self.streams, structure.layout))
        if self.follows or structure.companions:
            self._play(ends, End(self.streams))
            # whatever raises between the blocks, nothing of the forward is left
            self._play("" if self.follows else structure.root, End(self.streams))


def _with_replay(role: Role, block: str, module: nn.Module) -> Role:
    return (
        replace(role, replay=Replay(module)) if isinstance(role, (Remember, Measure)) and role.block == block else role
    )


def _in_words(drop: Drop, recipe: Recipe) -> str:
    if recipe.score == "shift":
        by = f"{recipe.distance if isinstance(recipe.distance, str) else 'own distance'} of {recipe.operation}"
    else:
        by = recipe.score if isinstance(recipe.score, str) else "own score"
    return f"drops {drop} by {by}" + (", keeps the bottom" if recipe.keep == "bottom" else "")


def _only_follows(played: Iterable[Role]) -> bool:
    return all(isinstance(role, (Start, Carry, End)) for role in played)


def _patched(model: nn.Module, name: str) -> bool:
    return "forward" in vars(model.get_submodule(name))


def _require_own_forward(model: nn.Module, names: Iterable[str], blocks: Iterable[str]) -> None:
    """Refuse a model that was patched on the way to a module that takes part: its copy would run the original."""
    taking_part = {model.get_submodule(name) for name in set(blocks).intersection(names)}
    every = model.named_modules(remove_duplicate=False)  # the model may call a block by any of its names
    names = {*names, *(name for name, module in every if module in taking_part)}
    paths = {"", *names}
    for name in names:
        paths.update(name[:end] for end, letter in enumerate(name) if letter == ".")
    for path in sorted(paths):
        if _patched(model, path):
            raise UnsupportedModelError(
                f"The forward of {path or type(model).__name__!r} was replaced on the module itself, so pruning would "
                "have no effect. Give the model before it was patched (by accelerate or another pruning library, say)."
            )


def _refuse_grid(method: str, *args: Any, **kwargs: Any) -> None:
    raise UnsupportedModelError(
        f"{method} lays all tokens out on their grid, and this model has dropped some. Use the model it was pruned "
        "from, forward_features, or ShiftTracker(pruned), whose maps say where the tokens were."
    )


def _is_refusal(value: object) -> bool:
    return isinstance(value, partial) and value.func is _refuse_grid
