"""Which modules of a model play which roles when it is pruned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from repshift.arriving import End, Explain, RefuseFewer, Restore, ShortenAnswer, Weigh
from repshift.attention_scores import AttentionScore
from repshift.branches import Replay, Scale
from repshift.drops import Drop
from repshift.inside import AddAside, CutInside, Shorten, require_mlp_behind_attention
from repshift.intermediates import LayOut, Resume, Show
from repshift.measuring import Ask, Attend, Begin, KeepKeys, Measure, Rate, Remember
from repshift.operations import say_second_residual
from repshift.pruners import Pruner
from repshift.reading import reading_roles
from repshift.recipes import Recipe
from repshift.roles import Cut, Role, TakeImages
from repshift.scores import OF_BEFORE, READ_ONLY, PlaceScore
from repshift.sides import GiveSides, RollUp, Unroll
from repshift.sites import Site, Structure
from repshift.stream import Streams
from repshift.travelling import Carry, Follow, Start


class Plan:
    """Which modules play which roles, for one recipe."""

    def __init__(
        self, structure: Structure, recipe: Recipe, pruner: Pruner, resizing: Iterable[tuple[str, Role]] = ()
    ) -> None:
        self.structure, self.recipe, self.pruner, self.resizing = structure, recipe, pruner, resizing
        self.score = recipe.the_score
        self.streams = Streams()
        self.played: dict[str, list[Role]] = {}
        joins = not getattr(pruner, "drops_only", False)
        wanted = tuple(each for each in structure.companions if not each.optional)
        self.framed = bool(getattr(pruner, "wants_frames", False))
        self.placed = self.framed or bool(getattr(pruner, "wants_places", False))
        told = structure.built or structure.sides or structure.behind
        self.follows = bool(wanted or told or recipe.restore or joins or self.placed)
        # all tokens are back behind the last block, so what stands behind it and averages needs no weights
        self.lays_out = bool(
            recipe.restore
            and (structure.grid_methods or structure.shows_all)
            and structure.restores == structure.sites[-1].name
        )
        sized = joins and getattr(pruner, "size_attention", True)
        self.sized = sized
        self.bias = structure.bias if sized or any(each.padding for each in structure.companions) else None

    def roles(self) -> dict[str, list[Role]]:
        """Assign the roles; within a module they are played in this order.

        Raises:
            UnsupportedModelError: If a block has not what the recipe asks for.
        """
        structure, drops = self.structure, self.recipe.drops
        self._play(structure.embedding, TakeImages(structure.images))
        reading: list[tuple[str, Role]] = []
        if self.recipe.read == "head":
            reading = reading_roles(structure, self.recipe, self.streams)
        for name, role in (*self.resizing, *reading):
            self._play(name, role)
        if not drops:
            return self.played
        first = min(drops)
        if self.follows or structure.companions:
            start = Start(self.streams, structure.layout, structure.companions, self.follows, structure.bias)
            self._play(structure.sites[first].name, start)
        for number, site in enumerate(structure.sites):
            if number > first and self.lays_out:
                self._play(site.name, Resume(self.streams))
            self._tell(site, number - first)
            if number in drops:
                self._cut(site, drops[number])
            if number >= first and self.lays_out and site != structure.sites[-1]:
                self._play(site.name, Show(self.streams, structure.layout))
        self._finish()
        return self.played

    def say_second_residual(self) -> None:
        """Warn if the residual is contained in what is scored already."""
        sites = [self.structure.sites[number] for number in self.recipe.drops]
        operations = (site.operations.get(self.recipe.operation or "") for site in sites)
        if self.recipe.residual and not isinstance(self.score, (AttentionScore, PlaceScore)):
            say_second_residual(operation for operation in operations if operation is not None)

    def replays(self, pruned: nn.Module) -> dict[str, nn.Module]:
        """List the modules that may run a second time, by the name of their block."""
        sites = [self.structure.sites[number] for number in self.recipe.drops]
        if isinstance(self.score, AttentionScore) or self.score not in READ_ONLY:
            return {}
        operations = {site.name: site.operations.get(self.recipe.operation or "") for site in sites}
        return {
            name: pruned.get_submodule(operation.enters)
            for name, operation in operations.items()
            if operation is not None and operation.cheap
        }

    def scales(self, pruned: nn.Module) -> dict[str, Scale]:
        """List what blocks multiply the branch by that they are scored by, by the name of the block."""
        sites = [self.structure.sites[number] for number in self.recipe.drops]
        operations = {site.name: site.operations.get(self.recipe.operation or "") for site in sites}
        return {
            name: Scale.of(pruned, operation.scaled_by)
            for name, operation in operations.items()
            if operation is not None and operation.scaled_by
        }

    def _play(self, name: str, role: Role) -> None:
        self.played.setdefault(name, []).append(role)

    def _prefix(self) -> int:
        return int(getattr(self.structure.layout, "prefix", 0))

    def _tell(self, site: Site, behind: int) -> None:
        """Let a block know what was cut, which stands so many behind the first that cuts."""
        structure, prefix = self.structure, self._prefix()
        if behind > 0 and (self.follows or structure.companions):
            self._play(site.name, Carry(self.streams, structure.companions, self.bias, prefix, self.follows))
            for built in structure.built:
                if f"{built.module}.".startswith(f"{site.name}."):
                    follow = Follow(self.streams, built.companion, built.is_bias and self.sized, prefix)
                    self._play(built.module, follow)
        if behind >= 0 and structure.sides:
            self._play(site.name, GiveSides(self.streams, structure.sides))

    def _cut(self, site: Site, drop: Drop) -> None:
        recipe, streams = self.recipe, self.streams
        measured = recipe.scores and not isinstance(self.score, PlaceScore)
        inside = getattr(self.pruner, "before_mlp", False)
        mlp = require_mlp_behind_attention(site, self.pruner, recipe.operation) if inside else None
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
        if getattr(self.pruner, "wants_keys", False):
            heads = site.shown_heads("has no keys to compare tokens by", "Choose another pruner, such as 'mnn'.")
            self._play(heads.keys, KeepKeys(streams, site.name, heads.prefix))
        if mlp is not None:
            cut = CutInside(**vars(cut), adds=mlp.leaves[0])
            self._play(mlp.enters, Shorten(streams, site.name, cut))
            self._play(cut.adds, AddAside(streams, site.name, cut.adds))
        unrolled = self.structure.sides is not None
        for role in (Unroll(streams), cut, RollUp(streams)) if unrolled else (cut,):
            self._play(site.name, role)

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
                Measure(
                    streams,
                    block,
                    after,
                    score,
                    score in READ_ONLY,
                    adds_before,
                    last,
                    source_layout=before,
                    widens=operation.widens,
                ),
            )

    def _finish(self) -> None:
        """Use and forget what is known of the tokens, behind the last block."""
        structure, ends = self.structure, self.structure.sites[-1].name
        if self.recipe.restore and structure.restores:
            self._play(structure.restores, Restore(self.streams, structure.layout))
        if self.lays_out:
            self._play(structure.root, LayOut(self.streams, structure.grid_methods, structure.shows_all))
        elif self.follows and structure.weighs:
            ends, prefix = structure.weighs, self._prefix() if structure.weighs_prefix else 0
            if structure.weighs_bias:
                self._play(ends, Carry(self.streams, (), structure.weighs_bias, prefix, always=True))
            else:
                weigh = Weigh(
                    self.streams,
                    structure.layout,
                    structure.weighs_prefix,
                    structure.weighs_present,
                    structure.weighs_taken,
                )
                self._play(ends, weigh)
        if not self.recipe.restore:
            ends = self._tell_behind() or ends
        answers = {} if self.recipe.restore else structure.answers
        last = not (self.follows and structure.weighs_bias)  # nothing behind them asks what became of the tokens
        for method, companion in answers.items():
            self._play(structure.root, ShortenAnswer(self.streams, (method,), companion, last))
        if self.follows or structure.companions:
            if not (answers and last):
                self._play(ends, End(self.streams))
            # whatever raises between the blocks, nothing of the forward is left
            self._play("" if self.follows else structure.root, End(self.streams))

    def _tell_behind(self) -> str | None:
        """Let modules behind the blocks know of fewer tokens; return the last that asks what became of them."""
        structure, ends = self.structure, None
        for name, companions in structure.behind.items():
            self._play(name, Carry(self.streams, companions, None, self._prefix(), self.follows))
            ends = structure.weighs or name
        for name, why in structure.reads_places.items():
            self._play(name, RefuseFewer(why))
        for name, (part, said) in structure.explained.items():
            self._play(name, Explain(part, said))
        return ends


def with_replay(role: Role, block: str, module: nn.Module) -> Role:
    """Return a role of a block that may run a module once more."""
    return (
        replace(role, replay=Replay(module)) if isinstance(role, (Remember, Measure)) and role.block == block else role
    )


def with_scale(role: Role, block: str, scale: Scale) -> Role:
    """Return a role of a block that multiplies the branch that it measures."""
    return replace(role, scale=scale) if isinstance(role, Measure) and role.block == block else role


def _in_words(drop: Drop, recipe: Recipe) -> str:
    # None leaves the pruner to the model, and such ones drop
    drops = recipe.pruner is None or getattr(recipe.the_pruner(""), "drops_only", False)
    verb = "drops" if drops else "merges"
    if not recipe.scores:
        return f"{verb} {drop} by {recipe.pruner if isinstance(recipe.pruner, str) else 'an own pruner'}"
    if recipe.score == "shift":
        by = f"{recipe.distance if isinstance(recipe.distance, str) else 'own distance'} of {recipe.operation}"
    else:
        by = recipe.score if isinstance(recipe.score, str) else "own score"
    return f"{verb} {drop} by {by}" + (", keeps the bottom" if recipe.keep == "bottom" else "")
