"""``repshift probe``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from repshift.analysis.output import options
from repshift.analysis.output.terminal import (
    note,
    note_data,
    note_draws,
    note_random_weights,
    progress_bar,
    show_table,
    with_error,
)

Row = Mapping[str, Any]
HEADINGS = {"top1": "linear %", "knn_top1": "k-NN %", "log_likelihood": "log-likelihood"}
DIGITS = {"log_likelihood": 3}


def probe(
    train: Annotated[Path, typer.Argument(help="Images to train on, as TRAIN/class/file.")],
    validation: Annotated[Path, typer.Argument(metavar="VAL", help="Images to measure on, as VAL/class/file.")],
    model: options.Model,
    suffixes: options.Suffixes = None,
    skip_other_files: options.SkipOtherFiles = False,
    num_samples: options.NumSamples = None,
    train_samples: Annotated[
        int | None, typer.Option(help="Train on so many images, evenly spread. [default: all]")
    ] = None,
    neighbours: Annotated[int, typer.Option(min=1, help="Of k-NN: how many vote.")] = 20,
    pretrained: options.Pretrained = False,
    checkpoint: options.Checkpoint = None,
    use_ema: options.UseEma = None,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    input_size: options.InputSize = None,
    model_kwargs: options.ModelKwargs = None,
    attention: options.Attention = None,
    drop: options.Drop = None,
    drop_r: options.DropR = None,
    recipe: options.RecipeFile = None,
    methods: options.Methods = None,
    compare: options.Compare = None,
    against: options.Against = None,
    seeds: options.Seeds = None,
    operation: options.Operation = None,
    distance: options.Distance = "l2",
    residual: options.Residual = False,
    pruner: options.Pruner = None,
    batch_size: options.BatchSize = 32,
    workers: options.Workers = None,
    device: options.Device = None,
    seed: Annotated[int, typer.Option(help="Of the images held back, the random score, random weights.")] = 0,
    on_error: options.OnError = "stop",
    per_image: options.PerImage = None,
    results_file: options.ResultsFile = None,
    results_format: options.ResultsFormat = None,
    resume: options.Resume = None,
) -> None:
    """Train probes on dense features, and measure how well they read each method's: for backbones without a head.

    On several devices: accelerate launch -m repshift probe ... (or torchrun).
    """
    from repshift.analysis.output.results import check_results_files, write_with_images
    from repshift.analysis.probe.classifiers import require_scikit_learn
    from repshift.analysis.probe.measuring import measure_probes
    from repshift.analysis.samples.class_folders import check_two_folders, open_class_folders
    from repshift.analysis.samples.passes import Passes
    from repshift.analysis.samples.preprocessing import evaluation_config
    from repshift.analysis.samples.processes import as_one_command
    from repshift.analysis.subjects.comparing import build_subjects
    from repshift.analysis.subjects.limits import check_batch, check_seed, check_seeds, check_workers
    from repshift.analysis.subjects.models import ModelOptions, model_options
    from repshift.analysis.subjects.recipes import chosen_recipe

    check_seed(seed)
    check_seeds(seeds)
    check_batch(batch_size)
    check_workers(workers)
    built = ModelOptions(
        pretrained, checkpoint, use_ema, img_size, input_size, model_options(num_classes, model_kwargs), attention
    )
    measured_by: dict[str, Any] = {"operation": operation, "distance": distance, "residual": residual, "pruner": pruner}
    with as_one_command(results_file is not None) as processes:
        with progress_bar(shown=processes.first) as progress:
            task = progress.add_task("loading", total=None)

            def observe(what: str, done: int, total: int) -> None:
                progress.update(task, description=what, completed=done, total=total)

            with processes.together():
                if processes.first:
                    require_scikit_learn()
                    check_two_folders(train, validation)
                    check_results_files(results_file, results_format, per_image)
                chosen = processes.device(device)
                passes = Passes(processes, results_file, batch_size, workers, chosen, on_error, observe)
                passes.begin(resume)
                pruned = chosen_recipe(recipe, drop, drop_r, model=model, **measured_by)
                config_of = partial(evaluation_config, img_size=img_size, input_size=input_size)
                subjects = build_subjects(
                    model,
                    built,
                    pruned,
                    lambda dense: config_of(dense)["input_size"],
                    methods,
                    compare or (),
                    seed,
                    chosen,
                    against or (),
                    seeds,
                )
                config = config_of(subjects.model)
                source: dict[str, Any] = {"suffixes": suffixes, "skip_other_files": skip_other_files}
                trained, classes = open_class_folders(train, config, num_samples=train_samples, **source)
                named: dict[str, Any] = {"source": str(train), "num_samples": num_samples, **source}
                measured, _ = open_class_folders(validation, config, classes, **named)
            found = measure_probes(subjects, trained, measured, list(classes), neighbours, passes)
        with processes.together():
            if processes.first:
                write_with_images("probe", found.rows, found.images, chosen, results_file, results_format, per_image)
            passes.end()
        first = processes.first
    if first:
        note_data([*trained.notes, *measured.notes, *subjects.notes, *found.notes])
        _show(found.rows)
        note_random_weights(pretrained, checkpoint, model)
        for file in filter(None, (results_file, per_image)):
            note(f"results: {file}")


def _show(rows: Sequence[Row]) -> None:
    others = dict.fromkeys(
        name.partition("_against_")[2] for name in rows[0] if "_against_" in name and not name.endswith("_error")
    )
    cells = []
    for row in rows:
        measured = {
            heading: with_error(row, measure, digits=DIGITS.get(measure, 2)) for measure, heading in HEADINGS.items()
        }
        for other in others:
            measured[f"linear - {other}"] = with_error(row, f"top1_against_{other}", sign="+")
            measured[f"log-l. - {other}"] = with_error(
                row, f"log_likelihood_against_{other}", sign="+", digits=DIGITS["log_likelihood"]
            )
        cells.append({"method": row["method"], "GMACs": f"{row['gmacs']:.2f}", **measured})
    first = rows[0]
    show_table(f"{first['model']}, trained on {first['train_samples']} images, {first['samples']} measured", cells)
    note(f"linear probe: strength C = {first['strength']:g}; k-NN: {first['neighbours']} neighbours.")
    note("±: standard error over images; last columns: less that of another method, image by image.")
    note_draws(rows, "top1")
