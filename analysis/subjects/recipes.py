"""How commands ask for a pruned model: the options that evaluation, benchmark and ablations share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from repshift import Schedule, ShiftTracker, UnknownNameError


@dataclass(frozen=True)
class Variant:
    """One way to prune a model, in the words of the command line.

    Attributes:
        drop: A schedule in its string form, see :meth:`repshift.Schedule.of`; ``None`` leaves the model dense.
        score: Any of ``repshift.SCORES``, or ``shift``.
        operation: Whose change counts; ``None`` for the model's own.
        distance: ``l2``, ``l1`` or ``cosine``.
        residual: Compare ``x + F(x)`` with ``x`` instead of ``F(x)`` with ``x``.
        pruner: Any of ``repshift.PRUNERS``; ``None`` for what suits the model.
        keep: ``top`` keeps what scores highest; ``bottom`` keeps the lowest, the paper's control.

    Raises:
        ScheduleError: If ``drop`` is no schedule.

    Example:
        >>> from repshift import load_model
        >>> random = Variant("0.5@0", score="random")
        >>> pruned = random.apply(load_model("tiny_vit"))
        >>> random.method, Variant().method
        ('random', 'dense')
    """

    drop: str | None = None
    score: str = "shift"
    operation: str | None = None
    distance: str = "l2"
    residual: bool = False
    pruner: str | None = None
    keep: Literal["top", "bottom"] = "top"

    def __post_init__(self) -> None:
        if self.drop is not None:
            Schedule.of(self.drop)

    @property
    def method(self) -> str:
        """Name it in a table: ``dense``, the score, or ``bottom`` of the score."""
        if self.drop is None:
            return "dense"
        return self.score if self.keep == "top" else f"{self.score} (bottom)"

    def apply(self, model: nn.Module) -> nn.Module:
        """Make the pruned model; a dense variant gives the model itself.

        Raises:
            UnsupportedModelError: If the model cannot be pruned so; the message says why.
            ScheduleError: If the schedule does not fit the model.
            UnknownNameError: If a name does not exist.
        """
        if self.drop is None:
            return model
        tracker = ShiftTracker(model, operation=self.operation, distance=self.distance, residual=self.residual)
        return tracker.prune(self.drop, pruner=self.pruner, score=self.score, keep=self.keep)

    def settings(self) -> dict[str, Any]:
        """Return the attributes by name, as results files hold them."""
        return asdict(self)


def choose_drop(drop: str | None, drop_r: str | None) -> str | None:
    """Settle the schedule of a command that takes ``--drop`` and the paper's ``--drop_r`` (one share a block).

    Raises:
        UnknownNameError: If both are given.
    """
    if drop is not None and drop_r is not None:
        raise UnknownNameError(
            f"Got --drop {drop!r} and --drop-r {drop_r!r}: two forms of one schedule. Give one of them."
        )
    return drop if drop_r is None else drop_r


def block_numbers(blocks: str | None) -> list[int] | None:
    """Read the numbers of ``--blocks``, such as ``0,4,8``.

    Raises:
        UnknownNameError: If they are no numbers.
    """
    if blocks is None:
        return None
    try:
        return [int(part) for part in blocks.split(",")]
    except ValueError as error:
        raise UnknownNameError(f"--blocks got {blocks!r}, expected numbers counted from zero, as in 0,4,8.") from error
