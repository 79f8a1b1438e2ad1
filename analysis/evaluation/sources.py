"""Opening data by timm's readers, and checking that they fit the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.data import create_dataset
from torch import nn

from repshift.errors import DataError, UnknownNameError, first_line

# What timm calls the two splits of a folder
SPLITS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"))
INDEXED = ("torch", "hfds")  # timm's kinds of datasets whose samples are read by number
STREAMS = ("hfids", "wds")  # those that are read from the beginning


def check_source(data: str | Path | None, dataset: str, split: str) -> str:
    """Say what kind of data these are, before a model is built for them.

    Returns:
        One of :data:`INDEXED` or :data:`STREAMS`, or ``""`` for folders and tar files.

    Raises:
        DataError: If the folder or file is missing, or has no such split.
        UnknownNameError: If there is no such kind, or its samples cannot be counted exactly.
    """
    kind, _, rest = dataset.partition("/")
    kind = kind.lower()
    if dataset:
        if kind not in (*INDEXED, *STREAMS) or not rest:
            raise UnknownNameError(
                f"--dataset {dataset!r} is none that is evaluated exactly. Give "
                f"{', '.join(f'{known}/NAME' for known in (*INDEXED, *STREAMS))}, or leave it out for folders and tar "
                "files."
            )
        return kind
    if data is None:
        raise DataError("No data were given. Give a folder with one folder of images a class, or --dataset.")
    root = Path(data)
    if not (root.is_dir() or (root.is_file() and root.suffix == ".tar")):
        raise DataError(
            f"There is no data folder {root}. Give a folder with one folder of images a class, a .tar file of these, "
            "or cluttered-mnist."
        )
    # timm takes the folder itself where it has no folder of this name, and would evaluate all splits at once
    synonyms: Sequence[str] = next((names for names in SPLITS if split in names), (split,))
    if split not in SPLITS[1] and root.is_dir() and not any((root / name).is_dir() for name in synonyms):
        raise DataError(f"{root} has no folder {' or '.join(synonyms)}. Leave out --split if it is one split itself.")
    return ""


def open_source(
    data: str | Path | None,
    dataset: str,
    split: str,
    mode: str,
    class_map: str | Path | None,
    options: Mapping[str, Any],
) -> Any:
    """Open timm's dataset.

    Raises:
        DataError: If it cannot be opened or is empty.
    """
    root = None if data is None else str(data)
    # torchvision's have no maps of classes
    mapped: dict[str, Any] = {} if class_map is None else {"class_map": str(class_map)}
    try:
        opened = create_dataset(dataset, root=root, split=split, input_img_mode=mode, **mapped, **options)
        empty = hasattr(opened, "__getitem__") and len(opened) == 0
    except Exception as error:  # timm's readers raise whatever their libraries raise
        raise DataError(
            f"timm cannot open {dataset or 'images'} in {root}, split {split} ({type(error).__name__}: "
            f"{first_line(error)}). Check the folder, --dataset, --split and --class-map."
        ) from error
    if empty:
        raise DataError(f"{dataset or root} has no samples in its split {split}. Give another --split.")
    return opened


def class_count(opened: Any) -> int | None:
    """Say how many classes data have, if that is known."""
    reader = getattr(opened, "reader", None)
    known = (
        getattr(holder, name, None)
        for holder in (reader, opened)
        for name in ("class_to_idx", "class_name_to_idx", "classes")
    )
    return next((len(classes) for classes in known if classes), None)


def check_classes(
    model: nn.Module, classes: int | None, source: str, mapped: bool, valid_labels: Sequence[int] | None
) -> None:
    """Check that the data have the model's classes; labels of data that do not know theirs are checked as they come.

    Args:
        model: Any classifier.
        classes: How many classes the data have, if that is known.
        source: What messages call the data.
        mapped: A map numbers the classes, which may be fewer than the model's.
        valid_labels: The model's classes that the data have.

    Raises:
        DataError: If they do not fit.
    """
    expected = getattr(model, "num_classes", None)
    if not isinstance(expected, int) or expected < 1:
        raise DataError(f"{type(model).__name__} has no classifier, so it has no accuracy. Give a model with classes.")
    if valid_labels is not None and not all(0 <= label < expected for label in valid_labels):
        raise DataError(f"--valid-labels names classes up to {max(valid_labels)}, the model has 0 to {expected - 1}.")
    wanted = expected if valid_labels is None else len(valid_labels)
    fits = classes is None or (classes <= wanted if mapped else classes == wanted)
    if not fits:
        told = "tells apart" if valid_labels is None else "is asked by --valid-labels to tell apart"
        raise DataError(
            f"{source} has {classes} classes, the model {told} {wanted}. Give the data that the model was trained "
            "for, or say which classes these are: --class-map FILE (names of all the model's classes, one a line) or "
            "--valid-labels FILE (numbers of the classes that the data have)."
        )
