"""Images in folders of classes, whatever classes a model tells apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data import ImageDataset

from repshift.analysis.samples.data import Samples
from repshift.analysis.samples.labelled_files import by_folder
from repshift.analysis.samples.listing import list_files, parse_suffixes
from repshift.errors import DataError


def open_class_folders(
    root: Path,
    config: Mapping[str, Any],
    classes: Mapping[str, int] | None = None,
    *,
    source: str = "",
    suffixes: str | None = None,
    skip_other_files: bool = False,
    num_samples: int | None = None,
) -> tuple[Samples, dict[str, int]]:
    """Open images that lie as ``root/class/file``.

    Args:
        root: A folder, or a tar file of these folders.
        config: How they are preprocessed.
        classes: The numbers of the classes by their folders; by default in the folders' order.
        source: Where these numbers are from, for messages.
        suffixes: Endings of images between commas; by default timm's.
        skip_other_files: Leave out files of other endings, and say so.
        num_samples: Take so many, evenly spread; by default all.

    Returns:
        The samples, and the numbers of the classes.

    Raises:
        DataError: If there are none, images lie anywhere else, or a folder has no number.
    """
    if not (root.is_dir() or (root.is_file() and root.suffix == ".tar")):
        raise DataError(f"There is no data folder {root}. Give a folder with one folder of images a class.")
    if num_samples is not None and num_samples < 1:
        raise DataError(f"{num_samples} samples are none. Give 1 or more (--num-samples, --train-samples).")
    listing = list_files(root, parse_suffixes(suffixes))
    numbers = {name: number for number, name in enumerate(listing.folders)} if classes is None else dict(classes)
    files = by_folder(listing, numbers, skip_other_files=skip_other_files, source=source)
    return Samples(ImageDataset(str(root), reader=files), str(root), config, num_samples), numbers


def check_two_folders(train: Path, validation: Path) -> None:
    """Check that nothing is measured on what was trained on.

    Raises:
        DataError: If both are one folder.
    """
    if train.exists() and validation.exists() and train.samefile(validation):
        raise DataError(
            f"TRAIN and VAL are one folder, {train}: a probe would be measured on what it was trained on. Give two."
        )
