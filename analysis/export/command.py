"""``repshift export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from repshift.analysis.output import options
from repshift.analysis.output.terminal import interrupted, note, note_random_weights


def export(
    model: options.Model,
    form: Annotated[
        str | None,
        typer.Option("--format", help="pt2 (torch.export), aoti (AOTInductor) or onnx. [default: the file's ending]"),
    ] = None,
    pretrained: options.Pretrained = False,
    checkpoint: options.Checkpoint = None,
    use_ema: options.UseEma = None,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    input_size: options.InputSize = None,
    model_kwargs: options.ModelKwargs = None,
    drop: options.Drop = None,
    drop_r: options.DropR = None,
    recipe: options.RecipeFile = None,
    operation: options.Operation = None,
    distance: options.Distance = "l2",
    residual: options.Residual = False,
    score: options.Score = "shift",
    pruner: options.Pruner = None,
    attention: options.Attention = None,
    batch: Annotated[
        str, typer.Option(help="Images at once: one number, as 8, or the fewest and the most, as 1:64; 1: for any.")
    ] = "1:",
    precision: Annotated[
        str, typer.Option(help="Of the weights and of the images: float32, bfloat16 or float16.")
    ] = "float32",
    device: options.Device = "cpu",
    output: Annotated[
        Path | None, typer.Option(help="The file; another one, .json, says what is in it. [default: model.pt2]")
    ] = None,
) -> None:
    """Write a model, dense or pruned, to a file that runs without repshift, and check it against the model."""
    from repshift.analysis.export.writing import Export, output_place, read_batches, write
    from repshift.analysis.subjects.devices import choose_device
    from repshift.analysis.subjects.models import ModelOptions, model_options
    from repshift.analysis.subjects.recipes import chosen_recipe

    place, name = output_place(output, form)
    batches, chosen_device = read_batches(batch), choose_device(device)
    scored: dict[str, Any] = {"operation": operation, "distance": distance, "residual": residual}
    scored |= {"score": score, "pruner": pruner}
    chosen = chosen_recipe(recipe, drop, drop_r, model=model, **scored)
    given = ModelOptions(
        pretrained, checkpoint, use_ema, img_size, input_size, model_options(num_classes, model_kwargs), attention
    )
    try:
        written = write(Export(model, given, chosen, name, batches, str(chosen_device), precision), place)
    except KeyboardInterrupt:
        raise interrupted("nothing was written") from None
    note_random_weights(pretrained, checkpoint, model)
    for remark in written.remarks:
        note(f"note: {remark}")
    note(f"{name}: {place}, and what is in it: {written.description}")
    tried = " and ".join(map(str, batches.samples))
    note(
        f"checked at batch {tried}: it differs from the model by {written.difference:.1e} of the largest answer at most"
    )
    if written.rounding is not None:
        note(f"images are {precision}; from the model in float32 it differs by {written.rounding:.1e} at most")
    for line in written.lines:
        note(line)
