"""``repshift report``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, cast

import typer

from repshift.analysis.output import options
from repshift.analysis.output.terminal import note, note_random_weights, progress_bar
from repshift.errors import DataError

if TYPE_CHECKING:
    from repshift.analysis.report.contents import Subject
    from repshift.analysis.report.pictures import Pictures
    from repshift.analysis.subjects.variants import Variant

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
    classes: Annotated[
        Path | None, typer.Option(help="Names of the classes, one a line. [default: ImageNet's, digits of the zoo]")
    ] = None,
    drop: Annotated[
        str | None,
        typer.Option(help="What goes after which block, as 0.2@0,3,6. [default: the only schedule of the results]"),
    ] = None,
    drop_r: options.DropR = None,
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
    from repshift.analysis.report.writing import write_page
    from repshift.analysis.subjects.variants import Variant, choose_drop

    given = files or []
    _check_output(output, [*given, *(images or []), *filter(None, (classes, checkpoint))])
    output_file(output)
    results = read_results_files(path for path in given if path.suffix.lower() in RESULTS)
    paths = [*(images or []), *(path for path in given if path.suffix.lower() not in RESULTS)]
    wanted = choose_drop(drop, drop_r)
    subject, pictures = None, None
    if model is not None or paths:
        name, schedule = model or only_model(results), wanted or only_schedule(results)
        for option, value, known in (("--model", name, model), ("--drop", schedule, wanted)):
            if value is not None and known is None:
                note(f"note: {option} {value}, as in the results")
        end = cast("Literal['top', 'bottom']", keep)  # checked where the model is pruned
        variant = Variant(schedule, score, operation, distance, residual, pruner, end)
        _check_choices(variant)
        subject = _subject(name, variant, Weights(pretrained, checkpoint, use_ema), classes, device)
        pictures = _pictures(subject, paths, num_images, device)
    elif wanted is not None:
        raise DataError("--drop prunes a model, and there is none. Give --model NAME.")
    with progress_bar() as progress:
        task = progress.add_task("images", total=len(pictures.names) if pictures else 0)
        content = make_report(results, subject, pictures, lambda done: progress.update(task, completed=done))
    size = write_page(output, f"repshift: {content['heading']}", content)
    note(f"report: {output} ({size / 1e6:.1f} MB)")


class Weights(NamedTuple):
    """Where a model's weights come from, by the options of the command."""

    pretrained: bool
    checkpoint: Path | None
    use_ema: bool | None

    def __str__(self) -> str:
        """Say it in words."""
        if self.checkpoint is not None:
            return self.checkpoint.name
        return "published" if self.pretrained else "random: nothing was learned"


def _check_output(output: Path, inputs: Sequence[Path]) -> None:
    """Refuse to write the page over what it is made of, or over another kind of file."""
    if output.suffix.lower() not in PAGES:
        raise DataError(f"The report is a page, and {output} is named as something else. Give --output NAME.html.")
    if any(path.exists() and output.exists() and path.samefile(output) for path in inputs):
        raise DataError(f"The report would replace {output}, which it is made of. Give another --output.")


def _check_choices(variant: Variant) -> None:
    """Refuse choices of what is dropped where nothing is; what the maps show may always be chosen."""
    if variant.drop is None and (variant.score, variant.pruner, variant.keep) != ("shift", None, "top"):
        raise DataError(
            "Nothing is dropped, so there is nothing to choose by --score, --pruner or --keep. Give --drop, or leave "
            "these out."
        )


def _subject(name: str, variant: Variant, weights: Weights, classes: Path | None, device: str) -> Subject:
    import torch

    from repshift import load_model
    from repshift.analysis.report.classes import class_names
    from repshift.analysis.report.contents import Subject
    from repshift.analysis.subjects.devices import choose_device

    place = choose_device(device)
    torch.manual_seed(0)  # random weights are the same ones each time
    model = load_model(name, pretrained=weights.pretrained, checkpoint=weights.checkpoint, use_ema=weights.use_ema)
    model = model.to(place)
    note_random_weights(weights.pretrained, weights.checkpoint)
    return Subject(name, model, str(weights), variant, class_names(model, name, classes))


def _pictures(subject: Subject, paths: Sequence[Path], most: int, device: str) -> Pictures:
    from repshift.analysis.report.pictures import load_pictures, shipped_pictures
    from repshift.loading import ZOO

    if paths:
        pictures = load_pictures(subject.model, paths, most)
    elif subject.name in ZOO:
        pictures = shipped_pictures(subject.model, most)
    else:
        raise DataError(f"There are no images for {subject.name} to look at. Give --images with files or a folder.")
    return replace(pictures, inputs=pictures.inputs.to(device))
