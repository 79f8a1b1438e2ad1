"""``repshift heatmap``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repshift.analysis.terminal import console
from repshift.errors import UnknownNameError


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


def _parse_blocks(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UnknownNameError(f"--blocks got {text!r}, expected numbers counted from zero, as in 0,4,8.") from error
