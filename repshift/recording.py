"""What happens while a tracker is attached: hooks collect tokens before and after, and shifts are recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repshift.branches import Scale, add_to_float32
from repshift.calls import Call, positional_names
from repshift.errors import RepresentationError
from repshift.finding import has_unordered_tokens
from repshift.hooks import Hook, attached
from repshift.images import explain, require_floating_point
from repshift.inside import CutInside
from repshift.layouts import Layout, first_tensor
from repshift.origins import Origin
from repshift.participants import cuts
from repshift.records import Measurement
from repshift.scores import READ_ONLY, Score, apply_score, widened
from repshift.selection import Selection
from repshift.sites import Structure
from repshift.stream import Stream, heard
from repshift.watching import AttentionReading, Watched, grid_of, has_proportions, layout_of


@dataclass
class _Entered:
    """Tokens on their way through an operation."""

    before: Tensor
    after: Layout
    grid: tuple[int, ...] | None
    branches: list[Tensor] = field(default_factory=list)


class Recorder:
    """Sees the forwards of a model in one thread and records the shifts of the last one.

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
        self.unordered = has_unordered_tokens(model)
        self._stream = Stream()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.measurements: dict[str, Measurement] = {}
        self.kept: dict[str, Tensor] = {}
        self.joined: dict[str, Tensor] = {}
        self._images: Tensor | None = None
        self._image: tuple[int, ...] | None = None
        self._grid: tuple[int, ...] | None = None
        self._is_video = False
        self._batch: int | None = None
        self._forget_unfinished()

    def _forget_unfinished(self) -> None:
        """Let go of tokens that entered an operation and never left it."""
        self._entered: dict[str, _Entered] = {}
        self._queries: dict[str, Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """See the forwards of this thread while the context lasts."""
        cut = cuts(self.model)
        # a pruned model follows its tokens itself; for a dense one there is nothing to follow but where they began
        self._stream = next((role.streams.own for role in cut.values()), Stream())
        with ExitStack() as stack:
            stack.callback(self._forget_unfinished)
            stack.enter_context(heard(self._stream, self))
            told = [role.adds for role in cut.values() if isinstance(role, CutInside)]
            stack.enter_context(attached(self._hooks({*cut, *told})))
            yield

    def _hooks(self, cut: set[str]) -> Iterator[Hook]:
        module = self.model.get_submodule
        yield module(self.structure.embedding if self.structure else ""), "before", self._observe_images
        if self.structure:
            yield module(self.structure.sites[0].name), "before", self._observe_start
        yield self.model, "after", self._observe_end
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
                if leaving not in cut:  # a cut shows what its block returns before that is shortened, see returned
                    yield module(leaving), "after", partial(self._observe_leaving, watched)

    # --- what the hooks of modules see ---------------------------------------------------------------------------

    def _observe_images(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        images = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if self.structure and self.structure.images:
            require_floating_point(_first(module, args, kwargs) if images is None else images)
            self._images = images
        if images is not None and images.ndim >= 4:
            if self.structure:
                require_floating_point(images)
            self._image, self._batch = tuple(images.shape[-2:]), len(images)
            self._grid = self.structure.grid_of(images) if self.structure else None
            self._is_video = images.ndim > 4

    def _observe_start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self.structure is not None
        self.kept, self.joined = {}, {}
        value, layout = _first(module, args, kwargs), self.structure.layout
        self._stream.begin(layout.tokens(value).shape[1], layout.grid(value), self.structure.rounds_up)

    def explain(self, error: Exception) -> None:
        """Say what is wrong with the images of a forward that failed, if that is known.

        Raises:
            RepresentationError: If it is.
        """
        if self.structure and self._images is not None:
            embedding = self.model.get_submodule(self.structure.embedding)
            explain(error, self.structure.images, self._images, embedding)

    def _observe_end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._images = None
        self._stream.clear()

    def _observe_taken(
        self, watched: Watched, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        with _named(watched.name):
            self._enter(watched, _first(module, args, kwargs))

    def _observe_returned(self, watched: Watched, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        with _named(watched.name):
            self._enter(watched, output)

    def _observe_leaving(self, watched: Watched, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        with _named(watched.name), torch.no_grad():
            self._leave(watched, output)

    def _observe_queries(self, watched: Watched, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._queries[watched.name] = output.detach().clone()

    def _observe_keys(
        self, name: str, reading: AttentionReading, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        with torch.no_grad():
            score = reading.score(self._queries.pop(name), output.detach(), reading.heads)
        self._record(name, None, score)

    # --- what the cuts of a pruned model show --------------------------------------------------------------------

    def returned(self, block: str, value: Any) -> None:
        """See what a block returns, before it is shortened."""
        for watched in self.watched:
            with _named(watched.name), torch.no_grad():
                if watched.operation.from_output and block == watched.operation.enters:
                    self._enter(watched, value)
                if block in watched.operation.leaves:
                    self._leave(watched, value)

    def shortened_inside(self, selection: Selection, sizes: Tensor | None, tokens: int) -> None:
        """See that tokens go while operations are under way: they are compared with the same ones afterwards.

        Args:
            selection: What stays.
            sizes: ``(batch, tokens)``.
            tokens: How many there were.
        """
        with torch.no_grad():
            for entered in self._entered.values():
                if entered.before.shape[1] == tokens:
                    entered.before = selection.mean(entered.before, sizes)

    def shortened(self, block: str, origin: Origin) -> None:
        """See where the tokens stood that are left."""
        if origin.positions is not None and origin.tokens is not None:
            self.kept[block] = origin.positions
            if origin.joined is not None:
                self.joined[block] = origin.joined

    # --- what becomes of it --------------------------------------------------------------------------------------

    def _enter(self, watched: Watched, value: Any) -> None:
        shared = watched.layout or self._layout_of(watched.name, value)
        before, after = watched.operation.before or shared, watched.operation.after or shared
        # a copy, because layers may change their input in place
        tokens = before.tokens(value).detach().clone()
        self._entered[watched.name] = _Entered(tokens, after, before.grid(value))

    def _leave(self, watched: Watched, value: Any) -> None:
        entered = self._entered.get(watched.name)
        if entered is None:
            raise RepresentationError(f"{watched.operation.enters!r} did not run before it; choose operation='block'.")
        entered.branches.append(entered.after.tokens(value).detach())
        if len(entered.branches) < len(watched.operation.leaves):
            return
        del self._entered[watched.name]
        after = sum(entered.branches[1:], start=entered.branches[0])
        if watched.operation.scaled_by:
            after = Scale.of(self.model, watched.operation.scaled_by).applied(after)
        if watched.operation.widens:
            entered.before = widened(entered.before, after)
        if self.residual and not watched.operation.on_stream:
            after = add_to_float32(entered.before, after)
        shift = apply_score(self.score, entered.before, after, read_only=self.score in READ_ONLY)
        self._record(watched.name, entered.grid, shift)

    def _record(self, name: str, grid: tuple[int, ...] | None, shift: Tensor) -> None:
        origin = (self._stream.origin or Origin()).at(grid)
        self.measurements[name] = Measurement(shift, origin, self._grid_for(name, grid, origin, shift))

    def _layout_of(self, name: str, value: Any) -> Layout:
        if self.structure and self._is_inside(name) and first_tensor(value).ndim == 3:
            return self.structure.layout
        return layout_of(self.model, name, value, self._image)

    def _is_inside(self, name: str) -> bool:
        root = self.structure.root if self.structure else ""
        return not root or f"{name}.".startswith(f"{root}.")

    def _grid_for(
        self, name: str, grid: tuple[int, ...] | None, origin: Origin, shift: Tensor
    ) -> tuple[int, ...] | None:
        """Return the grid of the tokens, or ``None`` if it cannot be told, so that no scrambled map is drawn."""
        structure = self.structure if self._is_inside(name) else None
        if structure and structure.grid and grid is None:  # patches that were cut before tell no rows and columns
            return self._grid if self._image else None
        if self.unordered or self._batch not in (None, len(shift)):
            return None
        if structure and structure.grid is None and hasattr(structure.layout, "keep"):
            return None  # a sequence whose rows and columns are not known: a guess by its length may be wrong
        if grid is None and self._is_video:
            return None  # a guess by the rows and columns of frames would mix time and space
        if grid is None:
            return grid_of(shift.shape[1], self._image)
        if structure:
            return origin.grid
        return grid if self._image is None or has_proportions(grid, self._image) else None


def _first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return Call(args, kwargs, () if args else positional_names(module.forward)).first


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except RepresentationError as error:
        raise RepresentationError(f"Cannot measure the shift across {name!r}: {error}") from error
