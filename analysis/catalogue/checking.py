"""What can be done with one model, as its description says, and whether that is so."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from repshift import Recipe, ShiftTracker, describe, repeated_blocks
from repshift.analysis.catalogue.sources import build, example, family_of, quiet
from repshift.drops import Drop, dropped_count
from repshift.errors import RepshiftError, ScheduleError, first_line
from repshift.finding import require_structure
from repshift.schedules import Schedule
from repshift.sites import Structure
from repshift.testing import CHECKS, BackboneError, make_subject

PRUNED, TRACKED, REFUSED, WRONG = "pruned", "tracked", "refused", "wrong"
EQUAL = "equal"
# On real tensors, of those that a pruned model promises
NUMBERS = ("nothing dropped is the dense model, bit for bit", "images do not disturb each other")
Row = dict[str, Any]


def looked_at(name: str, *, check: bool) -> Row:
    """Say what can be done with a model; whatever is raised on the way becomes a row, too.

    Args:
        name: See :func:`repshift.analysis.catalogue.sources.model_names`.
        check: Run it on the device ``meta``, where there are shapes and no values: dense if it is tracked, pruned with
            the predicted numbers of tokens if it is pruned.

    Returns:
        A row: ``state`` is ``pruned``; ``tracked``, by names of its modules; ``refused``, if neither; or ``wrong``.
    """
    row: Row = {"model": name, "family": "", "class": "", "params": None, "state": REFUSED}
    row |= {"blocks": "", "tokens": None, "schedule": "", "kept": "", "map": "", "numbers": "", "why": ""}
    try:
        with quiet(), torch.no_grad():
            row["family"] = family_of(name)
            model = build(name)
            row |= {"class": type(model).__name__, "params": sum(each.numel() for each in model.parameters())}
            known = describe(model)
            if known.structure is None:
                row |= {"state": TRACKED, "why": _reason(known.why_not or "", known.model)}
                return row | (_tracked(model) if check else {})
            unit = known.structure.unit
            row |= {"state": PRUNED, "blocks": f"{len(known.blocks)} {unit}s", "tokens": known.tokens}
            row["schedule"] = str(next(_recipes(known.structure)).schedule)
            return row | (_pruned(model, known.structure) if check else {})
    except Exception as error:  # one model of another library must not be the end of a run over all of them
        ours = isinstance(error, RepshiftError) and not isinstance(error, BackboneError)
        told = _reason(str(error) if ours else f"{type(error).__name__}: {first_line(error)}", row["class"])
        why = "; ".join(filter(None, (row["why"], told)))  # not pruned for the one reason, not tracked for the other
        return row | {"state": REFUSED if ours or row["state"] == REFUSED else WRONG, "why": why}


def numbers_of(name: str, recipe: str, operation: str | None) -> Row:
    """Check on real tensors that nothing dropped is the dense model, and that a batch is its images one by one.

    Args:
        name: See :func:`looked_at`.
        recipe: The schedule.
        operation: What it is scored by; ``None`` for the model's own.

    Returns:
        What changes in the row of the model.
    """
    try:
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(0)
            model = build(name, "cpu")
            with torch.no_grad():  # what begins as zero would hide what it is multiplied with
                for parameter in model.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
                restore = bool(require_structure(model).needs_all)
                asked = Recipe(recipe, operation=operation, restore=restore)
                subject = make_subject(model, example(model, "cpu", 2), asked)
                for check in NUMBERS:
                    CHECKS[check](subject)
    except Exception as error:  # as above
        return {"numbers": "", "state": WRONG, "why": f"{type(error).__name__}: {first_line(error)}"}
    return {"numbers": EQUAL}


def _tracked(model: nn.Module) -> Row:
    """Record the shifts of the blocks that the model is found to have."""
    images = example(model, "meta", 1)
    names = repeated_blocks(model, images)
    tracker = ShiftTracker(model, names).run(images)
    try:
        shown = bool(tracker.maps[names[0]].ndim)
    except RepshiftError:  # where rows and columns are not known there is no map, rather than a scrambled one
        shown = False
    return {"blocks": f"{len(names)} blocks", "map": "yes" if shown else "no"}


def _pruned(model: nn.Module, structure: Structure) -> Row:
    """Run the model pruned by its default schedule, or by the first that is possible."""
    images, why = example(model, "meta", 1), ""
    with_all = f"with restore=True: {structure.needs_all}" if structure.needs_all else ""
    for recipe in _recipes(structure):
        try:
            pruned = ShiftTracker(model).prune(recipe)
            tracker = ShiftTracker(pruned, operation=recipe.operation).run(images)
            if not tracker.kept:
                raise ScheduleError("it comes to less than one line")
        except RepshiftError as error:
            why = why or f"not by {recipe.schedule}: {_reason(str(error), type(model).__name__)}"
            continue
        schedule = recipe.schedule
        assert schedule is not None
        expected = _predicted(model, structure, schedule, images)
        found = {name: kept.shape[1] for name, kept in tracker.kept.items()}
        unseen = [name for name in expected if name not in found]
        if found != {name: count for name, count in expected.items() if name not in unseen}:
            raise BackboneError(f"{found} tokens are left, expected {expected}")
        if unseen:  # strides without padding took lines from the edges, so nobody knows where those that are left stood
            why = why or f"where the lines behind {unseen[0]} stood is not known"
            _require_cuts(model, pruned, structure, schedule, images, unseen)
        by = "" if recipe.operation is None else f" by {recipe.operation}"
        return {
            "schedule": f"{schedule}{by}",
            "kept": " ".join(map(str, found.values())),
            "map": "in part" if unseen else "yes",
            "why": why or with_all,
        }
    raise ScheduleError(why)


def _require_cuts(
    model: nn.Module, pruned: nn.Module, structure: Structure, schedule: Schedule, images: Any, names: Sequence[str]
) -> None:
    """Look by shapes alone that lines went where a tracker cannot say which."""
    dense, ours = (_sides(each, structure, schedule, images) for each in (model, pruned))
    if whole := [name for name in names if math.prod(ours[name]) >= math.prod(dense[name])]:
        raise BackboneError(f"nothing went behind {whole[0]}: {ours[whole[0]]} of {dense[whole[0]]}")


def _recipes(structure: Structure) -> Iterator[Recipe]:
    """List what is tried: the default first, then less, then by another operation."""
    count, restore = len(structure.sites), bool(structure.needs_all)
    if structure.unit != "stage":
        yield Recipe(Schedule({block: 0.2 for block in (0, 3, 6) if block < count}), restore=restore)
    for operation in (None, "block"):
        name = operation or structure.operation
        having = [number for number, site in enumerate(structure.sites) if name in site.operations]
        for blocks in filter(None, (having[:2], having[:1])):
            share = 0.1 if structure.unit == "stage" else 0.2
            yield Recipe(Schedule(dict.fromkeys(blocks, share)), operation=operation, restore=restore)
        for number in having:  # some take only so many lines at once
            yield Recipe(Schedule({number: structure.sites[number].multiple}), operation=operation, restore=restore)


def _predicted(model: nn.Module, structure: Structure, schedule: Schedule, images: Any) -> dict[str, int]:
    """Compute from the dense model's shapes how many tokens each cut leaves."""
    sides = _sides(model, structure, schedule, images)
    if not hasattr(structure.layout, "arrange") and structure.sides is None:
        tokens = structure.tokens or math.prod(next(iter(sides.values())))
        return {structure.sites[block].name: left for block, left in schedule.kept(tokens).items()}
    expected: dict[str, int] = {}
    dense: tuple[int, ...] = ()
    left: tuple[int, ...] = ()
    for number, drop in schedule.drops.items():
        name = structure.sites[number].name
        here = sides[name]
        if left:  # the strides in between take of what is left what they take of the whole map
            take = math.ceil if structure.rounds_up else math.floor
            strides = [round(earlier / now) for earlier, now in zip(dense, here, strict=True)]
            left = tuple(take(side / stride) for side, stride in zip(left, strides, strict=True))
        dense, left = here, left or here
        multiple = structure.sites[number].multiple
        before, left = left, tuple(_left_of(side, drop, name, multiple) for side in left)
        if left != before:  # a share may come to less than one line
            expected[name] = math.prod(left)
    return expected


