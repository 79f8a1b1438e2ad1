"""The explorer page: what a model and its pruned form do with images, beside what commands have measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repshift import DataError, Recipe, Schedule, UnknownNameError, __version__, recipe_of
from repshift.analysis.curves.points import ACCURACIES, accuracies
from repshift.analysis.output.results import Results, Row, read_results
from repshift.analysis.report.charts import make_charts
from repshift.analysis.report.encoding import (
    encode_colours,
    encode_groups,
    encode_image,
    encode_map,
    encode_mask,
    encode_predictions,
    rounded,
)
from repshift.analysis.report.examination import BlockMaps, Examination, MeasuredShift, examine
from repshift.analysis.report.pictures import Pictures
from repshift.analysis.report.tables import TITLES, make_table
from repshift.analysis.subjects.macs import count_work
from repshift.analysis.subjects.recipes import apply, pruner_in_words, pruning_of
from repshift.errors import RepshiftError
from repshift.finding import find_structure
from repshift.sites import Structure

Fact = tuple[str, str]


@dataclass(frozen=True)
class Subject:
    """The model of a report.

    Attributes:
        name: What it is called.
        model: Dense, in evaluation mode.
        weights: Where its weights are from, in words.
        recipe: How it is pruned; ``None`` shows it dense.
        classes: Names of its classes.
        shift: What the maps show.
    """

    name: str
    model: nn.Module
    weights: str
    recipe: Recipe | None
    classes: Sequence[str]
    shift: MeasuredShift

    @cached_property
    def structure(self) -> Structure | None:
        """The model's blocks; ``None`` if no backbone knows it."""
        return find_structure(self.model)

    @property
    def unit(self) -> str:
        """What its blocks are called."""
        return self.structure.unit if self.structure else "block"

    @property
    def measured(self) -> str:
        """What the maps show, in words."""
        operation = self.shift.operation or (self.structure.operation if self.structure else "output with input")
        return ", ".join([operation, str(self.shift.distance), *(["residual"] if self.shift.residual else [])])


@dataclass(frozen=True)
class ResultsFile:
    """A results file that was read."""

    name: str
    results: Results


def read_results_files(paths: Iterable[Path]) -> list[ResultsFile]:
    """Read results files in JSON.

    Raises:
        DataError: If one is missing, is no results file, or one of another version; if an accuracy in it is none.
    """
    files = [ResultsFile(path.name, read_results(path)) for path in paths]
    for file in files:
        if file.results.kind in ACCURACIES:
            accuracies(file.results)
    return files


def only_model(files: Sequence[ResultsFile]) -> str:
    """Return the model that the results are of, if there is just one.

    Raises:
        UnknownNameError: If there is none or several.
    """
    names = list(_models(files))
    if len(names) != 1:
        told = f"name {len(names)}: {', '.join(names)}" if names else "name none"
        raise UnknownNameError(f"Images are shown with a model, and the results files {told}. Give --model NAME.")
    return names[0]


def only_schedule(files: Sequence[ResultsFile]) -> str | None:
    """Return the schedule of the results, if there is just one."""
    schedules = {str(Schedule.of(text)) for text in _distinct(files, "schedule")}
    return schedules.pop() if len(schedules) == 1 else None


def _models(files: Sequence[ResultsFile]) -> dict[str, None]:
    """List the models of results; ablations name theirs beside the rows."""
    beside = [file.results.environment.get("model") for file in files]
    return dict.fromkeys([*_distinct(files, "model"), *(name for name in beside if isinstance(name, str))])


def _distinct(files: Sequence[ResultsFile], key: str) -> list[str]:
    rows: list[Row] = [row for file in files for row in file.results.rows]
    return list(dict.fromkeys(row[key] for row in rows if isinstance(row.get(key), str) and row[key]))


def make_report(
    files: Sequence[ResultsFile],
    subject: Subject | None,
    pictures: Pictures | None,
    observe: Callable[[int], object] = lambda done: None,
) -> dict[str, Any]:
    """Collect what the page shows.

    Args:
        files: What commands have measured.
        subject: The model whose work on images is shown, if any.
        pictures: These images; needed with a model.
        observe: Called with the number of images that are done.

    Returns:
        Plain values for :func:`repshift.analysis.report.writing.make_page`.

    Raises:
        DataError: If there is nothing to show.
        UnsupportedModelError: If the model cannot be pruned, or has no tokens in rows and columns.
        ScheduleError: If the schedule does not fit the model.
    """
    if subject is None and not files:
        raise DataError(
            "There is nothing to report. Give results files that eval, bench or ablate wrote in JSON, or --model NAME "
            "with --images."
        )
    explorer, facts = None, []
    if subject is not None and pictures is not None:
        found = examine(subject.model, pictures.inputs, subject.recipe, observe, subject.shift)
        explorer = _explorer(subject, pictures, found)
        facts = _facts(subject, pictures, merges=explorer["merges"])
    kinds = {file.results.kind for file in files}
    return {
        "version": __version__,
        "heading": subject.name if subject else ", ".join(_models(files)) or "repshift",
        "facts": facts,
        "explorer": explorer,
        "charts": [chart.content() for chart in make_charts([file.results for file in files])],
        "tables": [make_table(file.results, file.name).content() for file in files],
        "missing": [kind for kind in TITLES if kind not in kinds],
        "colours": encode_colours(),
    }


