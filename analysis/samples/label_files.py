"""Labels that stand in a file: ImageNet's validation set as it is downloaded, and whatever else is laid out flat.

Forms that are read: one label a line, in the order of the files; or a line a file with its name and its label, in a
table with commas or tabs or between spaces, such as Caffe's ``val.txt`` and Kaggle's ``LOC_val_solution.csv``. A label
is the number of a class, from zero, or the name of one.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from repshift.analysis.samples.labelled_files import LabelledFiles
from repshift.analysis.samples.listing import Listing, named, natural
from repshift.errors import DataError, first_line

SYNSET = re.compile(r"n\d{8}")
IMAGENET_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+", re.IGNORECASE)
LONGEST = 255  # letters of a label, as of a folder's name
META = "meta.mat"  # of ImageNet's development kit, beside its ground truth: which class has which number there
HEADINGS = (
    {"file", "filename", "file_name", "image", "imageid", "image_id", "path", "id", "name"},
    {"label", "class", "target", "predictionstring", "category", "y"},
)


@dataclass(frozen=True)
class Table:
    """What a file of labels says.

    Attributes:
        path: The file.
        labels: In its order.
        files: Which file each label is for; ``None`` if they stand in the order of the files.
    """

    path: Path
    labels: list[str]
    files: list[str] | None


def read_table(path: Path) -> Table:
    """Read a file of labels.

    Raises:
        DataError: If it is missing, is no text, or its lines are not of one form.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"--labels {path} is no regular file. Give a text file with one label a line.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = [line for line in text.splitlines() if line.strip()]
        rows = [_cells(line) for line in lines]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"--labels {path} cannot be read ({first_line(error)}). Give a text file with one label a line, or with a "
            "file's name and its label a line."
        ) from error
    if rows and len(rows[0]) > 1 and all(cell.lower() in HEADINGS[0] | HEADINGS[1] for cell in rows[0][:2]):
        rows = rows[1:]
    if not rows:
        raise DataError(f"--labels {path} holds no labels. Give one label a line.")
    widths = {len(row) for row in rows}
    if widths == {1}:
        return Table(path, [row[0] for row in rows], None)
    if widths != {2}:
        odd = next(number for number, row in enumerate(rows) if len(row) != 2)
        raise DataError(
            f"--labels {path} has {len(rows[odd])} entries in {lines[odd - len(rows)]!r}, expected a file's name and "
            "its label. Give two columns."
        )
    # Kaggle's table has the boxes of the objects behind the synset
    labels = [label.split()[0] if SYNSET.match(label) else label for _, label in rows]
    return Table(path, labels, [file for file, _ in rows])


def _cells(line: str) -> list[str]:
    for sign in (",", "\t"):
        if sign in line:
            return [cell.strip() for cell in next(csv.reader([line], delimiter=sign))]
    return line.strip().rsplit(maxsplit=1)


def by_label_file(
    listing: Listing,
    path: Path,
    classes: int,
    *,
    class_map: Mapping[str, int] | None = None,
    synsets: Sequence[str] = (),
    skip_other_files: bool = False,
) -> LabelledFiles:
    """Label images by a file of labels, wherever they lie.

    Args:
        listing: What was found.
        path: The file of labels.
        classes: How many the model tells apart.
        class_map: Numbers of the classes that labels name; by default those of the names' order.
        synsets: Of the model's classes, if they are ImageNet's, for labels that are synsets.
        skip_other_files: Leave out files of other endings and what is no regular file.

    Raises:
        DataError: If it cannot be read, has no label for an image, or a label that is none of the model's.
    """
    if not skip_other_files:
        listing.refuse_others()
    table = read_table(path)
    notes = listing.notes()
    numbers, numbered = _numbers(listing, table, classes, class_map, synsets)
    notes += numbered
    if table.files is None:
        labels = _in_order(listing, table, numbers)
        notes.append(f"the labels in {path} are taken in the order of the files; {_first(listing, labels)}.")
    else:
        labels, unused = _by_name(listing, table, numbers)
        notes += unused
    return LabelledFiles(listing.files, labels, notes=notes)


def _first(listing: Listing, labels: Sequence[int]) -> str:
    return f"{listing.files[0].name} is of class {labels[0]}, counted from 0" if labels else "there are none"


# --- which image a label is for -----------------------------------------------------------------------------------


def _in_order(listing: Listing, table: Table, numbers: Sequence[int]) -> list[int]:
    """Give out one label after the other; files that ImageNet has numbered take the label of their number."""
    found = [IMAGENET_FILE.fullmatch(file.parts[-1]) for file in listing.files]
    if found and all(found):
        places = [int(match[1]) - 1 for match in found if match]
        if outside := [listing.files[at].name for at, place in enumerate(places) if not 0 <= place < len(numbers)]:
            raise DataError(
                f"--labels {table.path} has {len(numbers)} labels, too few for {named(outside)}. Give the file of the "
                "whole set."
            )
        return [numbers[place] for place in places]
    if len(numbers) != len(listing.files):
        raise DataError(
            f"--labels {table.path} has {len(numbers)} labels, {listing.root} has {len(listing.files)} images. Give "
            "one label for each image, or a file's name with each label."
        )
    return list(numbers)


