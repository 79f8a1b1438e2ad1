"""``repshift fidelity``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
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
HEADINGS = {
    "feature_distance": "1 - cos · 1000",
    "token_distance": "tokens · 1000",
    "agreement": "same class %",
    "kl": "KL · 1000",
}
SCALES = {"agreement": 1}


def fidelity(
    model: options.Model,
    data: options.Data = "cluttered-mnist",
    dataset: options.Dataset = "",
    split: options.Split = "validation",
    suffixes: options.Suffixes = None,
    skip_other_files: options.SkipOtherFiles = False,
    num_samples: options.NumSamples = None,
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
    seed: Annotated[int, typer.Option(help="Of the random score and of random weights.")] = 0,
    on_error: options.OnError = "stop",
    per_image: options.PerImage = None,
    results_file: options.ResultsFile = None,
    results_format: options.ResultsFormat = None,
    resume: options.Resume = None,
) -> None:
    """Measure, without labels, how close features and predictions stay to the dense model's, method by method.

    On several devices: accelerate launch -m repshift fidelity ... (or torchrun).
    """
    from repshift.analysis.fidelity.measuring import measure_fidelity
    from repshift.analysis.output.results import check_results_files, write_with_images
    from repshift.analysis.samples.data import open_samples
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
                source: dict[str, Any] = {
                    "dataset": dataset,
                    "split": split,
                    "suffixes": suffixes,
                    "skip_other_files": skip_other_files,
                }
                samples = open_samples(
                    subjects.model, data, num_samples=num_samples, config=config, labelled=False, **source
                )
            found = measure_fidelity(subjects, samples, passes)
        with processes.together():
            if processes.first:
                write_with_images("fidelity", found.rows, found.images, chosen, results_file, results_format, per_image)
            passes.end()
        first = processes.first
    if first:
        note_data([*samples.notes, *subjects.notes, *found.notes])
        _show(found.rows)
        note_random_weights(pretrained, checkpoint, model)
        for file in filter(None, (results_file, per_image)):
            note(f"results: {file}")


def _show(rows: Sequence[Row]) -> None:
    measures = [measure for measure in HEADINGS if measure in rows[0]]
    others = [name for name in rows[0] if name.startswith("feature_distance_against_") and not name.endswith("_error")]
    cells = [
        {
            "method": row["method"],
            "GMACs": f"{row['gmacs']:.2f}",
            **{HEADINGS[measure]: with_error(row, measure, SCALES.get(measure, 1000)) for measure in measures},
            **{other.partition("_against_")[2].join(("- ", "")): with_error(row, other, 1000, "+") for other in others},
        }
        for row in rows
    ]
    show_table(f"{rows[0]['model']}, {rows[0]['samples']} images, dense {rows[0]['dense_gmacs']:.2f} GMACs", cells)
    note("±: standard error over images; last columns: 1 - cos less that of another method, image by image.")
    note_draws(rows, "feature_distance", 1000)
