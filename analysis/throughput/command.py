"""``repshift bench``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from repshift.analysis.output import options
from repshift.analysis.output.terminal import console, interrupted, note, progress_bar
from repshift.analysis.throughput.suite_command import bench_suite, refuse_other_options
from repshift.errors import DataError, UnknownNameError

if TYPE_CHECKING:
    from repshift.analysis.throughput.comparison import Comparison

Row = Mapping[str, Any]
WIDE, WIDER = 110, 14  # columns that the whole table needs, and what each further heading does
LEFT_OUT = ("quartiles", "GMACs/s", "MiB")  # in a narrower terminal
BUSY = 0.1  # quartiles further apart than this share of the median are said to be


def bench(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="A model of timm, UMT, Vision Mamba (vim_tiny) or the zoo (tiny_vit), or --suite."
        ),
    ] = None,
    pretrained: options.Pretrained = False,
    checkpoint: options.Checkpoint = None,
    use_ema: options.UseEma = None,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    input_size: options.InputSize = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of the videos. [default: the model's own]")] = None,
    model_kwargs: options.ModelKwargs = None,
    drop: options.Drop = None,
    drop_r: options.DropR = None,
    recipe: options.RecipeFile = None,
    methods: options.Methods = None,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper",
            help="Time the paper's columns, too: dense and attention score by eager attention, shift by flash.",
        ),
    ] = False,
    compare: options.Compare = None,
    batch_size: Annotated[
        list[str] | None, typer.Option("--batch-size", "-b", help="One or several, as 1,16,64. [default: 16]")
    ] = None,
    operation: options.Operation = None,
    distance: options.Distance = "l2",
    residual: options.Residual = False,
    pruner: options.Pruner = None,
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, amp (float16) or amp_bfloat16.")
    ] = "float32",
    attention: options.Attention = None,
    channels_last: options.ChannelsLast = False,
    torchcompile: options.Torchcompile = False,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="What runs the models, with commas: eager, compile (--torchcompile), aoti (AOTInductor), onnx "
            "(onnxruntime, on a CPU). [default: eager]"
        ),
    ] = None,
    device: options.Device = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch on a CPU. [default: torch's choice]")] = None,
    num_bench_iter: Annotated[int, typer.Option(min=1, help="Rounds in which every method has its turn.")] = 40,
    num_warm_iter: Annotated[int, typer.Option(min=1, help="Forwards of each method before.")] = 10,
    memory: Annotated[bool, typer.Option(help="Measure the peak memory, too.")] = True,
    count_bytes: Annotated[
        bool, typer.Option("--count-bytes", help="Count the bytes that a forward reads and writes, too.")
    ] = False,
    retry: options.Retry = False,
    suite: Annotated[
        str | None, typer.Option(help="Measure several models at once instead: gpu or cpu.", metavar="gpu|cpu")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="With --suite: write a page of its tables, in Markdown.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="With --suite: begin no case after so long. [default: all are done]")
    ] = None,
    resume: options.Resume = None,
    results_file: options.ResultsFile = None,
    results_format: options.ResultsFormat = None,
) -> None:
    """Time the dense model, pruning by the shift, its baselines and the limit of all, in turn within one process."""
    if suite is not None:
        refuse_other_options(context)
        return bench_suite(suite, page, minutes, threads, memory, results_file, results_format, resume)
    name = _model_alone(model, context)
    batch_sizes = _numbers(batch_size or ["16"])
    import torch

    from repshift.analysis.output.files import output_file
    from repshift.analysis.output.results import environment
    from repshift.analysis.output.results import results_format as checked_format
    from repshift.analysis.subjects.devices import choose_device
    from repshift.analysis.subjects.limits import check_batch, check_threads
    from repshift.analysis.subjects.memory import keep_freed_memory
    from repshift.analysis.subjects.methods import further_recipes
    from repshift.analysis.subjects.models import ModelOptions, model_options
    from repshift.analysis.subjects.recipes import chosen_recipe
    from repshift.analysis.throughput.compared import compare as compare_models
    from repshift.analysis.throughput.compared import read_asked
    from repshift.analysis.throughput.comparison import Comparison
    from repshift.analysis.throughput.runtimes import check_runtimes, read_runtimes
    from repshift.analysis.throughput.setup import Setup

    asked, further = read_asked(methods, paper), further_recipes(compare or ())
    runtimes = read_runtimes(runtime, torchcompile)
    for size in batch_sizes:
        check_batch(size)
    check_threads(threads)
    checked_format(results_file, results_format)
    if results_file is not None:
        output_file(results_file)
    chosen = str(choose_device(device))
    settings = model_options(num_classes, model_kwargs) | ({} if frames is None else {"frames": frames})
    built = ModelOptions(pretrained, checkpoint, use_ema, img_size, input_size, settings)
    setup = Setup(name, built, precision, attention, channels_last, torchcompile, chosen)
    check_runtimes(setup, runtimes)
    measured_by = {"operation": operation, "distance": distance, "residual": residual, "pruner": pruner}
    # without a schedule, what these say is of no use but no mistake, since --methods may name the dense model alone
    pruned = chosen_recipe(recipe, drop, drop_r, model=name, shown=measured_by, **measured_by)
    torch.set_num_threads(threads or torch.get_num_threads())
    if chosen.startswith("cpu"):
        keep_freed_memory()
    dense = setup.load()
    made = compare_models(dense, pruned, asked, setup.input_size(dense), further)
    for remark in made.notes:
        note(f"note: {remark}")
    comparison = Comparison(
        setup,
        made.models,
        num_bench_iter,
        num_warm_iter,
        torch.get_num_threads(),
        memory=memory,
        runtimes=runtimes,
        frames=made.frames,
        count_bytes=count_bytes,
    )
    _measure_all(comparison, batch_sizes, retry, environment(chosen), results_file, results_format)


def _model_alone(model: str | None, context: typer.Context) -> str:
    """Return the model's name, and refuse what is said of a suite without one."""
    said = [f"--{name}" for name in ("page", "minutes", "resume") if context.params[name] is not None]
    if said:
        raise DataError(f"{', '.join(said)} says something of a suite. Give --suite gpu, or leave that out.")
    if model is None:
        raise DataError("Nothing was said to be timed. Give --model NAME, or --suite gpu.")
    return model


