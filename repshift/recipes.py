"""A recipe: how a model is pruned, in words that can be printed, saved and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from repshift.attention_scores import AttentionScore
from repshift.distances import DISTANCES
from repshift.drops import FORMS, Drop
from repshift.errors import RecipeError, ScheduleError, UnknownNameError, UnsupportedModelError, first_line
from repshift.files import as_path, read_text, write_json
from repshift.images import read_size
from repshift.kernels import KERNELS
from repshift.pruners import PRUNERS, Pruner
from repshift.registry import named, object_of, read, written
from repshift.roles import Restoring
from repshift.schedules import Schedule
from repshift.scores import SCORES, PlaceScore, Score

VERSION = 1
REGISTRIES = {"distance": DISTANCES, "score": SCORES, "pruner": PRUNERS}
CHOICES: dict[str, tuple[tuple[Any, ...], str]] = {
    "keep": (("top", "bottom"), "'top' or 'bottom' of the scores"),
    "restore": (
        (False, True, "left"),
        "False, True (each dropped token becomes what the most similar kept one became) or 'left' (as it was when it "
        "was dropped)",
    ),
    "read": (("all", "head"), "'all' or 'head' (the last block computes only what the head reads)"),
    "attention": ((None, *KERNELS), f"None (as the model has it) or one of {', '.join(map(repr, KERNELS))}"),
}
BESIDE = ("input_size", "read", "attention")  # which are something to do without a schedule


@dataclass(frozen=True)
class Recipe:
    """How a model is pruned: one word for all that :meth:`repshift.ShiftTracker.prune` can be told.

    Attributes:
        schedule: What goes after which block, in any form that :meth:`repshift.Schedule.of` reads; ``None`` drops
            nothing, which takes an ``input_size``, ``read="head"`` or an ``attention`` to mean anything.
        operation: Which change is scored, by its name; ``None`` for the model's own.
        distance: ``"l2"``, ``"l1"``, ``"cosine"``, or a function of the tokens before and after.
        residual: Whether ``x + F(x)`` is compared with ``x``, or ``F(x)`` alone.
        score: ``"shift"``, the name of another score, or a function of the tokens before and after.
        pruner: A registered name or an object with a method ``choose``; ``None`` for what suits the model.
        keep: ``"top"`` keeps what scores highest, ``"bottom"`` what scores lowest.
        restore: ``True`` gives every token its place back behind the last block: merged ones what their group became,
            dropped ones what the kept token became that was most similar. ``"left"``: dropped ones as they were.
        input_size: A number of pixels or ``(rows, columns)``: the model is given the images that the dense one takes,
            resizes them to this size (bicubic, with antialias) and its table of positions as timm does. ``None``
            leaves both alone, and so does the model's own size.
        read: ``"head"`` lets the last block compute only what the head reads, where that is the class token alone:
            the same answers for less work. Whatever asks for tokens is refused then. ``"all"`` computes all.
        attention: The kernel that attention is computed by, see :func:`repshift.attention`; ``None`` leaves it as the
            model has it.

    What is registered under a name is kept as that name, so that two recipes of the same are equal.

    Raises:
        ScheduleError: If the schedule cannot be read or drops nothing.
        UnknownNameError: If a name is not registered, or a choice is none.

    Example:
        >>> from repshift import Recipe
        >>> recipe = Recipe("0.2@0,3,6", score="norm")
        >>> recipe
        Recipe('0.2@0,3,6', score='norm')
        >>> Recipe.from_json(recipe.to_json()) == recipe
        True
    """

    schedule: Any = None
    operation: str | None = None
    distance: str | Score = "l2"
    residual: bool = False
    score: str | Score | AttentionScore = "shift"
    pruner: str | Pruner | None = None
    keep: Literal["top", "bottom"] = "top"
    restore: Restoring = False
    input_size: int | tuple[int, int] | None = None
    read: Literal["all", "head"] = "all"
    attention: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", None if self.schedule is None else Schedule.of(self.schedule))
        object.__setattr__(self, "input_size", None if self.input_size is None else read_size(self.input_size))
        object.__setattr__(self, "distance", named(DISTANCES, self.distance))
        score = self.score if isinstance(self.score, str) and self.score == "shift" else named(SCORES, self.score)
        object.__setattr__(self, "score", score)
        object.__setattr__(self, "pruner", None if self.pruner is None else named(PRUNERS, self.pruner))
        if self.operation is not None and (not isinstance(self.operation, str) or not self.operation):
            raise UnknownNameError(f"An operation is asked for by its name, got {self.operation!r}. Give a string.")
        check_residual(self.residual)
        for name, (choices, words) in CHOICES.items():
            given = getattr(self, name)
            if not any(type(given) is type(choice) and given == choice for choice in choices):
                raise UnknownNameError(f"{name} is {words}, got {given!r}. Leave it out for {choices[0]!r}.")
        if self.restore and self.read == "head":
            raise UnsupportedModelError(
                "restore gives every token its place back, and read='head' computes none of them. Leave one out."
            )
        self._refuse_scores_beside_a_choice()
        if self.schedule is None:
            self._refuse_words_about_nothing()
        if isinstance(self.the_score, PlaceScore) and self.keep == "bottom":
            raise UnsupportedModelError("oracle_free ranks nothing, so it has no bottom. Leave keep out.")

    @property
    def scores(self) -> bool:
        """Whether tokens are scored: some pruners choose by themselves."""
        return self.pruner is None or not getattr(object_of(PRUNERS, self.pruner), "chooses_itself", False)

    def _refuse_scores_beside_a_choice(self) -> None:
        if self.scores:
            return
        # which change a tracker measures is beside the point; a score, or an end of it, is meant
        if said := [name for name, usual in (("score", "shift"), ("keep", "top")) if getattr(self, name) != usual]:
            raise UnsupportedModelError(
                f"The pruner {self.pruner!r} chooses by itself and looks at no scores, so {' and '.join(said)} would "
                "say nothing. Leave that out, or give pruner='merge', which merges by a score."
            )

    def _refuse_words_about_nothing(self) -> None:
        said = [each.name for each in fields(self) if self._says(each)]
        if not set(BESIDE).intersection(said):
            raise ScheduleError(
                "A recipe without a schedule, an input_size, read='head' and an attention changes nothing. Give one of "
                "them. " + FORMS
            )
        if said := [name for name in said if name not in BESIDE]:
            raise ScheduleError(
                f"Nothing is dropped without a schedule, so {' and '.join(said)} would say nothing. Give a schedule, "
                "or leave that out."
            )

    def _says(self, field: Field[Any]) -> bool:
        return bool(getattr(self, field.name) != field.default)

    @property
    def only_attention(self) -> bool:
        """Whether it says by what attention is computed, and nothing else."""
        return {each.name for each in fields(self) if self._says(each)} == {"attention"}

    @property
    def drops(self) -> Mapping[int, Drop]:
        """What goes after which block; nothing without a schedule. What is repeated is not in it before it is used."""
        return {} if self.schedule is None else self.schedule.drops

    @property
    def the_score(self) -> Score | AttentionScore:
        """The function behind the score."""
        found: Score | AttentionScore
        found = object_of(DISTANCES, self.distance) if self.score == "shift" else object_of(SCORES, self.score)
        return found

    def the_pruner(self, default: str) -> Pruner:
        """Return the object behind the pruner, or behind the name of the one that suits a model.

        Raises:
            UnknownNameError: If it is no pruner.
        """
        found = object_of(PRUNERS, default if self.pruner is None else self.pruner)
        if isinstance(found, type) or not callable(getattr(found, "choose", None)):
            raise UnknownNameError(
                f"{found!r} is no pruner: expected an object with a method choose(candidates, drop). "
                f"Give one of {PRUNERS.names()}."
            )
        pruner: Pruner = found
        return pruner

    # --- words -------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold, all fields in order.

        Raises:
            RecipeError: If a distance, score or pruner has no name: a function cannot be written down.
        """
        schedule = self.schedule
        plain: dict[str, Any] = {"schedule": None if schedule is None else str(schedule)}
        if schedule is not None and schedule.entries is not None:
            plain["schedule"] = [schedule.drops.get(block, 0) for block in range(schedule.entries)]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            plain[field.name] = written(REGISTRIES[field.name], value) if field.name in REGISTRIES else value
        plain["input_size"] = None if self.input_size is None else list(plain["input_size"])
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Recipe:
        """Read what :meth:`to_dict` wrote; what is left out has its default.

        Raises:
            RecipeError: If it says something else, or something of a wrong kind.
        """
        if not isinstance(plain, Mapping) or "schedule" not in plain:
            raise RecipeError(f"A recipe is an object with at least a schedule, got {plain!r}.")
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in plain if name not in known]:
            raise RecipeError(f"A recipe says {', '.join(known)}; it does not say {', '.join(map(repr, unknown))}.")
        said = dict(plain)
        for name, registry in REGISTRIES.items():
            if isinstance(said.get(name), Mapping):
                said[name] = read(registry, said[name])
            elif isinstance(said.get(name), (list, int, float)):
                raise RecipeError(f"A recipe names its {name}, got {said[name]!r}.")
        try:
            return cls(**said)
        except (TypeError, ScheduleError, UnknownNameError) as error:
            raise RecipeError(f"The recipe {dict(plain)!r} cannot be read: {first_line(error)}") from error

    def to_json(self) -> str:
        """Return the recipe as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what :meth:`to_json` wrote.

        Raises:
            RecipeError: If the text is no JSON or no recipe.
        """
        try:
            plain = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise RecipeError(f"A recipe is written in JSON, and this is none ({first_line(error)}).") from error
        if not isinstance(plain, dict) or "recipe" not in plain:
            return cls.from_dict(plain)
        check_version(plain)
        return cls.from_dict(plain["recipe"])

    def save(self, path: str | Path) -> None:
        """Write the recipe to a file, in one piece.

        Raises:
            RecipeError: If it cannot be written down (see :meth:`to_dict`), or the file cannot be written.
        """
        write_json(as_path(path), {"repshift": VERSION, "recipe": self.to_dict()})

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a file.

        Raises:
            RecipeError: If the file cannot be read or holds none.
        """
        text = read_text(as_path(path))
        try:
            return cls.from_json(text)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error

    def __repr__(self) -> str:
        """Name the schedule and what is not as by default."""
        said = [repr(self.schedule and str(self.schedule))]
        said += [f"{field.name}={getattr(self, field.name)!r}" for field in fields(self)[1:] if self._says(field)]
        return f"{type(self).__name__}({', '.join(said)})"


def check_version(said: Mapping[str, Any]) -> None:
    """Check that a file was written by a version that wrote as this one does, and says nothing that would be passed by.

    Raises:
        RecipeError: If it was not, or says something else.
    """
    if said.get("repshift", VERSION) != VERSION or isinstance(said.get("repshift"), bool):
        raise RecipeError(
            f"This was written in the form {said['repshift']!r}, and this version of repshift reads form {VERSION}. "
            "Read it by the version that wrote it, or write it again."
        )
    known = ("repshift", "model", "options", "recipe")
    if unknown := [name for name in said if name not in known]:
        raise RecipeError(f"A file says {', '.join(known)}; it does not say {', '.join(map(repr, unknown))}.")


def check_residual(residual: object) -> None:
    """Check that a residual setting is one.

    Raises:
        UnknownNameError: If it is not a bool: any other value would count as ``True``.
    """
    if not isinstance(residual, bool):
        raise UnknownNameError(
            f"residual is True (compare x + F(x) with x) or False (compare F(x) with x), got {residual!r}."
        )
