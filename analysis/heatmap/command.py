"""``repshift heatmap``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repshift.analysis.output import options
from repshift.analysis.output.terminal import note, note_random_weights
from repshift.errors import DataError, ScheduleError, UnknownNameError

if TYPE_CHECKING:
    from torch import nn

    from repshift import Recipe


def heatmap(
    model: options.Model,
    image: Annotated[list[Path] | None, typer.Option(help="An image file; several may follow each other.")] = None,
    more_images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Further images.")] = None,
    video: Annotated[
        Path | None, typer.Option(help="A video file instead of images: a strip of its frames, with the shift below.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames of --video, evenly spread. [default: the model's, else 12]")
    ] = None,
    animation: Annotated[
        Path | None, typer.Option(help="Of --video: moving pictures, too, in an .mp4 or a .gif.", show_default=False)
    ] = None,
    pretrained: options.Pretrained = False,
    checkpoint: options.Checkpoint = None,
    use_ema: options.UseEma = None,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    input_size: options.InputSize = None,
    model_kwargs: options.ModelKwargs = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Blocks counted from zero, as 0,4,8. [default: all stages of a CNN, else first, middle, last]"
        ),
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(help="Modules by name or glob instead of blocks, as 'layer1.*'; may be repeated."),
    ] = None,
    operation: options.Operation = None,
    distance: options.Distance = "l2",
    residual: options.Residual = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Also how much attention the class token (else all) pays.")
    ] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Lay the maps over the images.")] = False,
    scale: Annotated[
        str, typer.Option(help="Colours: each map its own, each block (column) its own, or shared by all of a unit.")
    ] = "block",
    drop: options.Drop = None,
    drop_r: options.DropR = None,
    recipe: options.RecipeFile = None,
    kept: Annotated[
        bool, typer.Option("--kept", help="Of a pruned model: what is kept, the rest faded, what was merged outlined.")
    ] = False,
    methods: options.Methods = None,
    score: options.Score = "shift",
    pruner: options.Pruner = None,
    output: options.FigureFile = Path("heatmap.png"),
) -> None:
    """Draw the representation shift of image files, one row an image, one column a block, or of a video's frames."""
    from repshift.analysis.heatmap.figure import heatmap_figure
    from repshift.analysis.output.figures import check_figure_path, check_scale, save_figure
    from repshift.analysis.samples.images import load_images
    from repshift.analysis.samples.preprocessing import evaluation_config
    from repshift.analysis.subjects.models import ModelOptions, model_options
    from repshift.analysis.subjects.recipes import apply, block_numbers, chosen_recipe, with_tokens
    from repshift.analysis.subjects.sizes import build_model
    from repshift.finding import find_structure

    paths = [*(image or []), *(more_images or [])]
    _check_source(paths, video, frames, animation, methods)
    check_figure_path(output)
    check_scale(scale)
    indices = block_numbers(blocks)
    shown: dict[str, Any] = {"operation": operation, "distance": distance, "residual": residual}
    chosen = chosen_recipe(recipe, drop, drop_r, model=model, shown=shown, **shown, score=score, pruner=pruner)
    if (kept or methods is not None) and chosen is None:
        option = "--kept" if kept else "--methods"
        raise ScheduleError(f"{option} shows what is left, and nothing is dropped. Give --drop, such as 0.2@0,3,6.")
    if methods is not None and (kept or score != "shift" or pruner is not None):
        raise ScheduleError(
            f"--methods {methods} shows what each of these leaves. Leave out --kept, --score and --pruner beside it."
        )
    compared = {} if methods is None else _recipes(methods, chosen)
    if chosen is not None:
        shown = {name: getattr(chosen, name) for name in shown}
    built = ModelOptions(
        pretrained, checkpoint, use_ema, img_size, input_size, model_options(num_classes, model_kwargs)
    )
    loaded = build_model(model, built)
    note_random_weights(pretrained, checkpoint, model)
    if not sites and (shown["operation"] or shown["residual"]) and find_structure(loaded) is None:
        raise UnknownNameError(
            f"{model} has no known backbone, so its blocks are compared as they are, output with input. "
            "Leave out --operation and --residual."
        )
    pruned = (loaded if compared else apply(with_tokens(chosen), loaded)).eval()
    if video is not None:
        shown |= {"attention": attention, "kept": kept}
        _draw_video(pruned, loaded, video, frames, sites or None, indices, shown, overlay, scale, output, animation)
        return
    figure = heatmap_figure(
        pruned,
        load_images(loaded, paths, evaluation_config(loaded)),
        sites or None,
        blocks=indices,
        **shown,
        attention=attention,
        overlay=overlay,
        kept=kept,
        compared={name: apply(with_tokens(each), loaded).eval() for name, each in compared.items()},
        scale=scale,
        row_titles=[path.stem for path in paths],
    )
    save_figure(figure, output)
    note(f"figure: {output}")


def _check_source(
    images: list[Path], video: Path | None, frames: int | None, animation: Path | None, methods: str | None
) -> None:
    """Check that there are images or one video, and that what is asked fits these."""
    if bool(images) == (video is not None):
        given = "both" if images else "neither"
        raise DataError(f"A heatmap is of images or of one video, and {given} was given. Give --image or --video FILE.")
    if video is None and (frames is not None or animation is not None):
        option = "--animation" if animation is not None else "--frames"
        raise DataError(f"{option} is for a video. Give --video FILE, or leave it out.")
    if video is not None and methods is not None:
        raise DataError("--methods compares what is left of images. Leave it out beside --video.")


def _draw_video(
    pruned: nn.Module,
    dense: nn.Module,
    video: Path,
    frames: int | None,
    sites: list[str] | None,
    blocks: list[int] | None,
    shown: dict[str, Any],
    overlay: bool,
    scale: str,
    output: Path,
    animation: Path | None,
) -> None:
    from repshift.analysis.heatmap.strips import check_animation_path, moving_pictures, save_animation, strip_figure
    from repshift.analysis.heatmap.videos import video_input, video_strip
    from repshift.analysis.output.figures import save_figure

    if animation is not None:
        check_animation_path(animation)
    strip = video_strip(pruned, video, video_input(dense, frames), sites, blocks=blocks, **shown)
    save_figure(strip_figure(strip, overlay=overlay, scale=scale), output)
    note(f"figure: {output}")
    if animation is not None:
        save_animation(moving_pictures(strip, scale=scale), strip.times, animation)
        note(f"moving pictures: {animation}")


def _recipes(methods: str, chosen: Recipe | None) -> dict[str, Recipe]:
    """Say how each of the methods prunes by the schedule that was chosen."""
    from repshift.analysis.subjects.methods import BY_PRUNER, SHIFT, recipe_for
    from repshift.registry import suggest
    from repshift.scores import SCORES

    recipes = {}
    pruning = [SHIFT, *SCORES.names(), *BY_PRUNER]
    for name in map(str.strip, methods.split(",")):
        recipe = recipe_for(name, chosen) if name in pruning else None
        if recipe is None:
            raise UnknownNameError(f"--methods got {name!r}, which does not prune. {suggest(name, pruning)}")
        recipes[name] = recipe
    return recipes
