"""``repshift eval``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from repshift.analysis.output import options
from repshift.analysis.output.terminal import note, note_data, note_random_weights, printable, progress_bar
from repshift.errors import DataError

CHANCE = (
    "guessing would be right as often. The usual causes: the weights are random or of another task; the classes are "
    "numbered in another order than in training (--class-map, --labels); the images are preprocessed in another way "
    "(--mean, --std, --img-size)."
)


def evaluate(
    model: Annotated[
        list[str],
        typer.Option("--model", "-m", help="Names (repeated or with commas), a pattern, a file of names, or all."),
    ],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR]", help="Folder of class folders, tar file, or cluttered-mnist.", show_default=False
        ),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="The same, as an option.")] = None,
    dataset: Annotated[
        str, typer.Option(help="hfds/NAME, torch/NAME, hfids/NAME or wds/NAME instead of folders.", show_default=False)
    ] = "",
    split: options.Split = "validation",
    num_samples: options.NumSamples = None,
    dataset_download: Annotated[bool, typer.Option("--dataset-download", help="Download torch/ and hfids/.")] = False,
    class_map: options.ClassMap = None,
    labels: options.LabelsFile = None,
    suffixes: options.Suffixes = None,
    skip_other_files: options.SkipOtherFiles = False,
    valid_labels: Annotated[str | None, typer.Option(help="File of the classes that the data have.")] = None,
    real_labels: Annotated[str | None, typer.Option(help="ImageNet's reassessed labels: JSON file, or timm.")] = None,
    input_key: Annotated[str | None, typer.Option(help="Field of the images in a dataset.")] = None,
    target_key: Annotated[str | None, typer.Option(help="Field of the labels in a dataset.")] = None,
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
    operation: options.Operation = None,
    distance: options.Distance = "l2",
    residual: options.Residual = False,
    score: options.Score = "shift",
    pruner: options.Pruner = None,
    keep: options.Keep = "top",
    methods: options.Methods = None,
    seeds: options.Seeds = None,
    compare_dense: options.CompareDense = False,
    batch_size: options.BatchSize = 256,
    workers: options.Workers = None,
    use_train_size: Annotated[bool, typer.Option("--use-train-size", help="The model's size for training.")] = False,
    crop_pct: Annotated[float | None, typer.Option(help="Share of the side that the crop keeps.")] = None,
    crop_mode: Annotated[str | None, typer.Option(help="center, squash or border.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="nearest, bilinear, bicubic or lanczos.")] = None,
    mean: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Means of the channels.", show_default=False)
    ] = None,
    std: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Standard deviations.", show_default=False)
    ] = None,
    amp: options.Amp = False,
    amp_dtype: options.AmpDtype = "float16",
    model_dtype: Annotated[str, typer.Option(help="Of the weights: float32, float16 or bfloat16.")] = "float32",
    channels_last: options.ChannelsLast = False,
    torchcompile: options.Torchcompile = False,
    device: options.Device = None,
    seed: Annotated[int, typer.Option(help="Of the random score and of random weights.")] = 42,
    retry: options.Retry = False,
    on_error: options.OnError = "stop",
    results_file: options.ResultsFile = None,
    results_format: options.ResultsFormat = None,
    resume: options.Resume = None,
) -> None:
    """Evaluate models, dense or pruned, on labelled images; options are timm's validate.py's.

    On several devices: accelerate launch -m repshift eval ... (or torchrun).
    """
    from repshift.analysis.evaluation.settings import EvaluationSettings, model_names
    from repshift.analysis.samples.processes import as_one_command
    from repshift.analysis.subjects.methods import read_methods
    from repshift.analysis.subjects.models import model_options
    from repshift.analysis.subjects.recipes import chosen_recipe

    with as_one_command(results_file is not None) as processes:
        if data is not None and data_dir is not None:
            raise DataError(f"Got the data {data} and --data-dir {data_dir}. Give one of them.")
        asked = read_methods(methods)
        if asked is not None and score != "shift":
            raise DataError(f"Got --score {score} beside --methods {methods}. Name all that is compared in --methods.")
        names = model_names(model, pretrained)
        settings = EvaluationSettings(
            data=data if data_dir is None else data_dir,
            recipe=chosen_recipe(
                recipe,
                drop,
                drop_r,
                score=score,
                operation=operation,
                distance=distance,
                residual=residual,
                pruner=pruner,
                keep=keep,
            ),
            methods=None if asked is None else tuple(asked),
            seeds=seeds,
            compare_dense=compare_dense,
            dataset=dataset,
            split=split,
            class_map=class_map,
            labels=None if labels is None else str(labels),
            suffixes=suffixes,
            skip_other_files=skip_other_files,
            num_samples=num_samples,
            dataset_options=_given(input_key=input_key, target_key=target_key, download=dataset_download or None),
            pretrained=pretrained or model == ["all"],
            checkpoint=None if checkpoint is None else str(checkpoint),  # results files hold it as text
            use_ema=use_ema,
            model_options=model_options(num_classes, model_kwargs),
            attention=attention,
            preprocessing=_given(
                img_size=img_size,
                input_size=input_size,
                crop_pct=crop_pct,
                crop_mode=crop_mode,
                interpolation=interpolation,
                mean=mean,
                std=std,
                use_train_size=use_train_size or None,
            ),
            real_labels=real_labels,
            valid_labels=valid_labels,
            batch_size=batch_size,
            workers=workers,
            amp=amp,
            amp_dtype=amp_dtype,
            model_dtype=model_dtype,
            channels_last=channels_last,
            torchcompile=torchcompile,
            device=device,
            seed=seed,
            retry=retry,
            on_error=on_error,
        )
        failed = _run(settings, names, processes, results_file, results_format, resume)
    if failed:
        raise typer.Exit(1)


def _run(
    settings: Any, names: Sequence[str], processes: Any, results: Path | None, wanted: str | None, resume: bool | None
) -> bool:
    """Evaluate, report, and say whether any model failed."""
    from repshift.analysis.evaluation.evaluation import Evaluation

    # where there is no terminal, a bar would leave nothing but an empty line before an error
    with progress_bar(shown=processes.first) as progress:
        task = progress.add_task("loading", total=None)
        current = ""

        def observe(name: str, done: int, total: int | None, accuracy: float) -> None:
            nonlocal current
            if name != current:
                progress.reset(task)  # each model has a pace of its own
                current = name
            progress.update(task, completed=done, total=total, description=f"{name}, Acc@1 {accuracy:.2f}")

        with processes.together():
            evaluation = Evaluation(settings, processes, results, wanted, observe)
        rows = evaluation.run(names, resume)
    if processes.first:
        note_data(evaluation.notes)
        _report(rows, settings, names, results)
    return any("error" in row for row in rows)


def _report(rows: Sequence[dict[str, Any]], settings: Any, names: Sequence[str], results: Path | None) -> None:
    for row in rows:
        if "error" in row:
            typer.echo(f"error: {row['model']}: {row['error']}", err=True)
            continue
        if settings.methods is None:
            _say(row)
        if row.get("at_chance"):
            named = f"{row['method']}: " if settings.methods is not None else ""
            note(f"note: {named}{CHANCE}{' Or too much is dropped: see --compare-dense.' * bool(row['schedule'])}")
        if row["skipped"]:
            typer.echo(printable(f"skipped {row['skipped']}: {row['skipped_files']}"), err=True)
    if settings.methods is not None:
        from repshift.analysis.evaluation.table import show_methods

        for name in names:
            show_methods([row for row in rows if row["model"] == name and "error" not in row])
    note_random_weights(settings.pretrained, settings.checkpoint, *names)
    if results is not None:
        note(f"results: {results}")


def _say(row: dict[str, Any]) -> None:
    from repshift.analysis.subjects.recipes import size_in_words

    dropped = f", {row['schedule']} by {row['method']}" if row["schedule"] else ""
    smaller = f", input of {size_in_words(row['input_size'])} pixels" if row.get("input_size") else ""
    note(f"{row['model']}{dropped}{smaller}: {row['samples']} samples, {row['gmacs']:.2f} GMACs")
    drawn = f", mean of {row['seeds']} draws, spread {row['top1_spread']:.3f}" if "seeds" in row else ""
    note(f" * Acc@1 {row['top1']:.3f} ({row['top1_err']:.3f}) Acc@5 {row['top5']:.3f} ({row['top5_err']:.3f}){drawn}")
    if "dense_top1" in row:
        note(
            f"   dense: Acc@1 {row['dense_top1']:.3f} Acc@5 {row['dense_top5']:.3f}, "
            f"{row['dense_gmacs']:.2f} GMACs; pruned - dense: {row['delta_top1']:+.3f} {row['delta_top5']:+.3f}; "
            f"same class {row['agreement']:.3f} %"
        )


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
