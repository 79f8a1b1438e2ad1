"""No command replaces what it reads, and none writes over what is no file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from repshift.errors import DataError
from repshift.files import place_of, reason

# The options that say where something is written
OUTPUTS = ("output", "animation", "results_file", "per_image", "per_query", "per_question", "page")
# What commands write into the folder of --output, by the command's name
FILES = {
    "ablate": ("ablation.csv", "ablation.json", "ablation.md", "ablation.png"),
    "demo": (
        *("tiny_*.png", "results.json", "results.md", "video.json", "video.md", "video.png", "video.gif"),
        *("captions.json", "questions.json", "answers.json", "vocab.txt", "videos/*.mp4"),
    ),
    "statistics": ("statistics.json", "distributions.png", "agreement.png", "foreground.png", "removal.png"),
    "finetune": ("model_best.*", "last.pth.tar", "checkpoint-*.pth.tar", "state-*/*", "repshift.json", "summary.json"),
    "train": ("{name}.safetensors", "{name}.md", "{name}.training.pt"),
}
OF_MODELS = ("repshift.json", "*.safetensors", "*.bin")  # what a folder of a model holds
# options whose folders hold pictures or videos
IMAGES = ("data", "data_dir", "files", "images", "masks", "train", "validation", "videos")
OF_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".gz", ".tar")
OF_DATA = (*OF_PICTURES, ".mp4", ".mkv", ".webm", ".avi", ".mov")


class CarefulCommand(TyperCommand):
    """A command that looks, before anything is computed, at where its results go."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            DataError: If a result would replace an input, or something that is no regular file.
        """
        check_outputs(self.name or "", ctx.params)
        return super().invoke(ctx)


def check_outputs(command: str, options: Mapping[str, Any]) -> None:
    """Check that what a command would write can be written without a loss.

    Args:
        command: Its name.
        options: Its options by their names.

    Raises:
        DataError: If an output is an input, through links too, or lies among the images of one; or if it is there and
            no regular file.
    """
    files, folders = _read_by(options)
    for output in _written_by(command, options):
        try:
            place = place_of(output)
        except OSError as error:
            raise DataError(
                f"Cannot write to {output} ({reason(error)}). Give the name of a file in a folder that can be "
                "written to."
            ) from error
        if not place.exists():
            continue
        read: Path | None = next((file for file in files if file.samefile(place)), None)
        if read is None and place.suffix.lower() in OF_DATA:
            read = next((folder for folder in folders if folder.resolve() in place.parents), None)
        if read is not None:
            raise DataError(
                f"{output} would be replaced, and this command reads {read}. Give another name to write to."
            )


def _written_by(command: str, options: Mapping[str, Any]) -> Iterator[Path]:
    """List the files that a command would write, and in a folder those that are there."""
    for given in (options.get(name) for name in OUTPUTS):
        if given is None:
            continue
        place = Path(given)
        if command in FILES:
            for pattern in FILES[command]:
                yield from sorted(place.glob(pattern.format(**options)))
            continue
        yield place
        if command == "curves":
            yield place.with_name(f"{place.stem}.points.csv")
        if command == "export":
            yield place.with_name(f"{place.name}.json")


def _read_by(options: Mapping[str, Any]) -> tuple[list[Path], list[Path]]:
    """List the files among the other options, those of a model's folder too, and the folders of pictures."""
    files, folders = [], []
    for name, value in options.items():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if name in OUTPUTS or not isinstance(part, (str, Path)) or not str(part):
                continue
            kind = _kind(Path(part))
            if kind == "file":
                files.append(Path(part))
            elif name in IMAGES and kind == "folder":
                folders.append(Path(part))
            elif name == "model" and (model := _folder_of(part)) is not None:
                files += [file for pattern in OF_MODELS for file in model.glob(pattern)]
    return files, folders


def _folder_of(model: str | Path) -> Path | None:
    from repshift.folders import folder_of  # and torch with it, which --help does without

    return folder_of(model)


def _kind(path: Path) -> str:
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else ""
    except OSError:  # a word may be too long for a name
        return ""
