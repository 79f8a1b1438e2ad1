"""``repshift report``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repshift.analysis.output import options
from repshift.analysis.output.terminal import note, note_random_weights, progress_bar
from repshift.errors import DataError

if TYPE_CHECKING:
    from repshift import Recipe
    from repshift.analysis.report.contents import Subject
    from repshift.analysis.report.examination import MeasuredShift
    from repshift.analysis.report.pictures import Pictures
    from repshift.analysis.subjects.models import ModelOptions

RESULTS = (".json", ".csv", ".md")  # endings of results files; anything else given is an image
PAGES = (".html", ".htm")


def report(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RESULTS.json]...", help="What eval, bench or ablate wrote; also further images."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="The model that looks at the images. [default: the only one of the results]"
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="An image file or a folder; several may follow each other. [default for the zoo: canvases]"),
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Of a folder, evenly spread; of canvases.")] = 16,
    pretrained: options.Pretrained = False,
    checkpoint: options.Checkpoint = None,
    use_ema: options.UseEma = None,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    input_size: options.InputSize = None,
    model_kwargs: options.ModelKwargs = None,
    attention: options.Attention = None,
    classes: Annotated[
        Path | None, typer.Option(help="Names of the classes, one a line. [default: ImageNet's, digits of the zoo]")
    ] = None,
    drop: Annotated[
        str | None,
        typer.Option(help="What goes after which block, as 0.2@0,3,6. [default: the only schedule of the results]"),
    ] = None,
    drop_r: options.DropR = None,
    recipe: options.RecipeFile = None,
    operation: options.Operation = None,
    distance: options.Distance = "l2",
    residual: options.Residual = False,
    score: options.Score = "shift",
    pruner: options.Pruner = None,
    keep: options.Keep = "top",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
) -> None:
    """Make a page that shows shift, kept tokens and predictions image by image, with tables and curves of results."""
    from repshift.analysis.output.files import output_file
    from repshift.analysis.report.contents import make_report, only_model, only_schedule, read_results_files
    from repshift.analysis.report.examination import MeasuredShift
    from repshift.analysis.report.writing import write_page
    from repshift.analysis.subjects.models import ModelOptions, model_options, own_recipe
    from repshift.analysis.subjects.recipes import chosen_recipe

    given = files or []
    _check_output(output)
    output_file(output)
    results = read_results_files(path for path in given if path.suffix.lower() in RESULTS)
    paths = [*(images or []), *(path for path in given if path.suffix.lower() not in RESULTS)]
    asked = any(option is not None for option in (drop, drop_r, recipe))
    subject, pictures = None, None
    if model is not None or paths:
        name = model or only_model(results)
        schedule = None if asked or own_recipe(name) is not None else only_schedule(results)
        for option, value in (("--model", None if model else name), ("--drop", schedule)):
            if value is not None:
                note(f"note: {option} {value}, as in the results")
        shown: dict[str, Any] = {"operation": operation, "distance": distance, "residual": residual}
        dropped_by: dict[str, Any] = {"score": score, "pruner": pruner, "keep": keep}
        schedule = schedule if drop is None else drop
        chosen = chosen_recipe(recipe, schedule, drop_r, model=name, shown=shown, **shown, **dropped_by)
        shift = MeasuredShift.of(chosen) if chosen else MeasuredShift(**shown)
        built = ModelOptions(
            pretrained, checkpoint, use_ema, img_size, input_size, model_options(num_classes, model_kwargs), attention
        )
        subject = _subject(name, chosen, shift, built, classes, device)
        pictures = _pictures(subject, paths, num_images, device)
    elif asked:
        raise DataError("--drop and --recipe prune a model, and there is none. Give --model NAME.")
    with progress_bar() as progress:
        task = progress.add_task("images", total=len(pictures.names) if pictures else 0)
        content = make_report(results, subject, pictures, lambda done: progress.update(task, completed=done))
    size = write_page(output, f"repshift: {content['heading']}", content)
    note(f"report: {output} ({size / 1e6:.1f} MB)")


def _weights(built: ModelOptions) -> str:
    """Say where a model's weights come from."""
    if built.checkpoint is not None:
        return Path(built.checkpoint).name
    return "published" if built.pretrained else "random: nothing was learned"


def _check_output(output: Path) -> None:
    """Refuse to write the page over another kind of file."""
    if output.suffix.lower() not in PAGES:
        raise DataError(f"The report is a page, and {output} is named as something else. Give --output NAME.html.")


def _subject(
    name: str, recipe: Recipe | None, shift: MeasuredShift, built: ModelOptions, classes: Path | None, device: str
) -> Subject:
    import torch

    from repshift.analysis.report.classes import class_names
    from repshift.analysis.report.contents import Subject
    from repshift.analysis.subjects.devices import choose_device
    from repshift.analysis.subjects.models import loaded_name
    from repshift.analysis.subjects.sizes import build_model
    from repshift.folders import folder_of

    place = choose_device(device)
    torch.manual_seed(0)  # random weights are the same ones each time
    model = build_model(name, built).to(place)
    note_random_weights(built.pretrained, built.checkpoint, name)
    told = _weights(built) if folder_of(name) is None else "those of the folder"
    return Subject(name, model, told, recipe, class_names(model, loaded_name(name), classes), shift)


def _pictures(subject: Subject, paths: Sequence[Path], most: int, device: str) -> Pictures:
    from repshift.analysis.report.pictures import load_pictures, shipped_pictures
    from repshift.analysis.subjects.models import loaded_name
    from repshift.loading import ZOO

    if paths:
        pictures = load_pictures(subject.model, paths, most)
    elif loaded_name(subject.name) in ZOO:
        pictures = shipped_pictures(subject.model, most)
    else:
        raise DataError(f"There are no images for {subject.name} to look at. Give --images with files or a folder.")
    return replace(pictures, inputs=pictures.inputs.to(device))
