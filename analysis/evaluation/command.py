"""``repshift eval``."""

from __future__ import annotations

import ast
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from repshift.analysis.output.terminal import interrupted, note, note_random_weights, progress_bar
from repshift.errors import DataError, RepshiftError


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
    split: Annotated[str, typer.Option(help="Part of the data.")] = "validation",
    num_samples: Annotated[
        int | None, typer.Option(help="Evaluate so many, evenly spread; of a stream the first. [default: all]")
    ] = None,
    dataset_download: Annotated[bool, typer.Option("--dataset-download", help="Download torch/ and hfids/.")] = False,
    class_map: Annotated[str | None, typer.Option(help="File of all the model's class names, one a line.")] = None,
    valid_labels: Annotated[str | None, typer.Option(help="File of the classes that the data have.")] = None,
    real_labels: Annotated[str | None, typer.Option(help="ImageNet's reassessed labels: JSON file, or timm.")] = None,
    input_key: Annotated[str | None, typer.Option(help="Field of the images in a dataset.")] = None,
    target_key: Annotated[str | None, typer.Option(help="Field of the labels in a dataset.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Load the published weights.")] = False,
    checkpoint: Annotated[str | None, typer.Option(help="Load weights from a file.")] = None,
    use_ema: Annotated[
        bool | None,
        typer.Option("--use-ema/--no-use-ema", help="Of a checkpoint with averaged weights. [default: the published]"),
    ] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes of the model. [default: its own]")] = None,
    model_kwargs: Annotated[list[str] | None, typer.Option(help="Settings of the model, as key=value.")] = None,
    drop: Annotated[
        str | None, typer.Option(help="What goes after which block, as 0.2@0,3,6. [default: nothing]")
    ] = None,
    drop_r: Annotated[
        str | None, typer.Option("--drop-r", "--drop_r", help="The same as a list, one share a block: [0.2,0,...].")
    ] = None,
    operation: Annotated[
        str | None, typer.Option(help="Whose change counts: attn, mlp, block, stage or mixer. [default: the model's]")
    ] = None,
    distance: Annotated[str, typer.Option(help="l2, l1 or cosine.")] = "l2",
    residual: Annotated[bool, typer.Option(help="Compare x + F(x) with x instead of F(x) with x.")] = False,
    score: Annotated[
        str, typer.Option(help="shift, norm, random, cls_attention, mean_attention or oracle_free.")
    ] = "shift",
    pruner: Annotated[
        str | None, typer.Option(help="tokens, sequence, lines or positions. [default: what suits the model]")
    ] = None,
    keep: Annotated[str, typer.Option(help="top keeps the highest scores; bottom is the control.")] = "top",
    compare_dense: Annotated[
        bool, typer.Option("--compare-dense", help="Evaluate the dense model on the same batches.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Images a process and step.")] = 256,
    workers: Annotated[int, typer.Option("--workers", "-j", help="Processes that load images, a process.")] = 4,
    img_size: Annotated[int | None, typer.Option(help="Pixels a side. [default: the model's for tests]")] = None,
    input_size: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Channels, rows and columns.", show_default=False)
    ] = None,
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
    amp: Annotated[bool, typer.Option("--amp", help="Evaluate in mixed precision.")] = False,
    amp_dtype: Annotated[str, typer.Option(help="float16 or bfloat16.")] = "float16",
    model_dtype: Annotated[str, typer.Option(help="Of the weights: float32, float16 or bfloat16.")] = "float32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Channels last in memory.")] = False,
    torchcompile: Annotated[bool, typer.Option("--torchcompile", help="Compile the models.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. [default: a GPU if there is one]")] = None,
    seed: Annotated[int, typer.Option(help="Of the random score and of random weights.")] = 42,
    retry: Annotated[bool, typer.Option("--retry", help="Try smaller batches when memory runs out.")] = False,
    on_error: Annotated[str, typer.Option(help="stop at an unreadable image, or skip and count it.")] = "stop",
    results_file: Annotated[Path | None, typer.Option(help="Write the results here; --resume needs it.")] = None,
    results_format: Annotated[
        str | None, typer.Option(help="csv, json or md. [default: the file's ending, else csv]")
    ] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume/--no-resume", help="Go on with an interrupted run, or begin anew.")
    ] = None,
) -> None:
    """Evaluate models, dense or pruned, on labelled images; options are timm's validate.py's.

    On several devices: accelerate launch -m repshift eval ... (or torchrun).
    """
    from repshift.analysis.evaluation.settings import EvaluationSettings, model_names
    from repshift.analysis.samples.processes import Processes
    from repshift.analysis.subjects.variants import Variant, choose_drop

    end = cast("Literal['top', 'bottom']", keep)  # checked where the model is pruned
    processes = Processes.join()
    try:
        if data is not None and data_dir is not None:
            raise DataError(f"Got the data {data} and --data-dir {data_dir}. Give one of them.")
        names = model_names(model, pretrained)
        settings = EvaluationSettings(
            data=data if data_dir is None else data_dir,
            variant=Variant(choose_drop(drop, drop_r), score, operation, distance, residual, pruner, end),
            compare_dense=compare_dense,
            dataset=dataset,
            split=split,
            class_map=class_map,
            num_samples=num_samples,
            dataset_options=_given(input_key=input_key, target_key=target_key, download=dataset_download or None),
            pretrained=pretrained or model == ["all"],
            checkpoint=checkpoint,
            use_ema=use_ema,
            model_options={**_given(num_classes=num_classes), **_parse(model_kwargs or [])},
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
    except RepshiftError:
        if not processes.first:
            time.sleep(2)  # the first process says why, and launchers end all when one has ended
            raise typer.Exit(1) from None
        raise
    except KeyboardInterrupt:
        again = "with --resume " if results_file is not None else ""
        raise interrupted(f"run the same command again {again}to go on", shown=processes.first) from None
    finally:
        processes.leave()
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
        _report(rows, settings, results)
    return any("error" in row for row in rows)


def _report(rows: Sequence[dict[str, Any]], settings: Any, results: Path | None) -> None:
    for row in rows:
        if "error" in row:
            typer.echo(f"error: {row['model']}: {row['error']}", err=True)
            continue
        dropped = f", {row['schedule']} dropped by {row['method']}" if row["schedule"] else ""
        note(f"{row['model']}{dropped}: {row['samples']} samples, {row['gmacs']:.2f} GMACs")
        note(f" * Acc@1 {row['top1']:.3f} ({row['top1_err']:.3f}) Acc@5 {row['top5']:.3f} ({row['top5_err']:.3f})")
        if "dense_top1" in row:
            note(
                f"   dense: Acc@1 {row['dense_top1']:.3f} Acc@5 {row['dense_top5']:.3f}, "
                f"{row['dense_gmacs']:.2f} GMACs; pruned - dense: {row['delta_top1']:+.3f} {row['delta_top5']:+.3f}; "
                f"same class {row['agreement']:.3f} %"
            )
        if row["skipped"]:
            typer.echo(f"skipped {row['skipped']}: {row['skipped_files']}", err=True)
    note_random_weights(settings.pretrained, settings.checkpoint)
    if results is not None:
        note(f"results: {results}")


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _parse(options: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value``: Python's literals, else text, as timm does."""
    parsed: dict[str, Any] = {}
    for option in (part for text in options for part in text.split()):
        name, sign, value = option.partition("=")
        if not sign or not name:
            raise DataError(f"--model-kwargs got {option!r}, expected key=value, as in img_size=384.")
        try:
            parsed[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[name] = value
    return parsed
