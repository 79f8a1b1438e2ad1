"""From results files to the tables of a report; the page draws and sorts them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from repshift.analysis.output.results import Results, Row, columns_of

TITLES = {"eval": "Evaluation", "bench": "Benchmark", "ablate": "Ablation", "fidelity": "Fidelity", "probe": "Probe"}
# Where a name needs its unit, or is timm's
LABELS = {
    "top1": "top-1 %",
    "top1_err": "top-1 error %",
    "top5": "top-5 %",
    "top5_err": "top-5 error %",
    "dense_top1": "dense top-1 %",
    "dense_top5": "dense top-5 %",
    "delta_top1": "gain, points of top-1",
    "delta_top5": "gain, points of top-5",
    "delta": "gain on dense, points",
    "over_random": "gain on random, points",
    "over_random_error": "± its error",
    "over_norm": "gain on norm, points",
    "over_norm_error": "± its error",
    "over_lowres": "gain on lowres, points",
    "over_lowres_error": "± its error",
    "delta_top1_error": "± its error",
    "top1_error": "± its error",
    "top1_spread": "± spread of draws",
    "seeds": "draws at random",
    "input_size": "smaller input, px",
    "agreement": "same class %",
    "feature_distance": "1 - cos of the features",
    "token_distance": "1 - cos of the tokens",
    "kl": "KL(dense || method)",
    "knn_top1": "k-NN %",
    "samples_per_sec": "images/s",
    "dense_samples_per_sec": "dense images/s",
    "step_time": "ms a batch",
    "step_time_low": "lower quartile, ms",
    "step_time_high": "upper quartile, ms",
    "param_count": "parameters, millions",
    "gmacs": "GMACs",
    "dense_gmacs": "dense GMACs",
    "macs_per_sec": "GMACs/s",
    "peak_memory": "peak memory, MiB",
    "img_size": "image size, px",
    "speedup": "speed-up",
    "torchcompile": "torch.compile",
}


@dataclass(frozen=True)
class Column:
    """One column: its key in the results file, how it is headed, and whether it holds numbers alone."""

    key: str
    label: str
    numeric: bool


@dataclass(frozen=True)
class Table:
    """One results file as a table.

    Attributes:
        title: What was measured, and the file's name.
        columns: Those that hold anything and differ among the rows.
        rows: Strings, finite numbers and ``None``, in the order of the columns.
        same: What all rows share, as pairs of label and value.
        environment: What it was measured with, as such pairs.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | float | None]]
    same: Sequence[tuple[str, str]]
    environment: Sequence[tuple[str, str]]

    def content(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def make_table(results: Results, file: str) -> Table:
    """Lay out a results file.

    Args:
        results: Its content.
        file: Its name.
    """
    filled = [key for key in columns_of(results.rows) if any(_cell(row.get(key)) is not None for row in results.rows)]
    shared = [key for key in filled if _is_shared(results.rows, key)]
    columns = [Column(key, label(key), _is_numeric(results.rows, key)) for key in filled if key not in shared]
    return Table(
        f"{TITLES.get(results.kind, results.kind)}: {file}",
        columns,
        [[_cell(row.get(column.key)) for column in columns] for row in results.rows],
        [(label(key), str(_cell(results.rows[0][key]))) for key in shared],
        [(str(key), str(value)) for key, value in results.environment.items()],
    )


def label(key: str) -> str:
    """Head a column in words."""
    return LABELS.get(key, key.replace("_", " "))


def _is_shared(rows: Sequence[Row], key: str) -> bool:
    """Say whether a setting is the same in all rows; what was measured stays in the table."""
    cells = {_cell(row.get(key)) for row in rows}
    return len(rows) > 1 and len(cells) == 1 and not any(isinstance(row.get(key), float) for row in rows)


def _is_numeric(rows: Sequence[Row], key: str) -> bool:
    cells = [_cell(row.get(key)) for row in rows]
    return all(cell is None or isinstance(cell, (int, float)) for cell in cells)


def _cell(value: object) -> str | float | None:
    """Turn a value into what a cell can hold; numbers that are none, which JSON lacks, are left out."""
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return " ".join(str(_cell(part)) for part in value)
    return str(value)
