"""ShiftTracker: see how much every layer changes every token, and prune by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Generic, Literal, TypeVar

from torch import Tensor, nn

from repshift.attention import AttentionScore
from repshift.errors import UnknownNameError, UnsupportedModelError
from repshift.hooks import attached
from repshift.modules import refuse_compiled
from repshift.pruners import PRUNERS, Pruner
from repshift.pruning import Pruning, cuts, prune
from repshift.recording import Recorder
from repshift.records import Maps, Records
from repshift.registry import suggest
from repshift.roles import observed
from repshift.schedules import Schedule, ScheduleLike
from repshift.scores import Score, oracle_free, resolve_distance, resolve_score
from repshift.sites import OPERATIONS
from repshift.watching import choose, choose_attention, choose_operation, structure_of, unknown

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
            either way.
        reference: Of a convolutional network, what a stage's output is compared with: ``"stage"`` (default), the
            stage's input, brought to its size and channels by the stage's own first shortcut (our reading: the paper
            leaves it open), or ``"block"``, the input of the stage's last residual block. The same as ``operation``.
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
        reference: str | None = None,
        score: str | Score | AttentionScore | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise UnsupportedModelError(
                f"A ShiftTracker watches a model (torch.nn.Module), got {model!r}. "
                "Build it first, for example with repshift.load_model(name)."
            )
        refuse_compiled(model)
        if operation is not None and operation not in OPERATIONS:
            raise UnknownNameError(f"Unknown operation {operation!r}. {suggest(operation, OPERATIONS)}")
        self.model = model
        self.residual = residual
        self._distance = resolve_distance(distance)
        self._score = resolve_score(score, self._distance)
        self._structure = structure_of(model, required=sites is None)
        self.operation = choose_operation(self._structure, operation, reference)
        if isinstance(self._score, AttentionScore):
            watched, measure = choose_attention(model, self._structure, sites, self._score), self._distance
        else:
            watched, measure = choose(model, self._structure, sites, self.operation), self._score
        self._recorder = Recorder(model, self._structure, watched, measure, residual)
        self._stack: ExitStack | None = None

    # --- recording ---------------------------------------------------------------------------------------------

    @property
    def shifts(self) -> Records:
        """Shifts of the last forward, ``(batch, tokens)`` float32 by module name, in the units of the distance.

        With another ``score``, what that gave.

        On a pruned model, those of the tokens that were still there.
        """
        return Records({name: record.shift for name, record in self._recorder.records.items()})

    @property
    def maps(self) -> Mapping[str, Tensor]:
        """The same, laid out as ``(batch, rows, columns)``; NaN where a pruned model had dropped the token before.

        Maps of video have ``(batch, frames, rows, columns)``.
        """
        return Maps(self._recorder.records)

    @property
    def kept(self) -> Records:
        """Original positions that each cut of a pruned model kept, ``(batch, kept)`` int64, by module name.

        Positions count the tokens of the dense model behind that block, for a feature map row by row. They ascend,
        but for maps pruned by single positions, which are in the order of the smaller map.
        """
        return Records(self._recorder.kept)

    def __enter__(self) -> ShiftTracker[Model]:
        if self._stack is not None:
            raise UnsupportedModelError("This ShiftTracker is already attached. Leave its with block first.")
        refuse_compiled(self.model)
        self._recorder.clear()
        with ExitStack() as stack:
            stack.enter_context(attached(self._recorder.hooks()))
            cut = cuts(self.model)
            for name, observer in self._recorder.observers():
                stack.enter_context(observed(cut[name], observer))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        self._recorder.forget_unfinished()
        if stack is not None:
            stack.close()

    # --- pruning -----------------------------------------------------------------------------------------------

    def prune(
        self,
        schedule: ScheduleLike,
        *,
        pruner: str | Pruner | None = None,
        score: str | Score | AttentionScore | None = None,
        keep: Literal["top", "bottom"] = "top",
    ) -> Model:
        """Make a pruned model that shares the weights of this one.

        Args:
            schedule: What to drop after which block, see :meth:`Schedule.of`.
            pruner: A registered name or an object; by default what suits the model: ``"tokens"`` for a transformer,
                ``"sequence"`` for a state space model, ``"lines"`` (or ``"positions"``) for a convolutional network.
            score: By default the tracker's own; ``"shift"`` with its operation, distance and residual; the attention
                that tokens receive, from the class token ``"cls_attention"`` or from all ``"mean_attention"``; the
                controls ``"norm"`` and ``"random"``; ``"oracle_free"``, which keeps the first tokens without scoring
                and is the limit of speed; or a function of the tokens before and after the operation.
            keep: ``"top"`` keeps what scores highest; ``"bottom"`` keeps the lowest, the paper's control.

        Returns:
            A model of the same class with the same ``state_dict`` keys, whose parameters and buffers are those of
            the original, which is not touched. It can be compiled, exported, copied, pickled and trained. Move the
            original to its device and dtype first: moving either later moves weights that both use. A share that
            comes to less than one token of a small image drops none of it.

        Raises:
            UnsupportedModelError: If the model cannot be pruned; the message says why.
            ScheduleError: If the schedule does not fit the model or drops nothing.
            UnknownNameError: If the pruner or the score is not registered.

        Example:
            >>> import torch
            >>> from repshift import ShiftTracker, load_model
            >>> model = load_model("tiny_vit", pretrained=True)
            >>> pruned = ShiftTracker(model).prune({0: 0.2, 3: 0.2})
            >>> type(pruned) is type(model), pruned.head.weight is model.head.weight
            (True, True)
            >>> with ShiftTracker(pruned) as tracker:
            ...     logits = pruned(torch.rand(2, 3, 64, 64))
            >>> tracker.kept["blocks.3"].shape
            torch.Size([2, 164])

        Source: arXiv 2508.00367, section 3.
        """
        structure = self._structure or structure_of(self.model, required=True)
        if structure is None:
            raise UnsupportedModelError(unknown(self.model))
        if pruner is None or isinstance(pruner, str):
            chosen: Pruner = PRUNERS.get(pruner or structure.pruner)
        else:
            chosen = pruner
        if isinstance(chosen, type) or not callable(getattr(chosen, "shorten", None)):
            raise UnknownNameError(
                f"{chosen!r} is no pruner: expected an object with a method shorten. Give one of {PRUNERS.names()}."
            )
        parsed = Schedule.of(schedule)
        scored = self._score if score is None else resolve_score(score, self._distance)
        kept = _which(keep, scored, chosen)
        return prune(self.model, structure, Pruning(parsed, self.operation, scored, self.residual, chosen, kept))


def _which(
    keep: Literal["top", "bottom"], score: Score | AttentionScore, pruner: Pruner
) -> Literal["top", "bottom", "first"]:
    """Check which end of the ranking is to stay."""
    if keep not in ("top", "bottom"):
        raise UnknownNameError(f"keep is 'top' or 'bottom' of the scores, got {keep!r}. Leave it out for 'top'.")
    if score is not oracle_free:
        return keep
    if keep == "bottom":
        raise UnsupportedModelError("oracle_free ranks nothing, so it has no bottom. Leave keep out.")
    if not callable(getattr(pruner, "keep_first", None)):
        raise UnsupportedModelError(
            f"{type(pruner).__name__} cannot keep the first tokens without scores. Give it a method keep_first(value, "
            "drop, layout), or choose another score."
        )
    return "first"
