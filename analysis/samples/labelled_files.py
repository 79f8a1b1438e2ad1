"""Images with the numbers of their classes, from folders named by class or from a file of labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import IO

from timm.data.readers.reader import Reader

from repshift.analysis.samples.listing import File, Listing, named
from repshift.errors import DataError


class LabelledFiles(Reader):
    """Files and labels, with the interface of timm's readers: item ``i`` is an open file and a label.

    Args:
        files: Of the images.
        labels: One for each file; -1 for none.
        class_to_idx: The numbers of the classes, by name; empty if the labels are numbers.
        notes: What a user should be told of how the labels came about, a line each.
    """

    def __init__(
        self,
        files: Sequence[File],
        labels: Sequence[int],
        class_to_idx: Mapping[str, int] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.files, self.labels = list(files), list(labels)
        self.class_to_idx = dict(class_to_idx or {})
        self.notes = list(notes)

    @property
    def empty(self) -> list[str]:
        """Names of the classes without images."""
        filled = set(self.labels)
        return [name for name, number in self.class_to_idx.items() if number not in filled]

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        return self.files[index].open(), self.labels[index]

    def __len__(self) -> int:
        return len(self.files)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        file = self.files[index]
        if basename:
            return file.parts[-1]
        return file.path if absolute and file.size is None else file.name


def by_folder(
    listing: Listing,
    class_map: Mapping[str, int] | None = None,
    *,
    skip_other_files: bool = False,
    source: str = "the class map",
) -> LabelledFiles:
    """Label images by the folders that they lie in, ``class/file``, and by nothing else.

    Classes are numbered in the natural order of their folders, as timm does. A folder without images is a class, too.

    Args:
        listing: What was found.
        class_map: Numbers of the classes; by default those of the order.
        skip_other_files: Leave out files of other endings and what is no regular file.
        source: What messages call the class map.

    Raises:
        DataError: If an image lies in no class folder or deeper than one, in two classes at once, or in a folder that
            the class map lacks; if there are files of other endings; if there are no images.
    """
    if not skip_other_files:
        listing.refuse_others()
    _refuse_other_depths(listing)
    _refuse_doubled_classes(listing)
    names = listing.folders
    if not listing.files:
        raise DataError(
            f"{listing.root} has 0 images that end in {', '.join(listing.suffixes)}. Give a folder with one folder of "
            "images a class; --suffixes names other endings."
        )
    notes = listing.notes()
    if class_map is None:
        notes += _order_notes(names)
        class_map = {name: number for number, name in enumerate(names)}
    elif missing := [name for name in names if name not in class_map]:
        lost = sum(file.parts[0] in missing for file in listing.files)
        raise DataError(
            f"{source} lacks the folders {named(missing)}, which hold {lost} of {len(listing.files)} images. Add them, "
            "or take them out of the data."
        )
    labels = [class_map[file.parts[0]] for file in listing.files]
    labelled = LabelledFiles(listing.files, labels, {name: class_map[name] for name in names}, notes)
    if empty := labelled.empty:
        labelled.notes.append(f"{len(empty)} of {len(names)} class folders have no images: {named(empty)}.")
    return labelled


def unlabelled(listing: Listing, *, skip_other_files: bool = False) -> LabelledFiles:
    """Take images at any depth, without labels.

    Raises:
        DataError: If there are files of other endings, or no images.
    """
    if not skip_other_files:
        listing.refuse_others()
    if not listing.files:
        raise DataError(
            f"{listing.root} has 0 images that end in {', '.join(listing.suffixes)}. --suffixes names other endings."
        )
    return LabelledFiles(listing.files, [-1] * len(listing.files), notes=listing.notes())


def _refuse_other_depths(listing: Listing) -> None:
    loose = [file.name for file in listing.files if len(file.parts) == 1]
    if loose:
        raise DataError(
            f"{len(loose)} images in {listing.root} lie in no class folder: {named(loose)}. Put them into folders of "
            "their classes, or say their labels: --labels FILE."
        )
    if deep := [file.name for file in listing.files if len(file.parts) > 2]:
        raise DataError(
            f"{len(deep)} images in {listing.root} lie deeper than class/file: {named(deep)}. Move them up, or give "
            "the folder that holds the folders of the classes."
        )


def _refuse_doubled_classes(listing: Listing) -> None:
    """Refuse a folder or file that stands in two classes; one that stands twice in its class is read once."""
    doubled = [
        f"{again} is {first}"
        for again, first in listing.repeated
        if again.split("/")[0] != first.split("/")[0] and first != "."
    ]
    if doubled:
        raise DataError(
            f"The same files stand in two classes of {listing.root}, by links: {named(doubled)}. Remove one of them."
        )


def _order_notes(names: Sequence[str]) -> list[str]:
    """Say in which order classes were numbered, where others may have taken another one.

    Raises:
        DataError: If folders are numbers with gaps, or the same number stands there twice.
    """
    if not all(name.isascii() and name.isdecimal() for name in names):
        plain = sorted(names)
        if plain == list(names):
            return []
        first = next(number for number, (ours, theirs) in enumerate(zip(names, plain, strict=True)) if ours != theirs)
        return [
            f"classes are numbered in natural order, as timm does: class {first} is {names[first]}. torchvision's "
            f"ImageFolder has {plain[first]} there; for that order give --class-map FILE."
        ]
    values = [int(name) for name in names]
    if len(set(values)) < len(values):
        twice = [name for name in names if values.count(int(name)) > 1]
        raise DataError(f"The class folders {named(twice)} are the same number. Rename one of them.")
    if gaps := sorted(set(range(values[0], values[-1] + 1)) - set(values)):
        raise DataError(
            f"The class folders are numbers from {names[0]} to {names[-1]}, but {named(list(map(str, gaps)))} "
            "is missing. Add an empty folder, or give --class-map FILE."
        )
    return [
        f"the class folders are numbers, taken by their value: {names[0]} is class 0, {names[-1]} is class "
        f"{len(names) - 1}. For another order give --class-map FILE."
    ]
