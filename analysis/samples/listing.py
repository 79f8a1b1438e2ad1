"""What lies in a folder or a tar file: every image once, and what is left out, by name.

Labels follow from folders, so a file that is overlooked, a stray folder or a link back to where it came from would
change the numbers without a word.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from repshift.errors import DataError, first_line

SUFFIXES = (".jpg", ".jpeg", ".png")  # those that timm reads as images; in upper case, too
OTHER_IMAGES = ("", ".avif", ".bmp", ".gif", ".heic", ".jfif", ".jp2", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
SYSTEM_FILES = ("Thumbs.db", "desktop.ini", "Icon\r")  # which systems put into folders by themselves


@dataclass(frozen=True)
class File:
    """An image's file.

    Attributes:
        parts: The names of its folders below the root, and its own.
        path: The file; of a member of a tar file, the tar file.
        start: Where the image begins in ``path``.
        size: How many bytes it has; ``None`` to the end.
    """

    parts: tuple[str, ...]
    path: str
    start: int = 0
    size: int | None = None

    @property
    def name(self) -> str:
        """Its place below the root."""
        return "/".join(self.parts)

    def open(self) -> IO[bytes]:
        """Open it for reading."""
        if self.size is None:
            return Path(self.path).open("rb")
        with Path(self.path).open("rb") as stream:
            stream.seek(self.start)
            return BytesIO(stream.read(self.size))


@dataclass(frozen=True)
class Listing:
    """All that was found below a root; names are places below it.

    Attributes:
        root: A folder or a tar file.
        suffixes: Endings of images, in lower case.
        folders: Directly below the root, those without a file, too; not the hidden ones.
        files: Images, in natural order: ``a2`` before ``a10``.
        hidden: Folders and files whose names begin with a dot.
        others: Files of other endings.
        irregular: What has an image's ending and is no regular file, such as a pipe or a link that leads nowhere.
        repeated: Links, each with the place that has the same file or folder already.
    """

    root: Path
    suffixes: tuple[str, ...]
    folders: list[str] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    irregular: list[str] = field(default_factory=list)
    repeated: list[tuple[str, str]] = field(default_factory=list)

    def add_other(self, parts: tuple[str, ...]) -> None:
        """Add a file of another ending; beside the folders of the classes, only what may be an image matters."""
        if len(parts) > 1 or Path(parts[0]).suffix.lower() in OTHER_IMAGES:
            self.others.append("/".join(parts))

    def notes(self) -> list[str]:
        """Say what was left out, a line for each kind."""
        told = [
            ("hidden", self.hidden),
            ("not regular files", self.irregular),
            (f"other endings than {', '.join(self.suffixes)}", self.others),
        ]
        lines = [f"left out {len(names)} in {self.root} ({kind}): {named(names)}." for kind, names in told if names]
        if self.repeated:
            twice = [f"{again} is {first}" for again, first in self.repeated]
            lines.append(f"read only once in {self.root}: {named(twice)}.")
        return lines

    def refuse_others(self) -> None:
        """Refuse to leave out files that may be images.

        Raises:
            DataError: If there are any; the message names them.
        """
        if self.irregular:
            raise DataError(
                f"{self.root} has {len(self.irregular)} that are no regular files: {named(self.irregular)}. Remove "
                "them, or leave them out: --skip-other-files."
            )
        if self.others:
            endings = sorted({Path(name).suffix.lower() or "(none)" for name in self.others})
            raise DataError(
                f"{self.root} has {len(self.others)} files that do not end in {', '.join(self.suffixes)}: "
                f"{named(self.others)}. If they are images, give --suffixes "
                f"{','.join([*self.suffixes, *(ending for ending in endings if ending != '(none)')])}; else leave them "
                "out: --skip-other-files."
            )


def parse_suffixes(text: str | None) -> tuple[str, ...]:
    """Read the endings of images, such as ``.jpg,.tif``; ``None`` stands for timm's.

    Raises:
        DataError: If it is no list of endings.
    """
    if text is None:
        return SUFFIXES
    parts = [part.strip().lower() for part in text.split(",") if part.strip()]
    suffixes = tuple(dict.fromkeys(part if part.startswith(".") else f".{part}" for part in parts))
    if not suffixes or not all(re.fullmatch(r"\.\w+", suffix) for suffix in suffixes):
        raise DataError(f"--suffixes got {text!r}, expected the endings of the images' files, as in .jpg,.png,.tif.")
    return suffixes


def list_files(root: Path, suffixes: Sequence[str] = SUFFIXES) -> Listing:
    """List what lies in a folder, at any depth, or in a tar file.

    Args:
        root: Links in it are followed, each folder and file once.
        suffixes: Endings of images, in lower case.

    Raises:
        DataError: If it cannot be read.
    """
    listing = Listing(root, tuple(suffixes))
    try:
        if root.is_dir():
            _Folder(listing).walk(root, os.path.realpath(root))
        else:
            _list_tar(listing)
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"{root} cannot be listed ({type(error).__name__}: {first_line(error)}). Copy it again."
        ) from error
    listing.folders.sort(key=natural)
    listing.files.sort(key=lambda file: [natural(part) for part in file.parts])
    return listing


def natural(name: str) -> Any:
    """Return a key that sorts numbers in names by their value, as timm does; equal but for their case, by the name."""
    pieces = re.split(r"(\d+)", name.lower())
    return [(int(piece), "") if number % 2 else (-1, piece) for number, piece in enumerate(pieces)], name


def named(names: Sequence[str], most: int = 5) -> str:
    """List some names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


