"""``repshift finetune``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from repshift.analysis.output import options
from repshift.analysis.output.terminal import console, interrupted, note, note_data, progress_bar
from repshift.errors import ScheduleError


def finetune(
    model: options.Model,
    data: Annotated[str, typer.Option(help="Folder with train/ and validation/ inside, or cluttered-mnist.")],
    drop: Annotated[
        str | None,
        typer.Option(help="What goes after which stage or block, as 8@0;4@1 or 0.2@0,3,6. This, or --recipe."),
    ] = None,
    recipe: options.RecipeFile = None,
    output: options.WeightsFolder = Path("repshift-finetune"),
    pretrained: options.Pretrained = False,
    checkpoint: options.Checkpoint = None,
    use_ema: options.UseEma = None,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    input_size: options.InputSize = None,
    model_kwargs: options.ModelKwargs = None,
    attention: options.Attention = None,
    score: options.Score = "shift",
    pruner: options.Pruner = None,
    operation: options.Operation = None,
    distance: options.Distance = "l2",
    residual: options.Residual = False,
    dataset: options.Dataset = "",
    train_split: Annotated[str, typer.Option(help="Name of the training split.")] = "train",
    val_split: Annotated[str, typer.Option(help="Name of the validation split.")] = "validation",
    digits: options.Digits = None,
    epochs: Annotated[int, typer.Option(help="All epochs, the cool-down included.")] = 100,
    cooldown_epochs: Annotated[
        int | None, typer.Option(help="Of these, the last ones at --min-lr. [default: a tenth]")
    ] = None,
    warmup_epochs: Annotated[int, typer.Option(help="Of these, the first ones, rising from --warmup-lr.")] = 0,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-4,
    min_lr: Annotated[float, typer.Option(help="Lowest learning rate.")] = 1e-6,
    warmup_lr: Annotated[float, typer.Option(help="First learning rate of the warm-up.")] = 1e-6,
    opt: Annotated[str, typer.Option(help="Any optimiser of timm.")] = "adamw",
    weight_decay: Annotated[float, typer.Option(help="Not for biases and norms.")] = 0.05,
    batch_size: options.BatchSize = 128,
    grad_accum_steps: Annotated[int, typer.Option(help="Batches an update.")] = 1,
    clip_grad: Annotated[float | None, typer.Option(help="Bound on the gradient's norm. [default: none]")] = None,
    smoothing: Annotated[float, typer.Option(help="Label smoothing.")] = 0.1,
    mixup: Annotated[float, typer.Option(help="Alpha of mixup; 0 is none.")] = 0.0,
    cutmix: Annotated[float, typer.Option(help="Alpha of CutMix; 0 is none.")] = 0.0,
    no_aug: Annotated[bool, typer.Option("--no-aug", help="Show training images as evaluation does.")] = False,
    hflip: Annotated[float, typer.Option(help="Share of images that are mirrored.")] = 0.5,
    color_jitter: Annotated[float, typer.Option(help="Strength of the colour jitter.")] = 0.4,
    aa: Annotated[str | None, typer.Option(help="timm's AutoAugment policy, as rand-m9-mstd0.5-inc1.")] = None,
    reprob: Annotated[float, typer.Option(help="Share of images of which a part is erased.")] = 0.0,
    model_ema: Annotated[
        bool, typer.Option("--model-ema", "--ema", help="Evaluate and keep the weights' moving average.")
    ] = False,
    model_ema_decay: Annotated[float, typer.Option("--model-ema-decay", "--ema-decay", help="Its decay.")] = 0.9998,
    amp: options.Amp = False,
    amp_dtype: options.AmpDtype = "bfloat16",
    suffixes: options.Suffixes = None,
    skip_other_files: options.SkipOtherFiles = False,
    seed: Annotated[int, typer.Option(help="Another seed gives another order and augmentation.")] = 42,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", "-j", help="Processes that load images, for each that trains; what they draw depends on it."
        ),
    ] = 4,
    device: options.Device = None,
    resume: Annotated[bool, typer.Option(help="Go on from the state in --output, if there is one.")] = True,
) -> None:
    """Prune a model and train it as it is pruned; run again after an interruption to go on.

    On several devices: accelerate launch -m repshift finetune ... (or torchrun).
    """
    given = {
        **locals(),
        "checkpoint": None if checkpoint is None else str(checkpoint),  # the state holds it as text
        "cooldown_epochs": epochs // 10 if cooldown_epochs is None else cooldown_epochs,
    }
    from repshift.analysis.finetuning.settings import TrainingSettings
    from repshift.analysis.finetuning.training import finetune as run
    from repshift.analysis.finetuning.training import is_main_process
    from repshift.analysis.subjects.models import model_options
    from repshift.analysis.subjects.recipes import chosen_recipe, in_words
    from repshift.folders import folder_of

    built = model_options(num_classes, model_kwargs)
    given |= {"num_classes": built.pop("num_classes", None), "model_kwargs": built or None}
    dropped_by = {name: given[name] for name in ("score", "pruner", "operation", "distance", "residual")}
    given["recipe"] = chosen_recipe(recipe, drop, model=model, **dropped_by)
    if given["recipe"] is None:
        raise ScheduleError(
            "Fine-tuning trains a pruned model, and nothing is dropped. Give --drop, such as 0.2@0,3,6, or --recipe."
        )
    settings = TrainingSettings(**{setting.name: given[setting.name] for setting in fields(TrainingSettings)})
    with progress_bar(shown=is_main_process()) as progress:
        task = progress.add_task("loading", total=None)

        def observe(what: str, step: int, steps: int) -> None:
            if step == 1:
                progress.reset(task)  # each part has a pace of its own
            progress.update(task, completed=step, total=steps, description=what)

        try:
            done = run(settings, output, digits=digits, workers=workers, device=device, resume=resume, observe=observe)
        except KeyboardInterrupt:
            outcome = f"run the same command again to go on from the last whole epoch in {output}"
            raise interrupted(outcome, shown=is_main_process()) from None
    if not is_main_process():
        return
    note_data(done.notes)
    if not pretrained and checkpoint is None and folder_of(model) is None:
        note("note: the weights were random at first; give --pretrained or --checkpoint for trained ones.")
    table = Table(title=f"{model}, {in_words(done.recipe)}, on {dataset or data}", title_justify="left")
    table.add_column("model")
    table.add_column("weights")
    table.add_column("top-1 %", justify="right")
    table.add_row("dense", "as loaded", f"{100 * done.dense:.2f}")
    table.add_row("pruned", "as loaded", f"{100 * done.pruned:.2f}")
    table.add_row("pruned", f"fine-tuned, epoch {done.best_epoch} of {epochs}", f"{100 * done.finetuned:.2f}")
    console.print(table)
    note(f"weights: {done.weights}   numbers: {output / 'summary.json'}")
