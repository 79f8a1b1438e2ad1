"""The page of a suite's results, in Markdown: a table a case, what the device can do, and how to make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from repshift.analysis.throughput.suite_runs import Measured

Row = Mapping[str, Any]
HEADINGS = (
    "method",
    "samples/s",
    "ms (quartiles)",
    "GMACs",
    "MiB",
    "speed-up (quartiles)",
    "efficiency",
    "matmul %",
    "memory %",
)
LEGEND = """\
- **speed-up**: time of the dense model in the same table / time of this row, round by round; its attention is named
  below, and `eager` is the same model with plain attention. **efficiency**: time of `oracle_free`, which drops as many
  tokens but measures, ranks and gathers nothing, / time of this row.
- **matmul %**: multiply-accumulates a second, as a share of what one product of two large matrices reached.
  **memory %**: bytes a second, if each operation reads its inputs and writes its outputs once (of compiled models each
  kernel, by the compiler's own count), as a share of what copying a large tensor reached; caches may bring it above
  100.
- `lowres` is the dense model on a smaller input, `fewer_frames` that of videos on fewer frames, of no more GMACs.
  Weights are random, which takes as long."""


def suite_page(command: str, measured: Measured) -> str:
    """Lay a suite's results out as a page.

    Args:
        command: That made it.
        measured: What it came to.
    """
    said = dict(measured.environment)
    device, macs, copied = (said.pop(key) for key in ("device", "matmul_gmacs_per_sec", "copy_gb_per_sec"))
    parts = [
        f"# {device}",
        f"```sh\n{command}\n```",
        f"{', '.join(f'{key} {value}' for key, value in said.items())}. Measured of the device: {macs / 1e3:.2f} "
        f"TMACs/s (two large matrices), {copied:.0f} GB/s (a copy, read and written).",
        LEGEND,
        *(_section(title, rows) for title, rows in case_of(measured.rows).items()),
    ]
    if measured.failed:
        parts += ["## Not measured", *(f"- {case}: {why}" for case, why in measured.failed.items())]
    return "\n\n".join(parts) + "\n"


def case_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Part the rows of a suite by case, each with its title."""
    parted: dict[str, list[Row]] = {}
    for row in rows:
        compiled = ", compiled" if row["torchcompile"] else ""
        parted.setdefault(f"{row['model']}{compiled}", []).append(row)
    return parted


def _section(title: str, rows: Sequence[Row]) -> str:
    first, pruned = rows[0], next((row["schedule"] for row in rows if row["schedule"]), "")
    frames = f"{first['frames']} frames of " if "frames" in first else ""
    words = [f"batch {first['batch_size']}", f"{frames}{first['img_size']} pixels", first["precision"]]
    words += ["channels last"] if first["channels_last"] else []
    words += [f"attention by {first['attention']}"] if first["attention"] else []
    lines = [HEADINGS, ["---", *["---:"] * (len(HEADINGS) - 1)], *map(_cells, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {title}\n\n`{pruned}`, {', '.join(words)}.\n\n{table}"


def _cells(row: Row) -> list[str]:
    low, high = row["speedup_quartiles"]
    return [
        row["method"],
        f"{row['samples_per_sec']:.1f}",
        f"{row['step_time']:.2f} ({row['step_time_low']:.2f} to {row['step_time_high']:.2f})",
        f"{row['gmacs']:.2f}",
        "" if row["peak_memory"] is None else f"{row['peak_memory']:.0f}",
        f"{row['speedup']:.3f} ({low:.3f} to {high:.3f})",
        "" if row["efficiency"] is None else f"{row['efficiency']:.3f}",
        f"{100 * row['matmul_share']:.1f}",
        "" if row["memory_share"] is None else f"{100 * row['memory_share']:.1f}",
    ]
