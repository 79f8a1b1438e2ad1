"""Every image of a folder or tar file is found once, and what is left out is named."""

import os
import tarfile

import pytest

from repshift import DataError
from repshift.analysis.samples.listing import list_files, natural, parse_suffixes


@pytest.fixture
def tree(tmp_path):
    """Two folders with three images each, whose contents are their names."""
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in (1, 2, 10):
            (tmp_path / "data" / name / f"{number}.jpg").write_text(f"{name}/{number}.jpg")
    return tmp_path / "data"


IMAGES = ["cat/1.jpg", "cat/2.jpg", "cat/10.jpg", "dog/1.jpg", "dog/2.jpg", "dog/10.jpg"]


def names(listing):
    return [file.name for file in listing.files]


def contents(listing):
    read = []
    for file in listing.files:
        with file.open() as stream:
            read.append(stream.read().decode())
    return read


def test_images_are_found_in_natural_order(tree):
    listing = list_files(tree)
    assert names(listing) == contents(listing) == IMAGES
    assert listing.folders == ["cat", "dog"]
    assert not listing.notes()


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".Jpeg", ".PNG"])
def test_endings_count_in_upper_case_too(tree, suffix):
    (tree / "cat" / f"loud{suffix}").touch()
    assert f"cat/loud{suffix}" in names(list_files(tree))


@pytest.mark.parametrize("name", ["photo.tif", "photo", "photo.jpg.part", "notes.txt", "PHOTO.TIFF"])
def test_files_of_other_endings_are_named_and_refused(tree, name):
    (tree / "dog" / name).touch()
    listing = list_files(tree)
    assert names(listing) == IMAGES
    with pytest.raises(DataError, match=rf"has 1 files that do not end in .*: dog/{name}\..*--skip-other-files"):
        listing.refuse_others()
    assert f"dog/{name}" in listing.notes()[0]


@pytest.mark.parametrize(("name", "refused"), [("classes.txt", 0), ("README.md", 0), ("stray.tif", 1), ("stray", 1)])
def test_beside_the_folders_only_what_may_be_an_image_matters(tree, name, refused):
    (tree / name).touch()
    assert len(list_files(tree).others) == refused


def test_other_endings_are_a_choice(tree):
    (tree / "dog" / "photo.TIF").touch()
    listing = list_files(tree, parse_suffixes("jpg, .tif"))
    assert names(listing) == [*IMAGES, "dog/photo.TIF"]
    listing.refuse_others()


@pytest.mark.parametrize("text", ["", ",", ".j/pg", "*"])
def test_what_is_no_list_of_endings_is_refused(text):
    with pytest.raises(DataError, match="--suffixes"):
        parse_suffixes(text)


@pytest.mark.parametrize("place", [".ipynb_checkpoints/x.JPEG", "cat/.hidden.jpg", "cat/.cache/1.jpg", "cat/Thumbs.db"])
def test_what_is_hidden_is_left_out_and_said(tree, place):
    (tree / place).parent.mkdir(exist_ok=True)
    (tree / place).touch()
    listing = list_files(tree)
    assert names(listing) == IMAGES
    assert listing.folders == ["cat", "dog"]
    assert listing.notes()[0].startswith(f"left out 1 in {tree} (hidden)")


@pytest.mark.parametrize("target", ["..", ".", "../dog"])
def test_links_back_and_across_give_no_image_twice(tree, target):
    (tree / "cat" / "loop").symlink_to(target)
    listing = list_files(tree)
    assert names(listing) == IMAGES
    assert "cat/loop is" in listing.notes()[0]


def test_a_real_folder_keeps_its_own_name_whatever_links_lead_to_it(tree):
    (tree / "aardvark").symlink_to("dog")
    (tree / "cat" / "0.jpg").symlink_to("10.jpg")
    listing = list_files(tree)
    assert names(listing) == IMAGES
    assert listing.repeated == [("aardvark", "dog"), ("cat/0.jpg", "cat/10.jpg")]


def test_hard_links_are_several_names_of_one_file(tree):
    (tree / "cat" / "again.jpg").hardlink_to(tree / "cat" / "10.jpg")
    listing = list_files(tree)
    assert len(listing.files) == 6
    assert listing.repeated == [("cat/again.jpg", "cat/10.jpg")]


def test_a_folder_of_links_holds_what_they_lead_to(tree, tmp_path):
    (tmp_path / "chosen" / "cat").mkdir(parents=True)
    (tmp_path / "chosen" / "dog").symlink_to(tree / "dog")
    (tmp_path / "chosen" / "cat" / "first.jpg").symlink_to(tree / "cat" / "1.jpg")
    listing = list_files(tmp_path / "chosen")
    (tmp_path / "chosen" / "bee").symlink_to(tree / "cat")
    assert list_files(tmp_path / "chosen").folders == ["bee", "cat", "dog"]
    assert names(listing) == ["cat/first.jpg", *IMAGES[3:]]
    assert contents(listing) == [IMAGES[0], *IMAGES[3:]]


def test_what_is_no_regular_file_is_never_opened(tree):
    os.mkfifo(tree / "cat" / "pipe.jpg")
    (tree / "dog" / "broken.jpg").symlink_to("nowhere.jpg")
    listing = list_files(tree)
    assert names(listing) == IMAGES
    with pytest.raises(DataError, match=r"has 2 that are no regular files: cat/pipe\.jpg, dog/broken\.jpg"):
        listing.refuse_others()


def test_a_tar_file_is_listed_like_its_folder(tree, tmp_path):
    (tree / ".hidden").mkdir()
    (tree / ".hidden" / "x.jpg").touch()
    (tree / "cat" / "again.jpg").symlink_to("1.jpg")
    (tree / "cat" / "notes.txt").touch()
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(tree, ".")
    listing = list_files(tmp_path / "data.tar")
    assert names(listing) == contents(listing) == IMAGES
    with tarfile.open(tmp_path / "below.tar", "w") as archive:
        archive.add(tree, "photos/val")
    assert names(list_files(tmp_path / "below.tar")) == IMAGES
    assert sorted(listing.folders) == ["cat", "dog"]
    assert (listing.hidden, listing.irregular) == ([".hidden/x.jpg"], ["cat/again.jpg"])
    assert listing.others == ["cat/notes.txt"]


def test_tar_files_in_a_tar_file_are_folders(tree, tmp_path):
    for name in ("cat", "dog"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for file in sorted((tree / name).iterdir()):
                archive.add(file, file.name)
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        for name in ("cat", "dog"):
            archive.add(tmp_path / f"{name}.tar", f"{name}.tar")
    listing = list_files(tmp_path / "data.tar")
    assert names(listing) == contents(listing) == IMAGES


def test_of_two_members_of_one_name_the_last_counts_as_when_unpacked(tree, tmp_path):
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(tree / "cat" / "1.jpg", "cat/1.jpg")
        archive.add(tree / "dog" / "2.jpg", "cat/1.jpg")
    listing = list_files(tmp_path / "data.tar")
    assert contents(listing) == ["dog/2.jpg"]
    assert "cat/1.jpg" in listing.notes()[0]


@pytest.mark.parametrize("content", [b"", b"no tar file", b"\x1f\x8b" + bytes(600)])
def test_a_damaged_tar_file_is_named(tmp_path, content):
    (tmp_path / "data.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"data\.tar cannot be listed"):
        list_files(tmp_path / "data.tar")


def test_numbers_in_names_sort_by_value_and_equal_names_always_alike():
    assert sorted(["b10", "b9", "B9", "b09", "b²", "b"], key=natural) == ["b", "B9", "b09", "b9", "b10", "b²"]