def _facts(subject: Subject, pictures: Pictures, *, merges: bool) -> list[Fact]:
    """Say in pairs what model this is and how it is pruned."""
    model, pruned = subject.model, apply(subject.recipe, subject.model)
    settled = pruning_of(pruned)
    channels, rows, columns = pictures.inputs.shape[1:]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = [
        ("Weights", subject.weights),
        ("Parameters", f"{parameters / 1e6:.2f} million"),
        ("Image", f"{rows} x {columns} pixels"),
        ("Shift", subject.measured),
    ]
    chosen = recipe_of(pruned)
    if chosen is not None and chosen.attention is not None:
        facts.append(("Attention", chosen.attention))
    if settled is not None:
        kept = "" if settled.keep == "top" else ", the lowest are kept"
        if isinstance(settled.input_size, tuple):
            facts.append(("Computes with", f"{settled.input_size[0]} x {settled.input_size[1]} pixels"))
        if settled.schedule is not None:
            facts += [
                ("Merged" if merges else "Dropped", _in_words(settled.schedule, subject.unit)),
                *([("Scored by", f"{settled.score}{kept}")] if settled.scores else []),
                ("Pruner", pruner_in_words(settled)),
            ]
    return [*facts, *_work_facts(model, pruned, (channels, rows, columns))]


def _in_words(schedule: Schedule, unit: str) -> str:
    """Write a schedule as a person says it, and as commands take it."""
    blocks_of: dict[float, list[str]] = {}
    for block, drop in schedule.drops.items():
        blocks_of.setdefault(drop, []).append(str(block))
    parts = [
        f"{f'{100 * drop:g} %' if isinstance(drop, float) else drop} after {unit} {', '.join(blocks)}"
        for drop, blocks in blocks_of.items()
    ]
    return f"{'; '.join(parts)} ({schedule})"


def _work_facts(model: nn.Module, pruned: nn.Module, size: tuple[int, int, int]) -> list[Fact]:
    try:
        whole = count_work(model, size).macs / 1e9
        if pruned is model:
            return [("Work", f"{whole:.3g} GMACs an image")]
        left = count_work(pruned, size).macs / 1e9
    except RepshiftError:
        raise
    except Exception:  # operations of other packages may not run on the meta device, where work is counted
        return []
    return [("Work", f"{left:.3g} of {whole:.3g} GMACs an image ({100 * (left / whole - 1):+.0f} %)")]


def _explorer(subject: Subject, pictures: Pictures, found: Examination) -> dict[str, Any]:
    same = None
    if found.dense is not None and found.pruned is not None:
        same = int((found.dense.argmax(1) == found.pruned.argmax(1)).sum())
    return {
        "unit": f"shift ({subject.measured})",
        "blockWord": subject.unit,
        "pruned": found.pruned is not None,
        "merges": any(block.joined is not None for block in found.blocks),
        "drops": any(block.kept is not None and not block.kept.all() for block in found.blocks),
        "same": same,
        "blocks": [_block(*each) for each in _with_previous(found)],
        "images": [_image(index, subject, pictures, found) for index in range(len(pictures.names))],
    }


def _with_previous(found: Examination) -> Iterable[tuple[BlockMaps, BlockMaps | None]]:
    return zip(found.blocks, (None, *found.blocks), strict=False)


def _block(block: BlockMaps, previous: BlockMaps | None) -> dict[str, Any]:
    """Describe a block; how many tokens enter and leave it differs among images where some fall into one place."""
    rows, columns = block.dense.shape[1:]
    entered = None if block.pruned is None else (~block.pruned.isnan()).sum((1, 2))
    if previous is not None and previous.joined is not None:
        entered = previous.left
    low, high = rounded(float(block.dense.min())), rounded(float(block.dense.max()))
    return {"name": block.name, "rows": rows, "columns": columns, "entered": _listed(entered),
            "left": _listed(block.left), "low": low, "high": high}  # fmt: skip


def _listed(values: Tensor | None) -> list[int] | None:
    return None if values is None else values.tolist()


def _joined(index: int, block: BlockMaps, previous: BlockMaps | None) -> str | None:
    """Encode who joined whom in an image, where that differs from behind the block before."""
    if block.joined is None:
        return None
    before = None if previous is None else previous.joined
    same = before is not None and torch.equal(block.joined[index], before[index])
    return None if same else encode_groups(block.joined[index])


def _image(index: int, subject: Subject, pictures: Pictures, found: Examination) -> dict[str, Any]:
    predictions = None
    if found.dense is not None:
        pruned = None if found.pruned is None else found.pruned[index]
        predictions = encode_predictions(found.dense[index], pruned, subject.classes)
    return {
        "name": pictures.names[index],
        **encode_image(pictures.seen[index]),
        "dense": [encode_map(block.dense[index]) for block in found.blocks],
        "pruned": [None if block.pruned is None else encode_map(block.pruned[index]) for block in found.blocks],
        "kept": [None if block.kept is None else encode_mask(block.kept[index]) for block in found.blocks],
        "joined": [_joined(index, *each) for each in _with_previous(found)],
        "predictions": predictions,
    }
