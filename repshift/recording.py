"""What happens while a tracker is attached: hooks collect tokens before and after, and shifts are recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repshift.errors import RepresentationError
from repshift.hooks import Hook, in_backward
from repshift.layouts import Layout, first_argument, first_tensor
from repshift.origins import Origin
from repshift.pruning import cuts
from repshift.records import Record
from repshift.roles import Observer, add, require_floating_point
from repshift.scores import Score, apply_score
from repshift.sites import Structure
from repshift.watching import UNORDERED, AttentionReading, Watched, grid_of, has_proportions, layout_of


@dataclass
class _Entered:
    """Tokens on their way through an operation."""

    before: Tensor
    after: Layout
    grid: tuple[int, ...] | None
    branches: list[Tensor] = field(default_factory=list)


class Recorder:
    """Sees the forwards of a model and records the shifts of the last one.

    Args:
        model: Any module, dense or pruned.
        structure: Its description, if it is known.
        watched: Where to look.
        score: The distance, or another score of the tokens before and after.
        residual: Whether ``x`` is added to what an operation yields.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure | None,
        watched: Sequence[Watched],
        score: Score,
        residual: bool,
    ) -> None:
        self.model, self.structure, self.watched = model, structure, watched
        self.score, self.residual = score, residual
        # anywhere inside, since models are often wrapped
        self.unordered = any(type(module).__name__ in UNORDERED for module in model.modules())
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.records: dict[str, Record] = {}
        self.kept: dict[str, Tensor] = {}
        self._entered: dict[str, _Entered] = {}
        self._queries: dict[str, Tensor] = {}
        self._origin = Origin()
        self._image: tuple[int, ...] | None = None
        self._batch: int | None = None

    def forget_unfinished(self) -> None:
        """Let go of tokens that entered an operation and never left it."""
        self._entered.clear()
        self._queries.clear()

    def hooks(self) -> Iterator[Hook]:
        """List the hooks to attach."""
        module = self.model.get_submodule
        cut = cuts(self.model)
        yield module(self.structure.embedding if self.structure else ""), "before", self._observe_images
        if self.structure:
            start = partial(self._observe_start, self.structure.layout)
            yield module(self.structure.sites[0].name), "before", start
        for watched in self.watched:
            operation = watched.operation
            if reading := watched.attention:
                yield module(reading.heads.queries), "after", partial(self._observe_queries, watched)
                yield module(reading.heads.keys), "after", partial(self._observe_keys, watched.name, reading)
                continue
            if not operation.from_output:
                yield module(operation.enters), "before", partial(self._observe_taken, watched)
            elif operation.enters not in cut:
                yield module(operation.enters), "after", partial(self._observe_returned, watched)
            for leaving in operation.leaves:
                if leaving not in cut:  # a cut shows its output before it is shortened, see _observe_cut
                    yield module(leaving), "after", partial(self._observe_leaving, watched)

    def observers(self) -> Iterator[tuple[str, Observer]]:
        """List what wants to see the cuts of a pruned model, by module name."""
        for name in cuts(self.model):
            yield name, partial(self._observe_cut, name)

    def _observe_images(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        images = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if images is not None and images.ndim >= 4:
            if self.structure:
                require_floating_point(images)
            self._image, self._batch = tuple(images.shape[-2:]), len(images)

    def _observe_start(self, layout: Layout, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.kept = {}
        value = first_argument(module.forward, args, kwargs)
        grid = layout.grid(value)
        rounds_up = self.structure is None or self.structure.rounds_up
        self._origin = Origin(layout.tokens(value).shape[1], grid, None, grid, rounds_up)

    def _observe_taken(
        self, watched: Watched, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        with _named(watched.name):
            self._enter(watched, first_argument(module.forward, args, kwargs))

    def _observe_returned(self, watched: Watched, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        with _named(watched.name):
            self._enter(watched, output)

    def _enter(self, watched: Watched, value: Any) -> None:
        shared = watched.layout or self._layout_of(watched.name, value)
        before, after = watched.operation.before or shared, watched.operation.after or shared
        # a copy, because layers may change their input in place
        tokens = before.tokens(value).detach().clone()
        self._entered[watched.name] = _Entered(tokens, after, before.grid(value))

    def _observe_leaving(self, watched: Watched, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        with _named(watched.name), torch.no_grad():
            entered = self._entered.get(watched.name)
            if entered is None:
                raise RepresentationError(
                    f"{watched.operation.enters!r} did not run before it; choose operation='block'."
                )
            entered.branches.append(entered.after.tokens(output).detach())
            if len(entered.branches) < len(watched.operation.leaves):
                return
            del self._entered[watched.name]
            after = sum(entered.branches[1:], start=entered.branches[0])
            if self.residual and not watched.operation.on_stream:
                after = add(entered.before, after)
            shift = apply_score(self.score, entered.before, after)
        origin = self._origin.at(entered.grid)
        self.records[watched.name] = Record(shift, origin, self._grid_for(entered.grid, origin, shift))

    def _observe_queries(self, watched: Watched, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._queries[watched.name] = output.detach().clone()

    def _observe_keys(
        self, name: str, reading: AttentionReading, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        with torch.no_grad():
            score = reading.score(self._queries.pop(name), output.detach(), reading.heads)
        origin = self._origin.at(None)
        self.records[name] = Record(score, origin, self._grid_for(None, origin, score))

    def _observe_cut(self, name: str, output: Any, shortened: Any, kept: Tensor | None) -> None:
        if in_backward():
            return
        cut = self.model.get_submodule(name)
        for watched in self.watched:
            if watched.operation.from_output and name == watched.operation.enters:
                self._observe_returned(watched, cut, (), output)
            if name in watched.operation.leaves:
                self._observe_leaving(watched, cut, (), output)
        if kept is not None and self.structure:
            layout = self.structure.layout
            self._origin = self._origin.at(layout.grid(output)).cut(kept, layout.grid(shortened))
            if self._origin.positions is not None:
                self.kept[name] = self._origin.positions

    def _layout_of(self, name: str, value: Any) -> Layout:
        if self.structure and first_tensor(value).ndim == 3:
            return self.structure.layout
        return layout_of(self.model, name, value, self._image)

    def _grid_for(self, grid: tuple[int, ...] | None, origin: Origin, shift: Tensor) -> tuple[int, ...] | None:
        """Return the grid of the tokens, or ``None`` if it cannot be told, so that no scrambled map is drawn."""
        structure = self.structure
        if structure and structure.grid and self._image and grid is None:
            return structure.grid((self._image[0], self._image[1]))
        if self.unordered or self._batch not in (None, len(shift)):
            return None
        if grid is None:
            return grid_of(shift.shape[1], self._image)
        if structure:
            return origin.grid
        return grid if self._image is None or has_proportions(grid, self._image) else None


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except RepresentationError as error:
        raise RepresentationError(f"Cannot measure the shift across {name!r}: {error}") from error