def _by_name(listing: Listing, table: Table, numbers: Sequence[int]) -> tuple[list[int], list[str]]:
    labels: dict[str, int] = {}
    for name, number in zip(table.files or (), numbers, strict=True):
        if labels.setdefault(name, number) != number:
            raise DataError(f"--labels {table.path} has two labels for {name}. Leave one.")
    names = [file.parts[-1] for file in listing.files]
    doubled = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    found, missing, used = [], [], set()
    for file in listing.files:
        last = file.parts[-1]
        keys = (file.name, file.path) if last in doubled else (file.name, file.path, last, Path(last).stem)
        key = next((key for key in keys if key in labels), None)
        if key is None:
            missing.append(file.name)
        else:
            used.add(key)
            found.append(labels[key])
    if missing:
        raise DataError(
            f"--labels {table.path} has no label for {len(missing)} of {len(listing.files)} images: {named(missing)}. "
            "Add them, or take these images out."
        )
    left = len(labels) - len(used)
    return found, [f"{left} of {len(labels)} labels in {table.path} are for files that are not here."] if left else []


# --- which class a label names ------------------------------------------------------------------------------------


def _numbers(
    listing: Listing, table: Table, classes: int, class_map: Mapping[str, int] | None, synsets: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Turn labels into numbers of classes, and say what was assumed."""
    decimal = [label.isascii() and label.isdecimal() for label in table.labels]
    if long := next((label for label in table.labels if len(label) > LONGEST), None):
        raise DataError(
            f"--labels {table.path} has the label {long[:20]}..., which is too long. Give one label a line."
        )
    if all(decimal):
        return _counted(listing, table, classes)
    if any(decimal):
        odd = table.labels[decimal.index(not decimal[0])]
        raise DataError(f"--labels {table.path} has numbers and names: {table.labels[0]!r}, {odd!r}. Give one kind.")
    known, told = class_map, set(table.labels)
    if known is None:
        are_synsets = bool(synsets) and all(map(SYNSET.fullmatch, told))
        names = list(synsets) if are_synsets else sorted(told, key=natural)
        known = {name: number for number, name in enumerate(names)}
        if len(known) != classes:
            raise DataError(
                f"--labels {table.path} names {len(known)} classes, the model tells apart {classes}. Give the names of "
                "all its classes: --class-map FILE."
            )
    if unknown := sorted(told - known.keys()):
        raise DataError(
            f"--labels {table.path} names {len(unknown)} classes that the model does not have: {named(unknown)}. Give "
            "the names of all its classes: --class-map FILE."
        )
    return [known[label] for label in table.labels], []


def _counted(listing: Listing, table: Table, classes: int) -> tuple[list[int], list[str]]:
    values = [int(label) for label in table.labels]
    lowest, highest = min(values), max(values)
    if table.files is None and classes == 1000 and lowest >= 1 and _is_imagenet(listing, table):
        return _by_imagenet_ids(table, values)
    if lowest == 1 and highest == classes:
        return [value - 1 for value in values], [f"the labels in {table.path} are 1 to {classes}; 1 is class 0."]
    if highest >= classes:
        raise DataError(
            f"--labels {table.path} has the label {highest}, the model's classes are 0 to {classes - 1}. Give the "
            "labels that the model was trained for."
        )
    return values, []


def _is_imagenet(listing: Listing, table: Table) -> bool:
    return table.path.name.startswith("ILSVRC2012") or all(
        IMAGENET_FILE.fullmatch(file.parts[-1]) for file in listing.files
    )


def _by_imagenet_ids(table: Table, ids: Sequence[int]) -> tuple[list[int], list[str]]:
    """Number classes as models do, by the order of their synsets: the development kit has an order of its own."""
    meta = table.path.with_name(META)
    if not meta.is_file():
        raise DataError(
            f"--labels {table.path} has ImageNet's own numbers, 1 to 1000, which are not in the order of the model's "
            f"classes. Put {META} of the same development kit beside it, or give labels by synset."
        )
    synsets = read_meta(meta)
    if unknown := sorted(set(ids) - synsets.keys()):
        raise DataError(f"{meta} has no class {unknown[0]}, which {table.path} has. Give both from one kit.")
    order = {synset: number for number, synset in enumerate(sorted(synsets.values()))}
    return [order[synsets[number]] for number in ids], [f"the labels in {table.path} are numbered by {meta}."]


def read_meta(path: Path) -> dict[int, str]:
    """Read ImageNet's development kit: the synset of each class by the number that it has there.

    Raises:
        DataError: If it cannot be read, or SciPy is missing.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"{path} is read by SciPy, which is not installed: pip install scipy.") from error
    try:
        rows = loadmat(str(path), squeeze_me=True)["synsets"]
        # number, synset, words, gloss, how many kinds it has below it, ...: classes have none
        return {int(row[0]): str(row[1]) for row in rows if int(row[4]) == 0}
    except Exception as error:  # SciPy raises whatever it stumbles over
        raise DataError(
            f"{path} is no {META} of ImageNet's development kit ({type(error).__name__}: {first_line(error)}). Copy it "
            "again."
        ) from error
