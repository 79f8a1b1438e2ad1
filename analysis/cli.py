"""The command ``repshift``."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from repshift import __version__
from repshift.errors import RepshiftError, UnknownNameError

# Heavy imports (timm, matplotlib) stay inside the commands, so that --help answers at once

app = typer.Typer(
    name="repshift",
    help="Faster pretrained vision backbones without retraining: drop the tokens whose representation barely shifts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
zoo = typer.Typer(help="The small models that ship with the package.", no_args_is_help=True)
app.add_typer(zoo, name="zoo")
console = Console()


def main() -> None:
    """Run the command line; an error that we raised on purpose is one line on standard error and exit code 1."""
    try:
        app()
    except RepshiftError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"repshift {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    return None


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the figure and the results.")] = Path("repshift-demo"),
) -> None:
    """Prune the embedded models on 2,000 canvases, by the shift and by two controls, and show what is kept."""
    from repshift.analysis.demo import HEADINGS, LEGEND, SCHEDULES, cells, run_demo, verdicts

    with _progress() as progress:
        task = progress.add_task("2,000 canvases, 3 x 7 models", total=None)
        results = run_demo(output, lambda done, steps: progress.update(task, completed=done, total=steps))
    for name in SCHEDULES:
        table = Table(title=f"{name} on Cluttered MNIST, no retraining", title_justify="left")
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading in ("drop", "score") else "right", no_wrap=True)
        for result in results:
            if result.model == name:
                table.add_row(*cells(result), end_section=result.score in ("none", "norm"))
        console.print(table)
    console.print(LEGEND, highlight=False)
    for line in verdicts(results):
        console.print(line, highlight=False)
    console.print(
        f"figures: {', '.join(f'{name}.png' for name in SCHEDULES)}   numbers: results.json   in {output}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def heatmap(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Any timm model, vim_tiny, vim_small, vim_base, tiny_vit, tiny_resnet, tiny_vim."
        ),
    ],
    image: Annotated[list[Path], typer.Option(help="An image file; several may follow each other.")],
    more_images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Further images.")] = None,
    pretrained: Annotated[bool, typer.Option(help="Load the published weights.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Load weights from a file.")] = None,
    use_ema: Annotated[
        bool | None,
        typer.Option("--use-ema/--no-use-ema", help="Of a checkpoint with averaged weights. [default: the published]"),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="Blocks (stages, layers) counted from zero, as 0,4,8. [default: first, middle, last]"),
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(help="Modules by name or glob instead of blocks, as 'layer1.*'; may be repeated."),
    ] = None,
    operation: Annotated[
        str | None,
        typer.Option(help="Whose change is shown: attn, mlp, block; stage (CNN); mixer (SSM). [default: mlp or these]"),
    ] = None,
    distance: Annotated[str, typer.Option(help="l2, l1 or cosine.")] = "l2",
    residual: Annotated[bool, typer.Option(help="Compare x + F(x) with x instead of F(x) with x.")] = False,
    output: Annotated[Path, typer.Option(help="The figure; its ending names the format.")] = Path("heatmap.png"),
) -> None:
    """Draw the representation shift of image files: one row an image, one column a block."""
    from repshift.analysis.figures import ImageColumn, MapColumn, check_figure_path, draw_columns, save_figure
    from repshift.analysis.heatmaps import block_names, shift_maps
    from repshift.analysis.preprocessing import load_images, pixels
    from repshift.loading import load_model
    from repshift.modules import find_modules
    from repshift.sites import find_structure

    check_figure_path(output)
    indices = _parse_blocks(blocks)
    loaded = load_model(model, pretrained=pretrained, checkpoint=checkpoint, use_ema=use_ema)
    if not pretrained and checkpoint is None:
        console.print(
            "note: the weights are random; give --pretrained or --checkpoint for a trained model.", soft_wrap=True
        )
    paths = [*image, *(more_images or [])]
    inputs = load_images(loaded, paths)
    structure = find_structure(loaded)
    if (operation or residual) and structure is None:
        raise UnknownNameError(
            f"{model} has no known backbone, so its blocks are compared as they are, output with input. "
            "Leave out --operation and --residual."
        )
    names = find_modules(loaded, sites) if sites else block_names(loaded, inputs, indices)
    maps = shift_maps(loaded, inputs, names, operation=operation, distance=distance, residual=residual)
    watched = [operation or structure.operation] if structure and not sites else []
    unit = f"shift ({', '.join([*watched, distance, *(['residual'] if residual else [])])})"
    seen = pixels(loaded, inputs)
    columns: list[ImageColumn | MapColumn] = [ImageColumn("image", seen)]
    columns += [MapColumn(name, maps[name], unit) for name in names]
    save_figure(draw_columns(columns, [path.stem for path in paths]), output)
    console.print(f"figure: {output}", highlight=False, soft_wrap=True)


@app.command()
def finetune(
    model: Annotated[str, typer.Option("--model", "-m", help="A model of timm or of the embedded zoo.")],
    drop: Annotated[str, typer.Option(help="What goes after which stage or block, as 8@0;4@1 or 0.2@0,3,6.")],
    data: Annotated[str, typer.Option(help="Folder with train/ and validation/ inside, or cluttered-mnist.")],
    output: Annotated[
        Path, typer.Option(help="Folder for the weights, the summary and the state to resume from.")
    ] = Path("repshift-finetune"),
    pretrained: Annotated[bool, typer.Option(help="Start from the published weights.")] = False,
    checkpoint: Annotated[str | None, typer.Option(help="Start from the weights in a file.")] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Start with a new classifier of so many classes. [default: the model's]")
    ] = None,
    score: Annotated[str, typer.Option(help="shift, norm or random.")] = "shift",
    pruner: Annotated[
        str | None, typer.Option(help="tokens, sequence, lines or positions. [default: what suits the model]")
    ] = None,
    operation: Annotated[
        str | None, typer.Option(help="Whose change counts: attn, mlp, block, stage or mixer. [default: the model's]")
    ] = None,
    distance: Annotated[str, typer.Option(help="l2, l1 or cosine.")] = "l2",
    residual: Annotated[bool, typer.Option(help="Compare x + F(x) with x instead of F(x) with x.")] = False,
    dataset: Annotated[
        str, typer.Option(help="torch/NAME or hfds/NAME under --data, instead of folders.", show_default=False)
    ] = "",
    train_split: Annotated[str, typer.Option(help="Name of the training split.")] = "train",
    val_split: Annotated[str, typer.Option(help="Name of the validation split.")] = "validation",
    digits: Annotated[
        Path | None, typer.Option(help="For cluttered-mnist: MNIST's t10k files. [default: download]")
    ] = None,
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
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Images a process and step.")] = 128,
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
    amp: Annotated[bool, typer.Option("--amp", help="Train in mixed precision.")] = False,
    amp_dtype: Annotated[str, typer.Option(help="bfloat16 or float16 (GPU).")] = "bfloat16",
    seed: Annotated[int, typer.Option(help="Another seed gives another order and augmentation.")] = 42,
    workers: Annotated[int, typer.Option("--workers", "-j", help="Processes that load images, a process.")] = 4,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. [default: a GPU if there is one]")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the state in --output, if there is one.")] = True,
) -> None:
    """Prune a model and train it as it is pruned; run again after an interruption to go on.

    On several devices: accelerate launch -m repshift finetune ... (or torchrun).
    """
    given = {**locals(), "cooldown_epochs": epochs // 10 if cooldown_epochs is None else cooldown_epochs}
    from repshift.analysis.finetuning import finetune as run
    from repshift.analysis.finetuning import is_main_process
    from repshift.analysis.finetuning_recipe import Recipe

    recipe = Recipe(**{setting.name: given[setting.name] for setting in fields(Recipe)})
    shown = _progress()
    shown.disable = not is_main_process()
    with shown as progress:
        task = progress.add_task("loading", total=None)

        def observe(what: str, step: int, steps: int) -> None:
            if step == 1:
                progress.reset(task)  # each part has a pace of its own
            progress.update(task, completed=step, total=steps, description=what)

        try:
            done = run(recipe, output, digits=digits, workers=workers, device=device, resume=resume, observe=observe)
        except KeyboardInterrupt:
            if is_main_process():
                console.print(f"interrupted; run the same command again to go on from the last whole epoch in {output}")
            raise typer.Exit(130) from None
    if not is_main_process():
        return
    if not pretrained and checkpoint is None:
        console.print("note: the weights were random at first; give --pretrained or --checkpoint for trained ones.")
    table = Table(title=f"{model}, {drop} dropped, on {dataset or data}", title_justify="left")
    table.add_column("model")
    table.add_column("weights")
    table.add_column("top-1 %", justify="right")
    table.add_row("dense", "as loaded", f"{100 * done.dense:.2f}")
    table.add_row("pruned", "as loaded", f"{100 * done.pruned:.2f}")
    table.add_row("pruned", f"fine-tuned, epoch {done.best_epoch} of {epochs}", f"{100 * done.finetuned:.2f}")
    console.print(table)
    console.print(f"weights: {done.weights}   numbers: {output / 'summary.json'}", highlight=False, soft_wrap=True)


@zoo.command()
def train(
    name: Annotated[str, typer.Argument(help="The model to train: tiny_vit, tiny_resnet or tiny_vim.")],
    digits: Annotated[
        Path | None, typer.Option(help="Folder with MNIST's t10k files. [default: download by torchvision]")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the weights and the state to resume from.")] = Path("zoo"),
    epochs: Annotated[int | None, typer.Option(help="Epochs of 8,000 canvases. [default: the recipe's]")] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives other weights and canvases.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. [default: a GPU if there is one]")] = None,
) -> None:
    """Train an embedded model on Cluttered MNIST; run again after an interruption to go on."""
    from repshift.analysis.training import train_model

    with _progress() as progress:
        task = progress.add_task(f"training {name}", total=None)

        def observe(step: int, steps: int, loss: float) -> None:
            progress.update(task, completed=step, total=steps, description=f"training {name}, loss {loss:.3f}")

        try:
            trained = train_model(name, digits, output, epochs=epochs, seed=seed, device=device, observe=observe)
        except KeyboardInterrupt:
            console.print(f"interrupted; run the same command again to go on from the last whole epoch in {output}")
            raise typer.Exit(130) from None
    console.print(f"{trained.weights}: accuracy {100 * trained.accuracy:.1f} % on 2,000 canvases", highlight=False)


def _parse_blocks(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UnknownNameError(f"--blocks got {text!r}, expected numbers counted from zero, as in 0,4,8.") from error


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,  # what is left on the screen is the result, or the error
    )


if __name__ == "__main__":
    main()
