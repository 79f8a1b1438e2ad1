"""Samples that cannot be read are named, and no others take their place."""

import errno
import tarfile

import pytest
import torch

from repshift import DataError
from repshift.analysis.samples.data import open_samples


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_and_no_other_takes_its_place(model, folder, workers, read_all, damage):
    whole, _ = read_all(open_samples(model, folder))
    broken = damage(sorted((folder / "val").rglob("*.png"))[7])
    images, failures = read_all(open_samples(model, folder), workers=workers)
    assert [failure.name for failure in failures] == [str(broken)]
    assert "truncated" in failures[0].reason
    assert images.keys() == whole.keys() - {failures[0].index}
    assert all(torch.equal(images[index][0], whole[index][0]) for index in images)


def test_a_file_that_is_no_image_is_named(model, folder, read_all):
    (folder / "val" / "3" / "note.png").write_text("no picture")
    (failure,) = read_all(open_samples(model, folder))[1]
    assert failure.name.endswith("note.png")
    with pytest.raises(DataError, match=r"note\.png.*Replace the file or take it out"):
        open_samples(model, folder)[failure.index]


def test_a_damaged_image_in_a_tar_file_is_named_by_both(model, folder, tmp_path, read_all, damage):
    damage(folder / "val" / "3" / sorted(path.name for path in (folder / "val" / "3").iterdir())[0])
    with tarfile.open(tmp_path / "digits.tar", "w") as archive:
        archive.add(folder / "val", ".")
    (failure,) = read_all(open_samples(model, tmp_path / "digits.tar"))[1]
    assert "digits.tar" in failure.name
    assert ".png" in failure.name


@pytest.mark.parametrize("error", [MemoryError("none left"), OSError(errno.EMFILE, "too many open files")])
def test_what_the_machine_lacks_is_no_damaged_image(model, folder, error):
    samples = open_samples(model, folder)

    def transform(picture):
        raise error

    samples.transform = transform
    with pytest.raises(DataError, match=r"Cannot read .*png .*it is not the image's fault"):
        samples.read(0)
