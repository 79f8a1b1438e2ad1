"""The errors that repshift raises for input it cannot serve: what was given, what was expected, what to do next."""

from __future__ import annotations


class RepshiftError(Exception):
    """Root of every error that repshift raises on purpose."""


class UnknownNameError(RepshiftError, ValueError):
    """A name that is not known: a model, a module, a distance, an operation, a score."""


class ScheduleError(RepshiftError, ValueError):
    """A drop schedule that does not fit the model or drops too little or too much."""


class RecipeError(RepshiftError, ValueError):
    """A recipe that cannot be read or written down."""


class UnsupportedModelError(RepshiftError, TypeError):
    """A model that cannot be tracked or pruned; the message says why."""


class RepresentationError(RepshiftError, ValueError):
    """A tensor inside the model that does not have the form its layout promises."""


class CheckpointError(RepshiftError, ValueError):
    """A checkpoint that cannot be read or does not fit the model."""


class DataError(RepshiftError, ValueError):
    """Data that cannot be read or does not have the expected form."""


class MissingPackageError(RepshiftError, ImportError):
    """An optional package that is not installed; the message says how to install it."""


class AdvisedError(RepshiftError):
    """What happened, beside advice on options that not all who report it have.

    Args:
        why: What happened.
        advice: Which options would help.
    """

    def __init__(self, why: str, advice: str = "") -> None:
        super().__init__(f"{why} {advice}".rstrip())
        self.why = why


class RepshiftWarning(UserWarning):
    """Something that was asked for and has no effect."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, to be quoted in one of ours."""
    return next(iter(str(error).splitlines()), "no details")