def _cells(row: Row) -> dict[str, str]:
    return {
        "method": row["method"],
        "runtime": row["runtime"],
        "samples/s": f"{row['samples_per_sec']:.1f}",
        "ms": f"{row['step_time']:.2f}",
        "quartiles": f"{row['step_time_low']:.2f} to {row['step_time_high']:.2f}",
        "GMACs": f"{row['gmacs']:.2f}",
        "GMACs/s": f"{row['macs_per_sec']:.1f}",
        "MiB": "" if row["peak_memory"] is None else f"{row['peak_memory']:.1f}",
        "MB moved": f"{row['bytes_moved'] / 1e6:.0f}" if row.get("bytes_moved") else "",
        "speed-up": f"{row['speedup']:.3f}",
        "efficiency": "" if row["efficiency"] is None else f"{row['efficiency']:.3f}",
    }


def _numbers(given: Sequence[str]) -> list[int]:
    """Read batch sizes that may be repeated, or listed with commas."""
    words = [word for text in given for word in text.split(",")]
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise UnknownNameError(f"--batch-size got {', '.join(given)!r}, expected positive numbers, as 1,16,64.")
    return [int(word) for word in words]


def _measure_all(
    comparison: Comparison,
    batch_sizes: Sequence[int],
    retry: bool,
    measured: Mapping[str, Any],
    results_file: Path | None,
    results_format: str | None,
) -> None:
    """Measure, show and write one batch size after the other."""
    from repshift.analysis.output.results import Results, write_results

    rows: list[dict[str, Any]] = []
    try:
        for size in batch_sizes:
            done = _measure(comparison, size, retry)
            _show(done)
            rows += done
            if results_file is not None:  # after each, since a later one may not fit into memory
                write_results(results_file, Results("bench", rows, measured), results_format)
    except KeyboardInterrupt:
        kept = f"the batch sizes before are in {results_file}" if rows and results_file else "nothing was written"
        raise interrupted(kept) from None
    note(", ".join(f"{name} {value}" for name, value in measured.items()))
    if results_file is not None:
        note(f"results: {results_file}")


def _measure(comparison: Comparison, batch_size: int, retry: bool) -> list[dict[str, Any]]:
    """Measure one batch size, or the next smaller one that fits into memory."""
    from timm.utils import decay_batch_step

    from repshift.analysis.subjects.memory import MemoryExhaustedError

    size = batch_size
    while True:
        try:
            return _run(comparison, size)
        except MemoryExhaustedError:
            smaller = int(decay_batch_step(size))
            if not retry or not smaller:
                raise
        note(f"note: batch {size} does not fit into memory; trying {smaller}")
        size = smaller


def _run(comparison: Comparison, batch_size: int) -> list[dict[str, Any]]:
    with progress_bar() as progress:
        task = progress.add_task("", total=comparison.turns())
        return comparison.run(batch_size, lambda what: progress.update(task, advance=1, description=what))


def _show(rows: Sequence[Row]) -> None:
    first = rows[0]
    size = f"{first['frames']} frames of {first['img_size']} pixels" if "frames" in first else None
    size = size or f"{first['img_size']} pixels"
    title = f"{first['model']}, batch {first['batch_size']}, {size}, {first['precision']}"
    table = Table(title=", ".join([title, *([first["attention"]] if first["attention"] else [])]), title_justify="left")
    cells = [_cells(row) for row in rows]
    # a narrow terminal has the results file for the rest; what is no terminal has no width at all
    further = {
        "runtime": any(row["runtime"] != "eager" for row in rows),
        "MB moved": any("bytes_moved" in row for row in rows),
    }
    left_out = [name for name, is_shown in further.items() if not is_shown]
    cells = [{name: cell for name, cell in row.items() if name not in left_out} for row in cells]
    wide = WIDE + WIDER * sum(further.values())
    shown = [name for name in cells[0] if console.width >= wide or not console.is_terminal or name not in LEFT_OUT]
    for heading in shown:
        table.add_column(heading, justify="left" if heading in ("method", "runtime") else "right", no_wrap=True)
    for row in cells:
        table.add_row(*(row[heading] for heading in shown))
    printing = console if console.is_terminal else Console(width=max(wide, console.width))
    printing.print(table)
    shortened = next((row for row in rows if row["schedule"] and row["kept_tokens"]), None)
    if shortened:
        kept = " ".join(map(str, shortened["kept_tokens"]))
        note(f"kept tokens behind each block, stage or layer: {kept}")
    widest = max((row["step_time_high"] - row["step_time_low"]) / row["step_time"] for row in rows)
    if widest > BUSY:
        note(
            f"note: half of the rounds lie {100 * widest:.0f} % apart, so the machine was busy with other things. "
            "Ratios are taken round by round and suffer less; for exact ones use an idle machine or more rounds "
            "(--num-bench-iter)."
        )
