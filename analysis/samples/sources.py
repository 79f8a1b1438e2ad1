"""Opening data by timm's readers, and checking that they fit the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, create_dataset, infer_imagenet_subset
from torch import nn

from repshift.analysis.samples.class_maps import read_class_map
from repshift.errors import DataError, UnknownNameError, first_line

# What timm calls the two splits of a folder
SPLITS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"), ("test", "testing"))
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
    if root.is_dir():
        _check_split(root, split)
    return ""


def _check_split(root: Path, split: str) -> None:
    """Refuse a folder without the split: timm would take the folder itself, and evaluate all splits at once."""
    synonyms: Sequence[str] = next((names for names in SPLITS if split in names), (split,))
    if any((root / name).is_dir() for name in synonyms):
        return
    if split not in SPLITS[1]:
        raise DataError(f"{root} has no folder {' or '.join(synonyms)}. Leave out --split if it is one split itself.")
    # a class may be called train, too, but its folder has no folders inside
    others = [name for names in SPLITS for name in names if any(path.is_dir() for path in (root / name).glob("*"))]
    if others:
        raise DataError(
            f"{root} has no folder {' or '.join(synonyms[:2])}, but {', '.join(others)}. Say which one to evaluate: "
            f"--split {others[0]}."
        )


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
    if dataset.lower().startswith("wds/") and (not root or root.startswith("pipe:")):
        # webdataset gives pipe:COMMAND to the shell, also as the name of a shard in a folder without a name
        raise DataError(f"--dataset {dataset!r} needs the folder of its shards, got {data!r}. Give it.")
    # torchvision's have no maps of classes
    mapped: dict[str, Any] = {} if class_map is None else {"class_map": read_class_map(_found(class_map, root))}
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
    if class_map is not None and not dataset:
        _check_map(opened, create_dataset("", root=root, split=split, **options), class_map)
    return opened


def _found(class_map: str | Path, root: str | None) -> Path:
    """Look for a file as timm does: where the path leads, else in the data's folder."""
    path = Path(class_map)
    inside = Path(root or "", class_map)
    return inside if not path.exists() and inside.exists() else path


def _check_map(mapped: Any, whole: Any, class_map: str | Path) -> None:
    """Refuse a map of classes that lacks some of the folders, whose images timm leaves out without a word."""
    if len(mapped) < len(whole):
        missing = sorted(set(whole.reader.class_to_idx) - set(mapped.reader.class_to_idx))
        raise DataError(
            f"{class_map} lacks the folders {', '.join(missing[:5])}{' ...' * (len(missing) > 5)}, which hold "
            f"{len(whole) - len(mapped)} of {len(whole)} images. Add them, or take them out of the data."
        )


def class_names(opened: Any) -> list[str]:
    """List the names of the classes by number, as far as a folder or tar file tells them."""
    numbered: Mapping[str, int] = getattr(getattr(opened, "reader", None), "class_to_idx", None) or {}
    return sorted(numbered, key=lambda name: numbered[name])


def class_count(opened: Any) -> int | None:
    """Say how many classes data have, if that is known."""
    reader = getattr(opened, "reader", None)
    known = (
        getattr(holder, name, None)
        for holder in (reader, opened)
        for name in ("class_to_idx", "class_name_to_idx", "classes")
    )
    return next((len(classes) for classes in known if classes), None)


def check_synsets(model: nn.Module, names: Sequence[str], source: str) -> None:
    """Check that folders named by WordNet's synsets are those of the ImageNet that a model of timm was trained for.

    Raises:
        DataError: If they are of another one.
    """
    if not names or not all(re.fullmatch(r"n\d{8}", name) for name in names):
        return
    if (subset := infer_imagenet_subset(model)) is None:
        return
    expected = ImageNetInfo(subset).label_names()
    if others := sorted(set(names) - set(expected)):
        raise DataError(
            f"{source} has classes that {subset} lacks, such as {others[0]}, {len(others)} of {len(names)}. Give the "
            "data that the model was trained for, or --class-map FILE."
        )


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
