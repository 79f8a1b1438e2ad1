"""Streams of samples, which every process reads whole."""

import json
import logging
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from repshift import DataError


@pytest.fixture
def shards(folder):
    """The canvases as a WebDataset of three tar files; returns its folder, and the images by name."""
    files = sorted((folder / "val").rglob("*.png"), key=lambda path: path.name)
    root = folder.parent / "shards"
    root.mkdir()
    for shard in range(3):
        with tarfile.open(root / f"digits-{shard}.tar", "w") as archive:
            for path in files[8 * shard : 8 * shard + 8]:
                archive.add(path, f"{path.stem}.png")
                (root / "label").write_text(path.parent.name)
                archive.add(root / "label", f"{path.stem}.cls")
    lengths = [8, 8, 7]
    names = [f"digits-{shard}.tar" for shard in range(3)]
    split = {"name": "validation", "num_samples": 23, "filenames": names, "shard_lengths": lengths}
    (root / "info.json").write_text(json.dumps({"splits": {"validation": split}}))
    return root, files


def open_shards(model, root, **options):
    pytest.importorskip("webdataset")
    from repshift.analysis.samples.streams import open_stream

    return open_stream(model, root, "wds/digits", options.pop("split", "validation"), **options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_stream_is_read_once_by_any_number_of_processes(model, shards, processes, workers, read_all):
    root, files = shards
    stream = open_shards(model, root)
    assert stream.count == 23
    seen = {}
    for rank in range(processes):
        images, failures = read_all(stream, 3, workers, rank=rank, processes=processes)
        assert not failures
        assert not seen.keys() & images.keys()
        seen |= images
    transform = stream.transform
    for index, path in enumerate(files):
        image, label = seen.pop(index)
        assert label == int(path.parent.name)
        assert torch.equal(image, transform(Image.open(path).convert("RGB")))
    assert not seen


def test_a_damaged_image_of_a_stream_is_named_and_the_numbers_of_the_others_stay(model, shards, read_all, damage):
    root, files = shards
    whole, _ = read_all(open_shards(model, root))
    damage(files[9])
    with tarfile.open(root / "digits-1.tar", "w") as archive:
        for path in files[8:16]:
            archive.add(path, f"{path.stem}.png")
            (root / "label").write_text(path.parent.name)
            archive.add(root / "label", f"{path.stem}.cls")
    images, failures = read_all(open_shards(model, root))
    assert [failure.index for failure in failures] == [9]
    assert "digits-1.tar" in failures[0].name
    assert files[9].stem in failures[0].name
    assert images.keys() == whole.keys() - {9}
    assert all(torch.equal(images[index][0], whole[index][0]) for index in images)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_of_a_stream_is_an_error(model, shards, workers, read_all):
    root, _ = shards
    content = (root / "digits-1.tar").read_bytes()
    (root / "digits-1.tar").write_bytes(content[: len(content) // 2 + 100])
    with pytest.raises(DataError, match=r"damaged|ended after") as caught:
        read_all(open_shards(model, root), workers=workers)
    assert "Traceback" not in str(caught.value)


def test_a_stream_that_ends_early_is_an_error(model, shards, read_all):
    root, _ = shards
    info = json.loads((root / "info.json").read_text())
    info["splits"]["validation"]["num_samples"] = 24
    (root / "info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="ended after 23 of 24"):
        read_all(open_shards(model, root))


def test_of_a_stream_the_first_samples_are_taken(model, shards, read_all):
    images, _ = read_all(open_shards(model, shards[0], num_samples=5))
    assert images.keys() == set(range(5))


def test_a_stream_without_such_a_split_is_an_error(model, shards):
    with pytest.raises(DataError, match="wds/digits"):
        open_shards(model, shards[0], split="training")


def test_reading_a_stream_leaves_the_log_as_it_was(model, shards, read_all):
    logger = logging.getLogger("timm.data.readers.reader_wds")
    before = (list(logger.handlers), logger.propagate)
    read_all(open_shards(model, shards[0]))
    assert (list(logger.handlers), logger.propagate) == before


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stream_of_hugging_face_is_read_once(model, folder, tmp_path, monkeypatch, processes, read_all):
    datasets = pytest.importorskip("datasets")
    from repshift.analysis.samples.streams import open_stream

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    (tmp_path / "hub").mkdir()
    rows = datasets.load_dataset("imagefolder", data_dir=str(folder / "val"), split="train")
    rows.to_parquet(tmp_path / "hub" / "validation-00000-of-00001.parquet")
    stream = open_stream(model, tmp_path / "cache", f"hfids/{tmp_path / 'hub'}", "validation", num_samples=len(rows))
    seen = {}
    for rank in range(processes):
        images, _ = read_all(stream, 4, rank=rank, processes=processes)
        assert not seen.keys() & images.keys()
        seen |= images
    assert [seen[index][1] for index in range(23)] == rows["label"]
    first = np.asarray(rows[0]["image"].convert("RGB"))
    assert torch.equal(seen[0][0], stream.transform(Image.fromarray(first)))