class _Folder:
    """Walks through folders; links come last, so that what is real has its own place."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.places: dict[str, str] = {}  # of folders and files, by their real paths
        self.linked_folders: list[tuple[str, Path, tuple[str, ...]]] = []
        self.linked_files: list[tuple[str, File]] = []

    def walk(self, folder: Path, real: str) -> None:
        """Add everything below a folder."""
        self.places[real] = "."
        self._add(folder, (), real)
        while self.linked_folders:
            target, linked, parts = self.linked_folders.pop(0)
            if self._is_new(target, "/".join(parts)):
                self._add(linked, parts, target)
        for target, file in self.linked_files:
            if self._is_new(target, file.name):
                self.listing.files.append(file)

    def _add(self, folder: Path, parts: tuple[str, ...], real: str) -> None:
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: natural(entry.name))
        for entry in inside:
            place = (*parts, entry.name)
            name = "/".join(place)
            target = os.path.realpath(entry.path) if entry.is_symlink() else f"{real}{os.sep}{entry.name}"
            if entry.name.startswith(".") or entry.name in SYSTEM_FILES:
                self.listing.hidden.append(name)
            elif entry.is_dir():
                if not parts:
                    self.listing.folders.append(entry.name)
                if entry.is_symlink():
                    self.linked_folders.append((target, Path(entry.path), place))
                elif self._is_new(target, name):
                    self._add(Path(entry.path), place, target)
            else:
                self._add_file(entry, place, target)

    def _add_file(self, entry: os.DirEntry[str], parts: tuple[str, ...], target: str) -> None:
        name = "/".join(parts)
        if not name.lower().endswith(self.listing.suffixes):
            self.listing.add_other(parts)
        elif not entry.is_file():
            self.listing.irregular.append(name)
        elif entry.is_symlink():
            self.linked_files.append((target, File(parts, entry.path)))
        elif self._is_new(target, name) and self._is_first(entry, name):
            self.listing.files.append(File(parts, entry.path))

    def _is_first(self, entry: os.DirEntry[str], name: str) -> bool:
        """Say whether none of a file's other names was met before: hard links are several names of one file."""
        known = entry.stat()
        return known.st_nlink < 2 or self._is_new(f"{known.st_dev}:{known.st_ino}", name)

    def _is_new(self, target: str, name: str) -> bool:
        first = self.places.setdefault(target, name)
        if first != name:
            self.listing.repeated.append((name, first))
        return first == name


def _list_tar(listing: Listing) -> None:
    found: dict[str, File] = {}
    with tarfile.open(listing.root, "r:") as archive:
        _add_members(listing, archive, (), 0, found)
    above = _common_folders(list(found.values()))
    listing.files.extend(replace(file, parts=file.parts[above:]) for file in found.values())
    listing.folders.extend(dict.fromkeys(file.parts[0] for file in listing.files if len(file.parts) > 1))


def _common_folders(files: Sequence[File]) -> int:
    """Count the folders above those of the classes that all members lie in: a folder is often packed as a whole."""
    depths = {len(file.parts) for file in files}
    above = max(0, min(depths, default=0) - 2)
    return above if len(depths) == 1 and len({file.parts[:above] for file in files}) == 1 else 0


def _add_members(
    listing: Listing, archive: tarfile.TarFile, above: tuple[str, ...], start: int, found: dict[str, File]
) -> None:
    """Add the members of a tar file; a tar file inside stands for a folder, as ImageNet's training set is packed."""
    for member in archive:
        parts = (*above, *(part for part in member.name.split("/") if part not in ("", ".")))
        name = "/".join(parts)
        if member.isdir():
            continue
        if any(part.startswith(".") or part in SYSTEM_FILES for part in parts):
            listing.hidden.append(name)
        elif name.lower().endswith(".tar") and member.isreg() and not above:
            inside = archive.extractfile(member)
            with tarfile.open(fileobj=inside, mode="r:") as packed:
                folder = (*parts[:-1], parts[-1][: -len(".tar")])
                _add_members(listing, packed, folder, start + member.offset_data, found)
        elif not name.lower().endswith(listing.suffixes):
            listing.add_other(parts)
        elif not member.isreg() or member.issparse():
            listing.irregular.append(name)
        else:
            if name in found:
                listing.repeated.append((f"a second {name}", f"{name}, as unpacking leaves it"))
            found[name] = File(parts, str(listing.root), start + member.offset_data, member.size)
