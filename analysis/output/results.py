"""Results files: rows of plain numbers with the environment that they were measured in, written in one piece."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from repshift import DataError, __version__
from repshift.analysis.output.files import all_or_none, output_file, write_text
from repshift.errors import first_line

VERSION = 1  # of the layout of the JSON files
FORMATS = ("csv", "json", "md")
TEXTS = ("model", "method", "schedule", "error", "precision")  # of a row: what it is found by and called
LARGEST = 2**63  # of a whole number
RECIPE = "recipe"  # of a row: the whole recipe, by its own words; too much for a cell, so only JSON has it
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """What one command measured.

    Attributes:
        kind: Which command: ``eval``, ``bench``, ``ablate``, ``fidelity`` or ``probe``.
        rows: One mapping of plain values (strings, numbers, lists of numbers, ``None``) for each line of the table;
            ``recipe`` holds how the row's model was pruned, see :meth:`repshift.Recipe.to_dict`.
        environment: Versions and device, see :func:`environment`.
    """

    kind: str
    rows: Sequence[Row]
    environment: Mapping[str, Any] = field(default_factory=dict)


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Describe what numbers were measured with: versions, device, threads."""
    kind = torch.device(device).type
    return {
        "repshift": __version__,
        "torch": torch.__version__,
        "timm": metadata.version("timm"),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if kind == "cuda" else f"{kind} ({_processor()})",
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _processor() -> str:
    """Name the processor as its maker does, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def results_format(path: Path | None, wanted: str | None) -> str:
    """Settle the format of a results file: the one asked for, else that of its ending, else CSV as timm writes.

    Raises:
        DataError: If there is no such format, or no file.
    """
    if wanted is not None and path is None:
        raise DataError(f"--results-format {wanted} writes nothing by itself. Give --results-file, too.")
    if wanted is not None and wanted not in FORMATS:
        raise DataError(f"Results are not written as {wanted!r}. Give --results-format {', '.join(FORMATS)}.")
    ending = "" if path is None else path.suffix.lstrip(".").lower()
    return wanted or (ending if ending in FORMATS else "csv")


def write_results(path: Path, results: Results, wanted: str | None = None) -> None:
    """Write results in one piece.

    Args:
        path: The file.
        results: What was measured.
        wanted: ``csv``, ``json`` or ``md``; by default what the file's ending says, else ``csv``.

    Raises:
        DataError: If there is no such format or the file cannot be written.
    """
    writers = {"csv": as_csv, "json": as_json, "md": as_markdown}
    write_text(path, writers[results_format(path, wanted)](results))


def check_results_files(path: Path | None, wanted: str | None, other: Path | None, option: str = "--per-image") -> None:
    """Check, before anything is computed, that results and what is written beside them can be written.

    Args:
        path: The results file.
        wanted: Its format.
        other: The other file, such as that of what was found of each image.
        option: What names it.

    Raises:
        DataError: If one cannot be written, there is no such format, or they are one file.
    """
    results_format(path, wanted)
    for file in filter(None, (path, other)):
        output_file(file)
    if path is not None and other is not None and path.resolve() == other.resolve():
        raise DataError(f"--results-file and {option} both name {path}. Give two names.")


def write_with_images(
    kind: str,
    rows: Sequence[Row],
    images: Sequence[Row],
    device: torch.device,
    path: Path | None,
    wanted: str | None,
    images_path: Path | None,
) -> None:
    """Write results, and what was found of each image, where they were asked for: both of them or none.

    Args:
        kind: Which command.
        rows: A line a method.
        images: A line an image and method.
        device: On which it was measured.
        path: Of the results.
        wanted: Their format.
        images_path: Of what was found of each image; its ending names the format.

    Raises:
        DataError: If a file cannot be written.
    """
    measured = environment(device)
    with all_or_none():
        if path is not None:
            write_results(path, Results(kind, rows, measured), wanted)
        if images_path is not None:
            write_results(images_path, Results(f"{kind} by image", images, measured))


def as_json(results: Results) -> str:
    """Write results as JSON, the only form that :func:`read_results` reads."""
    content = {
        "repshift_results": VERSION,
        "kind": results.kind,
        "environment": dict(results.environment),
        "results": [dict(row) for row in results.rows],
    }
    return json.dumps(content, indent=2) + "\n"


def as_csv(results: Results) -> str:
    """Write results as CSV: the columns of the rows, then those of the environment."""
    columns = [*columns_of(results.rows), *results.environment]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for row in results.rows:
        cells = {name: _cell(value) for name, value in {**row, **results.environment}.items()}
        writer.writerow({name: cells[name] for name in columns if name in cells})
    return text.getvalue()


def as_markdown(results: Results) -> str:
    """Write results as a Markdown table, with the environment in a line below."""
    columns = columns_of(results.rows)
    rows = [columns, ["---"] * len(columns), *([_cell(row.get(name)) for name in columns] for row in results.rows)]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    measured = ", ".join(f"{name} {value}" for name, value in results.environment.items())
    return "\n".join([*lines, "", f"Measured with {measured}.", ""])


def columns_of(rows: Sequence[Row]) -> list[str]:
    """List the columns of all rows, in the order in which they first appear; the whole recipe is none."""
    return list(dict.fromkeys(name for row in rows for name in row if name != RECIPE))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return " ".join(map(_cell, value))
    return str(value)


def read_results(path: str | Path) -> Results:
    """Read a JSON results file.

    Raises:
        DataError: If the file is missing, is no results file, one of another version, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no results file {path}. Give a file that --results-file wrote.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is no results file in JSON ({first_line(error)}). Write one with --results-file NAME.json."
        ) from error
    version = content.get("repshift_results") if isinstance(content, dict) else None
    if version is None:
        raise DataError(f"{path} is JSON, but not a results file of repshift. Write one with --results-file NAME.json.")
    if version != VERSION:
        raise DataError(
            f"{path} is a results file of version {version!r}, this repshift reads version {VERSION}. "
            "Measure again, or use the repshift that wrote it."
        )
    rows, kind = content.get("results"), content.get("kind")
    if not isinstance(kind, str) or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is damaged: it has no list of results. Measure again.")
    measured_with = content.get("environment") or {}
    if not isinstance(measured_with, dict):
        raise DataError(f"{path} is damaged: its environment is {measured_with!r} and no mapping. Measure again.")
    if not isinstance(measured_with.get("device"), (str, type(None))):
        raise DataError(f"{path} is damaged: its device is {measured_with['device']!r} and no text. Measure again.")
    _check_rows(path, rows)
    return Results(kind, rows, measured_with)


def _check_rows(path: Path, rows: Sequence[Row]) -> None:
    for number, row in enumerate(rows, start=1):
        for name, value in row.items():
            if name in TEXTS and not isinstance(value, (str, type(None))):
                expected = "no text"
            elif name == "batch_size" and isinstance(value, list):
                expected = "no number"
            elif name != RECIPE and not _is_cell(value):
                expected = "neither a text nor a number nor a list of these"
            else:
                continue
            told = f"{value!r:.60}"
            raise DataError(
                f"{path} is damaged: the {name} of result {number} is {told} and {expected}. Measure again."
            )


def _is_cell(value: Any) -> bool:
    """Say whether a value is one that commands write: plain, or a list of plain ones."""
    if isinstance(value, list):
        return all(not isinstance(part, list) and _is_cell(part) for part in value)
    return not isinstance(value, dict) and not (isinstance(value, int) and abs(value) > LARGEST)
