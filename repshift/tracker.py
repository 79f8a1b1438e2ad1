"""ShiftTracker: see how much every layer changes every token, and prune by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from repshift.errors import RepresentationError, UnknownNameError, UnsupportedModelError
from repshift.hooks import Hook, attached, in_backward
from repshift.layouts import Layout, first_argument, first_tensor
from repshift.modules import refuse_compiled
from repshift.pruners import PRUNERS, Pruner
from repshift.pruning import Pruning, cuts, prune
from repshift.records import Maps, Record, Records
from repshift.registry import suggest
from repshift.roles import add, observed, require_floating_point
from repshift.schedules import Schedule, ScheduleLike
from repshift.scores import Score, apply_score, resolve_score
from repshift.selection import compose
from repshift.sites import OPERATIONS
from repshift.watching import (
    UNORDERED,
    Watched,
    choose,
    grid_of,
    has_proportions,
    layout_of,
    structure_of,
    unknown,
)

Model = TypeVar("Model", bound=nn.Module)


class ShiftTracker(Generic[Model]):
    """Watches how much a model's layers change its tokens.

    As a context manager it records, for every forward inside::

        with ShiftTracker(model) as tracker:
            model(images)
        tracker.shifts["blocks.3"]  # (batch, tokens) float32, prefix tokens left out
        tracker.maps["blocks.3"]    # (batch, rows, columns)

    and it makes pruned models, for which nothing has to be recorded::

        pruned = ShiftTracker(model).prune({0: 0.2, 3: 0.2, 6: 0.2})

    Args:
        model: Any module. It is never changed: hooks are attached on entering the context, all or none, and gone on
            leaving it.
        sites: Names or globs of modules to watch, ``"blocks.*.attn"``; by default the blocks that the model's
            backbone lists. A name that is such a block is watched at ``operation``; any other module at its own
            first input and output, which must be of one shape.
        operation: Which change of a block counts: ``"attn"``, ``"mlp"`` or ``"block"``.
        distance: ``"l2"``, ``"l1"``, ``"cosine"``, or a function of the tokens before and after.
        residual: ``False`` compares ``F(x)`` with ``x``, as the paper prints it; ``True`` compares ``x + F(x)`` with
            ``x``, the change of the residual stream. The operation ``block`` contains the residual either way.

    A module that runs several times in one forward is recorded as it ran last, and so are several forwards.

    Raises:
        UnsupportedModelError: If the model is compiled, or unknown and no sites are given.
        UnknownNameError: If a site, an operation or a distance does not exist; the message has the closest names.

    Source: arXiv 2508.00367, section 3.
    """

    def __init__(
        self,
        model: Model,
        sites: str | Iterable[str] | None = None,
        *,
        operation: str = "mlp",
        distance: str | Score = "l2",
        residual: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise UnsupportedModelError(
                f"A ShiftTracker watches a model (torch.nn.Module), got {model!r}. "
                "Build it first, for example with repshift.load_model(name)."
            )
        refuse_compiled(model)
        if operation not in OPERATIONS:
            raise UnknownNameError(f"Unknown operation {operation!r}. {suggest(operation, OPERATIONS)}")
        self.model = model
        self.operation = operation
        self.residual = residual
        self._score = resolve_score(None, distance)
        self._structure = structure_of(model, required=sites is None)
        self._watched = choose(model, self._structure, sites, operation)
        # anywhere inside, since models are often wrapped
        self._unordered = any(type(module).__name__ in UNORDERED for module in model.modules())
        self._stack: ExitStack | None = None
        self._clear()

    # --- recording ---------------------------------------------------------------------------------------------

    @property
    def shifts(self) -> Records:
        """Shifts of the last forward, ``(batch, tokens)`` float32 by module name, in the units of the distance.

        On a pruned model, those of the tokens that were still there.
        """
        return Records({name: record.shift for name, record in self._records.items()})

    @property
    def maps(self) -> Mapping[str, Tensor]:
        """The same, laid out as ``(batch, rows, columns)``; NaN where a pruned model had dropped the token before.

        Maps of video have ``(batch, frames, rows, columns)``.
        """
        return Maps(self._records)

    @property
    def kept(self) -> Records:
        """Of a pruned model: original positions that each cut kept, ``(batch, kept)`` ascending, by module name."""
        return Records(self._kept)

    def __enter__(self) -> ShiftTracker[Model]:
        if self._stack is not None:
            raise UnsupportedModelError("This ShiftTracker is already attached. Leave its with block first.")
        refuse_compiled(self.model)
        self._clear()
        with ExitStack() as stack:
            stack.enter_context(attached(self._hooks()))
            for name, cut in cuts(self.model).items():
                stack.enter_context(observed(cut, partial(self._observe_cut, name)))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        self._entered.clear()
        if stack is not None:
            stack.close()

    def _clear(self) -> None:
        self._records: dict[str, Record] = {}
        self._kept: dict[str, Tensor] = {}
        self._entered: dict[str, _Entered] = {}
        self._positions: Tensor | None = None
        self._image: tuple[int, ...] | None = None
        self._batch: int | None = None
        self._tokens: int | None = None

    def _hooks(self) -> Iterator[Hook]:
        module = self.model.get_submodule
        cut = cuts(self.model)
        yield module(self._structure.embedding if self._structure else ""), "before", self._observe_images
        if self._structure:
            start = partial(self._observe_start, self._structure.layout)
            yield module(self._structure.sites[0].name), "before", start
        for watched in self._watched:
            yield module(watched.operation.enters), "before", partial(self._observe_entering, watched)
            for leaving in watched.operation.leaves:
                if leaving not in cut:  # a cut shows its output before it is shortened, see _observe_cut
                    yield module(leaving), "after", partial(self._observe_leaving, watched)

    def _observe_images(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        images = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if images is not None and images.ndim >= 4:
            if self._structure:
                require_floating_point(images)
            self._image, self._batch = tuple(images.shape[-2:]), len(images)

    def _observe_start(self, layout: Layout, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._positions = None
        self._kept = {}
        self._tokens = layout.tokens(first_argument(module.forward, args, kwargs)).shape[1]

    def _observe_entering(
        self, watched: Watched, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        with _named(watched.name):
            value = first_argument(module.forward, args, kwargs)
            layout = watched.layout or self._layout_of(watched.name, value)
            # a copy, because layers may change their input in place
            before = layout.tokens(value).detach().clone()
            self._entered[watched.name] = _Entered(layout, before, layout.grid(value))

    def _observe_leaving(self, watched: Watched, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        with _named(watched.name), torch.no_grad():
            entered = self._entered.get(watched.name)
            if entered is None:
                raise RepresentationError(
                    f"{watched.operation.enters!r} did not run before it; choose operation='block'."
                )
            entered.branches.append(entered.layout.tokens(output).detach())
            if len(entered.branches) < len(watched.operation.leaves):
                return
            del self._entered[watched.name]
            after = sum(entered.branches[1:], start=entered.branches[0])
            if self.residual and not watched.operation.on_stream:
                after = add(entered.before, after)
            shift = apply_score(self._score, entered.before, after)
        self._records[watched.name] = Record(shift, self._positions, self._tokens, self._grid_for(entered, shift))

    def _observe_cut(self, name: str, output: Any, kept: Tensor | None) -> None:
        if in_backward():
            return
        for watched in self._watched:
            if name in watched.operation.leaves:
                self._observe_leaving(watched, self.model.get_submodule(name), (), output)
        if kept is not None:
            self._positions = self._kept[name] = compose(self._positions, kept)

    def _layout_of(self, name: str, value: Any) -> Layout:
        if self._structure and first_tensor(value).ndim == 3:
            return self._structure.layout
        return layout_of(self.model, name, value, self._image)

    def _grid_for(self, entered: _Entered, shift: Tensor) -> tuple[int, ...] | None:
        """Return the grid of the tokens, or ``None`` if it cannot be told, so that no scrambled map is drawn."""
        if self._structure and self._image and entered.grid is None:
            return self._structure.grid((self._image[0], self._image[1]))
        if self._unordered or self._batch not in (None, len(shift)):
            return None
        if entered.grid is not None:
            return entered.grid if self._image is None or has_proportions(entered.grid, self._image) else None
        return grid_of(shift.shape[1], self._image)

    # --- pruning -----------------------------------------------------------------------------------------------

    def prune(
        self,
        schedule: ScheduleLike,
        *,
        pruner: str | Pruner | None = None,
        score: str | Score | None = None,
    ) -> Model:
        """Make a pruned model that shares the weights of this one.

        Args:
            schedule: What to drop after which block, see :meth:`Schedule.of`.
            pruner: A registered name or an object; by default what suits the model (``"tokens"`` for a ViT).
            score: ``"shift"`` (default) with this tracker's operation, distance and residual; the controls
                ``"norm"`` and ``"random"``; or a function of the tokens before and after the operation.

        Returns:
            A model of the same class with the same ``state_dict`` keys, whose parameters and buffers are those of
            the original, which is not touched. It can be compiled, exported, copied, pickled and trained. Move the
            original to its device and dtype first: moving either later moves weights that both use. A share that
            comes to less than one token of a small image drops none of it.

        Raises:
            UnsupportedModelError: If the model cannot be pruned; the message says why.
            ScheduleError: If the schedule does not fit the model or drops nothing.
            UnknownNameError: If the pruner or the score is not registered.

        Source: arXiv 2508.00367, section 3.
        """
        structure = self._structure or structure_of(self.model, required=True)
        if structure is None:
            raise UnsupportedModelError(unknown(self.model))
        if pruner is None or isinstance(pruner, str):
            chosen: Pruner = PRUNERS.get(pruner or structure.pruner)
        else:
            chosen = pruner
        if not callable(getattr(chosen, "shorten", None)):
            raise UnknownNameError(f"{chosen!r} is no pruner: it has no method shorten. Give one of {PRUNERS.names()}.")
        parsed = Schedule.of(schedule)
        scored = resolve_score(score, self._score)
        return prune(self.model, structure, Pruning(parsed, self.operation, scored, self.residual, chosen))


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except RepresentationError as error:
        raise RepresentationError(f"Cannot measure the shift across {name!r}: {error}") from error


class _Entered:
    """Tokens on their way through an operation."""

    def __init__(self, layout: Layout, before: Tensor, grid: tuple[int, ...] | None) -> None:
        self.layout, self.before, self.grid = layout, before, grid
        self.branches: list[Tensor] = []
