"""What the classes of a model are called."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from repshift.errors import DataError
from repshift.loading import ZOO


def class_names(model: nn.Module, name: str, file: Path | None = None) -> list[str]:
    """Name the classes that a model tells apart.

    Args:
        model: Its ``num_classes`` says how many there are; none without a classifier.
        name: The model's name; those of the zoo read digits.
        file: The names, one a line, in the order of the model's classes. By default ImageNet's as timm knows them, if
            the model has as many classes as one of its sets, else numbers.

    Raises:
        DataError: If the file cannot be read or has another number of lines than the model has classes.
    """
    count = int(getattr(model, "num_classes", 0) or 0)
    if file is not None:
        return _read_names(file, count)
    if name in ZOO:
        return [f"digit {index}" for index in range(count)]
    return _imagenet_names(model, count) or [f"class {index}" for index in range(count)]


def _read_names(file: Path, count: int) -> list[str]:
    try:
        names = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"The class names in {file} cannot be read ({error}). Give a text file in UTF-8.") from error
    if len(names) != count:
        raise DataError(
            f"{file} names {len(names)} classes, the model tells {count} apart. Give one name a line, in the order of "
            "its classes."
        )
    return names


def _imagenet_names(model: nn.Module, count: int) -> list[str]:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model) if count else None
    if subset is None:
        return []
    known = ImageNetInfo(subset)
    if known.num_classes() != count:
        return []
    # synonyms follow behind commas
    return [known.index_to_description(index).partition(",")[0] for index in range(count)]