def _left_of(side: int, drop: Drop, name: str, multiple: int) -> int:
    """Compute how many lines a drop leaves; what a share leaves is rounded down to what the strides behind take."""
    left = side - dropped_count(side, drop, name)
    rounded = isinstance(drop, float) and left < side and left >= multiple
    return left - left % multiple if rounded else left


def _sides(model: nn.Module, structure: Structure, schedule: Schedule, images: Any) -> dict[str, tuple[int, ...]]:
    """Return rows and columns behind the blocks that drop; of sequences, their length."""
    sides: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Any) -> None:
        layout = structure.layout
        grid = layout.grid(output) if structure.sides is None else structure.grid_of(images)  # a map in a sequence
        sides[name] = grid or (layout.tokens(output).shape[1],)

    handles = []
    for number in schedule.drops:
        name = structure.sites[number].name
        module = model.get_submodule(name)
        handles.append(module.register_forward_hook(lambda module, args, output, name=name: note(name, output)))
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return sides


def _reason(told: str, name: str) -> str:
    """Shorten one of our messages to what stands in the way."""
    said = re.sub(rf"^{re.escape(name)} (can be tracked but not pruned: )?", "", told)
    return re.sub(r"(: pruning serves .*)?\. Any model can be tracked by names.*", "", said)
