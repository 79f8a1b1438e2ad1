"""ShiftTracker: see how much every layer changes every token, and prune by it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import nn

from repshift.attention_scores import AttentionScore
from repshift.errors import RecipeError, UnknownNameError, UnsupportedModelError
from repshift.finding import find_structure, find_structure_if_served, require_structure
from repshift.modules import refuse_compiled, require_model
from repshift.operations import OPERATIONS, say_second_residual
from repshift.pruners import Pruner
from repshift.pruning import prune
from repshift.recipes import Recipe, check_residual
from repshift.recording import Recorder
from repshift.records import Maps, PerModule
from repshift.registry import suggest
from repshift.roles import Restoring
from repshift.schedules import ScheduleLike
from repshift.scores import Score, resolve_distance, resolve_score
from repshift.watching import refuse_unread, watched_attention, watched_operations

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
        operation: Which change counts. Of a transformer block ``"mlp"`` (default), ``"attn"`` or ``"block"``; of a
            convolutional network ``"stage"`` (default) or ``"block"``, the last block of the stage; of a state space
            layer ``"mixer"`` (default) or ``"block"``.
        distance: ``"l2"``, ``"l1"``, ``"cosine"``, or a function of the tokens before and after.
        residual: ``False`` compares ``F(x)`` with ``x``, as the paper prints it; ``True`` compares ``x + F(x)`` with
            ``x``, the change of the residual stream. The operations ``block`` and ``stage`` contain the residual
            already: there ``True`` changes nothing, which is said in a warning.
        score: What is recorded, and pruned by, instead of the shift: ``"cls_attention"`` or ``"mean_attention"``, how
            much attention each token receives (a part of the map is then computed once more, from queries and keys);
            ``"norm"``, ``"random"``; or a function of the tokens before and after.

    A module that runs several times in one forward is recorded as it ran last, and so are several forwards.

    Raises:
        UnsupportedModelError: If the model is compiled, or unknown and no sites are given.
        UnknownNameError: If a site, an operation, a distance or a score does not exist; the message has the closest
            names.

    Example:
        >>> import torch
        >>> from repshift import ShiftTracker, load_model
        >>> model = load_model("tiny_vit", pretrained=True)
        >>> with ShiftTracker(model) as tracker:
        ...     logits = model(torch.rand(2, 3, 64, 64))
        >>> tracker.shifts["blocks.3"].shape, tracker.maps["blocks.3"].shape
        (torch.Size([2, 256]), torch.Size([2, 16, 16]))

    Source: arXiv 2508.00367, section 3.
    """

    def __init__(
        self,
        model: Model,
        sites: str | Iterable[str] | None = None,
        *,
        operation: str | None = None,
        distance: str | Score = "l2",
        residual: bool = False,
        score: str | Score | AttentionScore | None = None,
    ) -> None:
        require_model(model)
        refuse_compiled(model)
        check_residual(residual)
        self.model = model
        self._asked_operation = operation
        self._is_told = (operation, distance, residual, score) != (None, "l2", False, None)
        self.residual = residual
        self.distance = distance
        self.score = "shift" if score is None else score
        measured = resolve_score(score, distance)
        self._structure = find_structure(model) if sites is None else find_structure_if_served(model)
        self.operation = self._which_operation(operation)
        if isinstance(measured, AttentionScore):
            watched = watched_attention(model, self._structure, sites, measured)
            measured = resolve_distance(distance)
        else:
            watched = watched_operations(model, self._structure, sites, self.operation)
            if residual:
                say_second_residual(each.operation for each in watched)
        refuse_unread(model, self._structure, watched)
        self._recorder = Recorder(model, self._structure, watched, measured, residual)
        self._stack: ExitStack | None = None
        self.output: Any = None

    def _which_operation(self, asked: str | None) -> str:
        """Settle which operation is watched: the one asked for, or the model's own."""
        if asked is None:
            return self._structure.operation if self._structure else "block"
        if self._structure is not None:
            self._structure.check_operation(asked)
        elif asked not in OPERATIONS:
            raise UnknownNameError(f"Unknown operation {asked!r}. {suggest(asked, OPERATIONS)}")
        return asked

    def __repr__(self) -> str:
        watched = self._recorder.watched
        what = f"{self.distance} of {self.operation}" if self.score == "shift" else str(self.score)
        named = watched[0].name if len(watched) == 1 else f"{watched[0].name} to {watched[-1].name} ({len(watched)})"
        return f"{type(self).__name__}({type(self.model).__name__}, {what} at {named})"

    # --- recording ---------------------------------------------------------------------------------------------

    @property
    def shifts(self) -> PerModule:
        """Shifts of the last forward, ``(batch, tokens)`` float32 by module name, in the units of the distance.

        With another ``score``, what that gave. On a pruned model, those of the tokens that were still there. A block
        can also be named by its number, as in a schedule; ``shifts.stacked()`` is ``(modules, batch, tokens)``.
        """
        measured = self._recorder.measurements
        return PerModule({name: each.shift for name, each in measured.items()}, self._blocks())

    @property
    def maps(self) -> Maps:
        """The same, laid out as ``(batch, rows, columns)``; NaN where a pruned model had dropped the token before.

        A token that was merged into another one shows what that has. Maps of video have ``(batch, frames, rows,
        columns)``.
        """
        return Maps(self._recorder.measurements, self._blocks())

    @property
    def kept(self) -> PerModule:
        """Original positions that each cut of a pruned model kept, ``(batch, kept)`` int64, by module name.

        Positions count the tokens of the dense model behind that block, for a feature map row by row. They ascend,
        but for maps pruned by single positions, which are in the order of the smaller map.
        """
        return PerModule(self._recorder.kept, self._blocks())

    @property
    def joined(self) -> PerModule:
        """What each original token became part of, behind each cut of a model that merges tokens.

        ``(batch, tokens)`` int64 by module name: which of the kept tokens, by its place among them; -1 for dropped.
        """
        return PerModule(self._recorder.joined, self._blocks())

    def _blocks(self) -> tuple[str, ...]:
        return tuple(site.name for site in self._structure.sites) if self._structure else ()

    def run(self, images: Any) -> ShiftTracker[Model]:
        """Record one forward, without gradients: the commonest three lines in one.

        Args:
            images: What the model takes, ``(batch, channels, rows, columns)``.

        Returns:
            The tracker itself; what the model returned is its ``output``.

        Example:
            >>> import torch
            >>> from repshift import ShiftTracker, load_model
            >>> ShiftTracker(load_model("tiny_vit")).run(torch.rand(2, 3, 64, 64)).shifts.stacked().shape
            torch.Size([6, 2, 256])
        """
        with self, torch.no_grad():
            self.output = self.model(images)
        return self

    def __enter__(self) -> ShiftTracker[Model]:
        if self._stack is not None:
            raise UnsupportedModelError("This ShiftTracker is already attached. Leave its with block first.")
        refuse_compiled(self.model)
        self._recorder.clear()
        with ExitStack() as stack:
            stack.enter_context(self._recorder.attached())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()
        if isinstance(error, Exception):
            self._recorder.explain(error)

    # --- pruning -----------------------------------------------------------------------------------------------

    def prune(
        self,
        schedule: ScheduleLike | Recipe | None = None,
        *,
        pruner: str | Pruner | None = None,
        score: str | Score | AttentionScore | None = None,
        keep: Literal["top", "bottom"] = "top",
        restore: Restoring = False,
        input_size: int | tuple[int, int] | None = None,
        read: Literal["all", "head"] = "all",
        attention: str | None = None,
    ) -> Model:
        """Make a pruned model that shares the weights of this one.

        Args:
            schedule: What to drop after which block, see :meth:`Schedule.of`; or a whole :class:`repshift.Recipe`,
                which says everything else, too, so nothing else can be given, here or to the tracker.
            pruner: A registered name or an object; by default what suits the model: ``"tokens"`` for a transformer,
                ``"sequence"`` for a state space model, ``"lines"`` (or ``"positions"``) for a convolutional network.
            score: By default the tracker's own; ``"shift"`` with its operation, distance and residual; the attention
                that tokens receive, from the class token ``"cls_attention"`` or from all ``"mean_attention"``; the
                controls ``"norm"`` and ``"random"``; ``"oracle_free"``, which keeps the first tokens without scoring
                and is the limit of speed; or a function of the tokens before and after the operation.
            keep: ``"top"`` keeps what scores highest; ``"bottom"`` keeps the lowest, the paper's control.
            restore: ``True`` gives every token its place back behind the last block, ``"left"`` with the value that
                it had when it was dropped; see :class:`repshift.Recipe`.
            input_size: Rows and columns, or one number for both, to which the pruned model resizes its images before
                it computes with them; it takes those that this model takes. The schedule may then be left out.
            read: ``"head"`` lets the last block compute only what the head reads, where that is the class token alone;
                the schedule may then be left out, too. Nothing can ask such a model for tokens.
            attention: The kernel that attention is computed by, see :func:`repshift.attention`; by default what was
                chosen for this model.

        Returns:
            A model of the same class (where tokens are merged or restored, or blocks can be given masks or tables of
            positions, of a class derived from it, of the same name) with the same ``state_dict`` keys. It has the
            original's very tables of parameters and buffers, so moving, converting or loading either model does so
            for both; replacing a module of one does not, and ``torch.nn.utils.prune`` and ``parametrize`` must come
            before (see :func:`repshift.sharing.share_weights`). The original is not touched. The pruned model can be
            compiled, exported, copied, pickled and trained. A share that comes to less than one token of a small
            image drops none of it.

        Raises:
            UnsupportedModelError: If the model cannot be pruned; the message says why.
            ScheduleError: If the schedule does not fit the model or drops nothing.
            UnknownNameError: If the pruner or the score is not registered.

        Example:
            >>> import torch
            >>> from repshift import ShiftTracker, load_model
            >>> model = load_model("tiny_vit", pretrained=True)
            >>> pruned = ShiftTracker(model).prune({0: 0.2, 3: 0.2})
            >>> isinstance(pruned, type(model)), pruned.head.weight is model.head.weight
            (True, True)
            >>> ShiftTracker(pruned).run(torch.rand(2, 3, 64, 64)).kept["blocks.3"].shape
            torch.Size([2, 164])

        Source: arXiv 2508.00367, section 3.
        """
        structure = self._structure or require_structure(self.model)
        if isinstance(schedule, Recipe):
            told = (pruner, score, keep, restore, input_size, read, attention)
            if self._is_told or told != (None, None, "top", False, None, "all", None):
                raise RecipeError(
                    "A recipe says everything, so nothing else can be given beside it, nor to the tracker: its "
                    "operation, distance, residual and score would have no effect. Change the recipe instead: "
                    "dataclasses.replace(recipe, score='norm')."
                )
            return prune(self.model, structure, schedule)
        # what the tracker watches says nothing of a recipe that drops nothing
        own: tuple[Any, ...] = (self._asked_operation, self.distance, self.residual, self.score)
        operation, distance, residual, usual = (None, "l2", False, "shift") if schedule is None else own
        measured = usual if score is None else score
        said = (schedule, operation, distance, residual, measured, pruner, keep, restore, input_size, read, attention)
        recipe = Recipe(*said)
        return prune(self.model, structure, recipe)
