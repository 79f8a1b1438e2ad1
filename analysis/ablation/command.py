"""``repshift ablate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from repshift.analysis.output import options
from repshift.analysis.output.terminal import console, interrupted, note, note_data, note_random_weights, progress_bar

if TYPE_CHECKING:
    from torch import nn

    from repshift.analysis.ablation.points import Point
    from repshift.analysis.ablation.settings import StudySetting
    from repshift.analysis.samples.data import Samples

DEFAULT_MODEL = "tiny_vit"
STUDIES = "operation, distance, residual, score, half"


def ablate(
    data: options.Data = "cluttered-mnist",
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A model of timm, a Vision Mamba or one of the zoo. [default: tiny_vit]"),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Load the published weights, as without --model.")
    ] = False,
    checkpoint: options.Checkpoint = None,
    use_ema: options.UseEma = None,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    input_size: options.InputSize = None,
    model_kwargs: options.ModelKwargs = None,
    attention: options.Attention = None,
    study: Annotated[
        list[str] | None, typer.Option(help=f"{STUDIES} or all; may be repeated or listed with commas. [default: all]")
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="After which blocks (stages, layers), one at a time, counted from zero, as 0,2,4."),
    ] = None,
    methods: options.Methods = None,
    count: Annotated[
        int | None, typer.Option(help="Tokens to drop, of a CNN rows and columns. [default: a fifth]")
    ] = None,
    num_samples: options.NumSamples = None,
    batch_size: options.BatchSize = 50,
    workers: options.Workers = None,
    split: options.Split = "validation",
    dataset: options.Dataset = "",
    class_map: options.ClassMap = None,
    labels: options.LabelsFile = None,
    suffixes: options.Suffixes = None,
    skip_other_files: options.SkipOtherFiles = False,
    device: options.Device = None,
    seed: Annotated[int, typer.Option(help="Of the random control.")] = 42,
    seeds: options.Seeds = None,
    output: options.ResultsFolder = Path("repshift-ablation"),
) -> None:
    """Drop tokens at one block at a time and compare operation, distance, residual, score, top and bottom half.

    The paper's toy studies on any model and data, with the controls in each: random, norm, and a smaller input.
    --methods is what the study of the score compares beside these.
    """
    from repshift.analysis.ablation.reports import write_ablation
    from repshift.analysis.ablation.settings import choose_studies, plan, with_smaller_inputs
    from repshift.analysis.output.files import output_folder
    from repshift.analysis.output.results import environment
    from repshift.analysis.samples.data import open_samples
    from repshift.analysis.samples.processes import Processes
    from repshift.analysis.subjects.limits import check_batch, check_seed, check_seeds, check_workers
    from repshift.analysis.subjects.methods import SEEDS, read_methods
    from repshift.analysis.subjects.models import ModelOptions, model_options
    from repshift.analysis.subjects.recipes import block_numbers
    from repshift.analysis.subjects.sizes import build_model
    from repshift.finding import require_structure

    check_seed(seed)
    check_seeds(seeds)
    asked = read_methods(methods)
    draws = SEEDS if seeds is None else seeds
    check_batch(batch_size)
    check_workers(workers)
    chosen_blocks = block_numbers(blocks)
    studies = choose_studies(name.strip() for text in study or ["all"] for name in text.split(","))
    place = Processes().device(device)
    name = model or DEFAULT_MODEL
    pretrained = pretrained or (model is None and checkpoint is None)
    note_random_weights(pretrained, checkpoint, name)
    built = ModelOptions(
        pretrained, checkpoint, use_ema, img_size, input_size, model_options(num_classes, model_kwargs), attention
    )
    loaded = build_model(name, built).to(place)
    samples = open_samples(
        loaded,
        data,
        dataset=dataset,
        split=split,
        class_map=class_map,
        labels=labels,
        suffixes=suffixes,
        skip_other_files=skip_other_files,
        num_samples=num_samples,
    )
    note_data(samples.notes)
    size = samples.config["input_size"]
    settings = plan(loaded, size, studies, chosen_blocks, count, asked)
    settings, remarks = with_smaller_inputs(loaded, size, settings)
    note_data(remarks)
    if missing := [study for study in studies if study not in {setting.study for setting in settings}]:
        note(f"left out, since {name} has nothing to vary there: {', '.join(missing)}")
    output_folder(output)
    try:
        points = _measure(loaded, settings, samples, batch_size, workers, seed, draws)
    except KeyboardInterrupt:
        raise interrupted("nothing was written") from None
    unit = require_structure(loaded).unit
    measured = {
        "model": name,
        "data": dataset or data,
        "batch": batch_size,
        "seed": seed,
        "seeds": draws,
        **environment(place),
    }
    _show(points, f"{name} on {dataset or data}", unit)
    files = write_ablation(output, points, measured, unit)
    note(f"written: {', '.join(path.name for path in files)}   in {output}")


def _measure(
    model: nn.Module,
    settings: Sequence[StudySetting],
    samples: Samples,
    batch_size: int,
    workers: int | None,
    seed: int,
    draws: int,
) -> list[Point]:
    """Run all settings under a bar of progress.

    Raises:
        MemoryExhaustedError: If a batch does not fit into memory.
    """
    from repshift.analysis.ablation.points import count_models, labelled_batches, run_ablation
    from repshift.analysis.ablation.settings import device_of
    from repshift.analysis.subjects.memory import fitting

    models = count_models(settings, draws)
    with progress_bar() as progress:
        task = progress.add_task(f"{len(samples)} images, {models} models", total=models * len(samples))
        with fitting(batch_size, str(device_of(model)), retry=False):
            return run_ablation(
                model,
                settings,
                labelled_batches(model, samples, batch_size, workers),
                seed=seed,
                draws=draws,
                observe=lambda images: progress.update(task, advance=images),
            )


def _show(points: Sequence[Point], subject: str, unit: str) -> None:
    from repshift.analysis.ablation.reports import LEGEND, WHAT, studies_of, summary, table_of, verdicts

    for study in studies_of(points):
        headings, rows = table_of(points, study, unit)
        table = Table(title=f"{subject}: {WHAT[study]}", title_justify="left")
        for number, heading in enumerate(headings):
            table.add_column(heading, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in (summary(points), LEGEND, *verdicts(points)):
        note(line)
