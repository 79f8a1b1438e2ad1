"""Opening data, files by ourselves and named datasets by timm, and checking that they fit the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.data import ImageDataset, ImageNetInfo, create_dataset, infer_imagenet_subset
from torch import nn

from repshift.analysis.samples.class_maps import read_class_map
from repshift.analysis.samples.label_files import SYNSET, by_label_file
from repshift.analysis.samples.labelled_files import by_folder, unlabelled
from repshift.analysis.samples.listing import list_files, named, parse_suffixes
from repshift.errors import DataError, UnknownNameError, first_line

# What timm calls the two splits of a folder
SPLITS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"), ("test", "testing"))
INDEXED = ("torch", "hfds")  # timm's kinds of datasets whose samples are read by number
STREAMS = ("hfids", "wds")  # those that are read from the beginning
IMAGENETS = ("imagenet-1k", "imagenet-12k", "imagenet-22k")  # whose classes timm lists
FOLDERS = ("torch/image_folder", "torch/folder")  # other names for folders, read in the same strict way


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
    if dataset and not is_folder(dataset):
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


def is_folder(dataset: str) -> bool:
    """Say whether a dataset's name stands for folders of images: none does, and torchvision's name for them."""
    return not dataset or dataset.lower() in FOLDERS


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


def find_split(root: Path, split: str) -> Path:
    """Return the folder of a split below the data, under any of its names; the data themselves if there is none."""
    synonyms = next((names for names in SPLITS if split in names), ())
    return next((root / name for name in dict.fromkeys((split, *synonyms)) if (root / name).is_dir()), root)


def open_files(
    model: nn.Module,
    root: Path,
    *,
    class_map: str | Path | None = None,
    labels: str | Path | None = None,
    suffixes: str | None = None,
    skip_other_files: bool = False,
    labelled: bool = True,
) -> ImageDataset:
    """Open images in folders or in a tar file.

    Args:
        model: Whose classes they show.
        root: Holds the folders of the classes.
        class_map: A file of the names of all the model's classes; may be named by its place in ``root``.
        labels: A file of labels, see :mod:`repshift.analysis.samples.label_files`.
        suffixes: Endings of images between commas; by default timm's.
        skip_other_files: Leave out, and say, files of other endings and what is no regular file.
        labelled: Whether labels will be used; else images may lie anywhere.

    Raises:
        DataError: If anything there could make a label wrong.
    """
    listing = list_files(root, parse_suffixes(suffixes))
    numbers = None if class_map is None else _read_class_map(class_map, root)
    notes = [] if numbers is None else _check_count(numbers, getattr(model, "num_classes", 0), class_map)
    if labels is not None:
        synsets = _synsets_of(model)
        files = by_label_file(
            listing,
            Path(labels),
            getattr(model, "num_classes", 0),
            class_map=numbers,
            synsets=synsets,
            skip_other_files=skip_other_files,
        )
    elif labelled:
        files = by_folder(listing, numbers, skip_other_files=skip_other_files, source=str(class_map))
    else:
        files = unlabelled(listing, skip_other_files=skip_other_files)
    files.notes += notes
    return ImageDataset(str(root), reader=files)


def _check_count(numbers: Mapping[str, int], classes: int, class_map: str | Path | None) -> list[str]:
    """Compare the names of a class map with the classes of the model.

    Raises:
        DataError: If it has more.
    """
    if classes and len(numbers) > classes:
        raise DataError(
            f"--class-map {class_map} names {len(numbers)} classes, the model tells apart {classes}. Give the names of "
            "its own classes, in its order."
        )
    if len(numbers) < classes:
        return [f"the class map names {len(numbers)} of the model's {classes} classes, taken for its first ones."]
    return []


def _read_class_map(class_map: str | Path, root: Path | None) -> dict[str, int]:
    """Read a class map, which may be named by its place in the data, as in timm, or be an ImageNet that timm knows."""
    named_so = Path(class_map)
    if str(class_map) in IMAGENETS and not named_so.is_file():
        return {name: number for number, name in enumerate(ImageNetInfo(str(class_map)).label_names())}
    return read_class_map(named_so if root is None or named_so.is_file() else root / named_so)


def open_source(
    data: str | Path | None,
    dataset: str,
    split: str,
    class_map: str | Path | None,
    options: Mapping[str, Any],
) -> Any:
    """Open a named dataset of timm's, its pictures as they are stored.

    Raises:
        DataError: If it cannot be opened or is empty.
    """
    root = None if data is None else str(data)
    if dataset.lower().startswith("wds/") and (not root or root.startswith("pipe:")):
        # webdataset gives pipe:COMMAND to the shell, also as the name of a shard in a folder without a name
        raise DataError(f"--dataset {dataset!r} needs the folder of its shards, got {data!r}. Give it.")
    mapped: dict[str, Any] = {}  # torchvision's datasets have no maps of classes
    if class_map is not None:
        mapped["class_map"] = _read_class_map(class_map, None if data is None else Path(data))
    try:
        opened = create_dataset(dataset, root=root, split=split, input_img_mode="", **mapped, **options)
        empty = hasattr(opened, "__getitem__") and len(opened) == 0
    except Exception as error:  # timm's readers raise whatever their libraries raise
        raise DataError(
            f"timm cannot open {dataset} in {root}, split {split} ({type(error).__name__}: {first_line(error)}). Check "
            "the folder, --dataset, --split and --class-map."
        ) from error
    if empty:
        raise DataError(f"{dataset} has no samples in its split {split}. Give another --split.")
    return opened


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
    """Check folders named by WordNet's synsets: all are, and they are those of the model's ImageNet.

    Args:
        model: Any classifier; which ImageNet it was trained for follows from the number of its classes.
        names: Of all folders.
        source: What messages call the data.

    Raises:
        DataError: If some folders are no synsets, one of the model's is missing, or one is of another ImageNet.
    """
    strays = [name for name in names if not SYNSET.fullmatch(name)]
    if len(strays) == len(names):
        return
    if strays:
        raise DataError(
            f"{source} has folders of synsets and others: {named(strays)}. Each would be a class. Take them out."
        )
    expected = _synsets_of(model)
    if not expected:
        return
    subset = infer_imagenet_subset(model)
    if others := sorted(set(names) - set(expected)):
        raise DataError(
            f"{source} has classes that {subset} lacks, such as {others[0]}, {len(others)} of {len(names)}. Give the "
            "data that the model was trained for, or --class-map FILE."
        )
    missing = sorted(set(expected) - set(names))
    if missing and len(missing) < len(expected) / 2:
        raise DataError(
            f"{source} lacks {len(missing)} of the {len(expected)} classes of {subset}: {named(missing)}. Add them, "
            "empty if need be, or say which classes these are: --class-map FILE."
        )


def _synsets_of(model: nn.Module) -> list[str]:
    """List the synsets of the ImageNet that a model was trained for, by the numbers of its classes."""
    subset = infer_imagenet_subset(model)
    return list(ImageNetInfo(subset).label_names()) if subset else []


def check_classes(
    model: nn.Module,
    classes: int | None,
    source: str,
    mapped: bool,
    valid_labels: Sequence[int] | None,
    empty: Sequence[str] = (),
) -> None:
    """Check that the data have the model's classes; labels of data that do not know theirs are checked as they come.

    Args:
        model: Any classifier.
        classes: How many classes the data have, if that is known.
        source: What messages call the data.
        mapped: A map numbers the classes, which may be fewer than the model's.
        valid_labels: The model's classes that the data have.
        empty: Folders without images, which count as classes.

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
        without = f" ({len(empty)} without images: {named(empty)})" if empty else ""
        raise DataError(
            f"{source} has {classes} classes{without}, the model {told} {wanted}. Give the data that the model was "
            "trained for, or say which classes these are: --class-map FILE (names of all the model's classes, one a "
            "line; imagenet-1k for a part of ImageNet) or --valid-labels FILE (numbers of the classes that the data "
            "have)."
        )
