"""How commands prune: recipes in the words of the command line and of results files; a dense model has none."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from repshift import DataError, Recipe, RecipeError, ShiftTracker, UnknownNameError, attention, recipe_of
from repshift.analysis.output.results import RECIPE, read_results
from repshift.analysis.subjects.limits import check_blocks
from repshift.analysis.subjects.models import own_recipe
from repshift.errors import first_line
from repshift.files import read_text
from repshift.finding import find_structure_if_served

# What a recipe says beside its schedule, and what it says by default: the options of the commands
DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Recipe) if field.name != "schedule"}
UNASKED = ("restore", "input_size", "read", "attention")  # what only a file says


def apply(recipe: Recipe | None, model: nn.Module) -> nn.Module:
    """Make the pruned model; without a recipe, it is the model itself.

    What was chosen for the attention of the model goes before what the recipe says, so that all methods have the same.

    Raises:
        UnsupportedModelError: If the model cannot be pruned so; the message says why.
        ScheduleError: If the schedule does not fit the model.

    Example:
        >>> from repshift import Recipe, load_model
        >>> random, model = Recipe("0.5@0", score="random"), load_model("tiny_vit")
        >>> pruned = apply(random, model)
        >>> apply(None, model) is model, type(pruned).__name__ == type(model).__name__
        (True, True)
    """
    if recipe is None:
        return model
    chosen = recipe_of(model)
    if chosen is not None and chosen.attention is not None:
        if recipe.only_attention:
            return model
        recipe = replace(recipe, attention=None)
    return attention(model, str(recipe.attention)) if recipe.only_attention else ShiftTracker(model).prune(recipe)


def pruning_of(model: nn.Module) -> Recipe | None:
    """Return the recipe that a model was pruned by; ``None`` for a dense one, whatever computes its attention."""
    recipe = recipe_of(model)
    return None if recipe is None or recipe.only_attention else recipe


def with_tokens(recipe: Recipe | None) -> Recipe | None:
    """Return the recipe of the same answers whose model can show all its tokens; ``None`` for a dense one."""
    if recipe is None or recipe.read == "all":
        return recipe
    nothing = recipe.schedule is None and recipe.input_size is None and recipe.attention is None
    return None if nothing else replace(recipe, read="all")


def settings_of(recipe: Recipe | None) -> dict[str, Any]:
    """Return what a recipe says as plain values by the names of the options, as files hold them to compare with.

    Raises:
        RecipeError: If it cannot be written down.
    """
    said = {"schedule": None, **DEFAULTS} if recipe is None else recipe.to_dict()
    settings: dict[str, Any] = {"drop": schedule_of(recipe)}
    settings |= {name: said[name] for name in ("score", "operation", "distance", "residual", "pruner", "keep")}
    # which no option says, so that files from before they could be said are still equal
    return settings | {name: said[name] for name in UNASKED if said[name] != DEFAULTS[name]}


def schedule_of(recipe: Recipe | None) -> str | None:
    """Return what a recipe drops in the words of ``--drop``; ``None`` if it drops nothing."""
    return None if recipe is None or recipe.schedule is None else str(recipe.schedule)


def measured_columns(model: nn.Module) -> dict[str, Any]:
    """Say how a model was scored and cut, as columns of results files; all are ``None`` for a dense one.

    What only the shift knows is ``None`` beside another score, and so is the pruner that suits the model by default.
    ``input_size`` is there only for a model that makes its input smaller: pixels a side, or rows and columns;
    ``attention`` only where a kernel was chosen.
    """
    recipe, structure = recipe_of(model), find_structure_if_served(model)
    columns: dict[str, Any] = dict.fromkeys(("operation", "distance", "residual", "pruner"))
    if recipe is not None and recipe.schedule is not None:
        said, by_shift, pruner = recipe.to_dict(), recipe.score == "shift" and recipe.scores, pruner_in_words(recipe)
        columns = {name: said[name] if by_shift else None for name in ("operation", "distance", "residual")}
        columns["pruner"] = None if structure is not None and pruner == structure.pruner else pruner
    if recipe is not None and isinstance(recipe.input_size, tuple):  # which it is once it was read
        rows, beside = recipe.input_size
        columns["input_size"] = rows if rows == beside else [rows, beside]
    if recipe is not None and recipe.attention is not None:
        columns["attention"] = recipe.attention
    return columns


def size_in_words(side: int | Sequence[int]) -> str:
    """Write the size of an input: one number, or rows and columns."""
    sides = [side] if not isinstance(side, (list, tuple)) else side
    return "x".join(str(each) for each in dict.fromkeys(sides))


def whole_recipe(model: nn.Module) -> dict[str, Any] | None:
    """Return the whole recipe that a model was pruned by, as results files hold it; ``None`` for a dense one."""
    recipe = pruning_of(model)
    return None if recipe is None else recipe.to_dict()


def in_words(recipe: Recipe) -> str:
    """Say in a title what a recipe does."""
    drops, size = schedule_of(recipe), recipe.input_size
    words = [f"{drops} dropped" if drops else "", f"images of {size[0]}x{size[1]}" if isinstance(size, tuple) else ""]
    words.append("" if recipe.read == "all" else f"read={recipe.read}")
    words.append("" if recipe.attention is None else f"attention by {recipe.attention}")
    return ", ".join(filter(None, words))


def pruner_in_words(recipe: Recipe) -> str:
    """Name the pruner of a recipe that a model was pruned by, with what is set otherwise than by default."""
    pruner = recipe.to_dict()["pruner"]
    if isinstance(pruner, str):
        return pruner
    settings = ", ".join(f"{name}={value}" for name, value in pruner.items() if name != "name")
    return f"{pruner['name']} ({settings})"


# --- the command line ---------------------------------------------------------------------------------------------


def chosen_recipe(
    file: Path | None = None,
    drop: str | None = None,
    drop_r: str | None = None,
    *,
    model: str = "",
    shown: Collection[str] = (),
    **options: Any,
) -> Recipe | None:
    """Settle how a command prunes: by its ``--recipe``, by ``--drop`` and what goes with it, or by the model's folder.

    Args:
        file: Of ``--recipe``.
        drop: Of ``--drop``.
        drop_r: Of ``--drop-r``.
        model: The command's model, which may be a folder with a recipe of its own.
        shown: Options that say something of a dense model, too.
        **options: The command's other options, by their names in a recipe; any of :data:`DEFAULTS`.

    Returns:
        The recipe; ``None`` leaves the model dense.

    Raises:
        RecipeError: If the file holds no recipe, or an option says what the recipe says already.
        UnknownNameError: If a name does not exist, or ``--drop`` and ``--drop-r`` are both given.
        ScheduleError: If the schedule cannot be read.
        DataError: If nothing is dropped, and an option says how.
        CheckpointError: If the model's folder holds no model.
    """
    changed = [name for name, value in options.items() if value != DEFAULTS[name]]
    if file is not None:
        given = [name for name, value in (("drop", drop), ("drop_r", drop_r)) if value is not None]
        _refuse_beside(f"--recipe {file}", [*given, *changed], "leave out --recipe")
        return read_recipe(file)
    schedule = choose_drop(drop, drop_r)
    if schedule is not None:
        return Recipe(schedule, **options)
    own = own_recipe(model)
    if own is not None:
        _refuse_beside(f"the recipe of {model}", changed, f"give --drop {schedule_of(own) or 'SCHEDULE'} with them")
    useless = [name for name in options if name not in shown]
    if own is None and any(name in useless for name in changed):
        raise DataError(
            f"Nothing is dropped, so there is nothing to choose by {_listed(useless, 'or')}. Give --drop or --recipe, "
            "or leave these out."
        )
    return own


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


def _refuse_beside(source: str, given: Collection[str], otherwise: str) -> None:
    """Refuse options that a recipe says already.

    Raises:
        RecipeError: If there are any.
    """
    if given:
        named = _listed(given, "and")
        raise RecipeError(f"Got {named} beside {source}, which says everything. Leave out {named}, or {otherwise}.")


def _listed(options: Collection[str], last: str) -> str:
    *before, final = (f"--{name.replace('_', '-')}" for name in options)
    return f"{', '.join(before)} {last} {final}" if before else final


def read_recipe(file: Path) -> Recipe:
    """Read a recipe from what :meth:`repshift.Recipe.save` wrote, or from a results file with just one recipe in it.

    Raises:
        RecipeError: If the file is missing, or does not hold one recipe.
        DataError: If it is a results file of another version, or damaged.
    """
    text = read_text(file)
    try:
        return _only_recipe(file) if _is_results(text) else Recipe.from_json(text)
    except RecipeError as error:
        raise RecipeError(f"--recipe {file}: {first_line(error)}") from error


def _is_results(text: str) -> bool:
    try:
        return "repshift_results" in json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False


def _only_recipe(file: Path) -> Recipe:
    held = (row.get(RECIPE) for row in read_results(file).rows)
    recipes = list(dict.fromkeys(Recipe.from_dict(recipe) for recipe in held if recipe is not None))
    if len(recipes) != 1:
        raise RecipeError(
            f"This results file holds {len(recipes) or 'no'} recipes, and one is expected. Save the one that is meant: "
            "repshift.Recipe.from_dict(row['recipe']).save('recipe.json')."
        )
    return recipes[0]


def block_numbers(blocks: str | None) -> list[int] | None:
    """Read the numbers of ``--blocks``, such as ``0,4,8``.

    Raises:
        UnknownNameError: If they are no numbers, or one is named twice.
    """
    if blocks is None:
        return None
    try:
        numbers = [int(part) for part in blocks.split(",")]
    except ValueError as error:
        raise UnknownNameError(f"--blocks got {blocks!r}, expected numbers counted from zero, as in 0,4,8.") from error
    return check_blocks(numbers)
