import errno
import json
import logging
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from timm.data import ImageNetInfo, create_dataset, create_loader, resolve_data_config
from torch import nn

from repshift import DataError, UnknownNameError, load_model
from repshift.analysis.samples.batches import Share
from repshift.analysis.samples.canvases import evaluation_canvases
from repshift.analysis.samples.data import loader, open_samples
from repshift.analysis.samples.images import normalised
from repshift.analysis.samples.preprocessing import evaluation_config


@pytest.fixture
def model():
    """An embedded model of ten classes."""
    return load_model("tiny_resnet", pretrained=True)


@pytest.fixture
def folder(digit_folder):
    return digit_folder


class Classifier(nn.Module):
    """Stands for a model of so many classes and this data configuration."""

    def __init__(self, classes=1, **config):
        super().__init__()
        self.num_classes, self.pretrained_cfg = classes, {"input_size": (3, 32, 32), **config}


def read_all(samples, batch_size=4, workers=0, **share):
    """Return image and label by number, and the failures."""
    images, failures = {}, []
    for batch in loader(samples, batch_size, workers, share=Share(**share)):
        for index, image, label in zip(batch.indices, batch.images, batch.labels, strict=True):
            assert index not in images
            images[index] = image, label
        failures += batch.failures
    return images, failures


def seen_by_timm(model, folder, **options):
    """Return images and labels as timm's own validation sees them, in its order."""
    config = resolve_data_config(options, model=model, use_test_size=True)
    dataset = create_dataset("", root=str(folder), split="validation")
    batches = create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=5,
        use_prefetcher=False,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=0,
        persistent_workers=False,  # older versions of timm ask for it
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels).tolist()


# --- what is read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_a_photo_is_preprocessed_as_timm_validates_the_model(name, tmp_path):
    (tmp_path / "person").mkdir()
    photo = Path(get_sample_data("grace_hopper.jpg", asfileobj=False))
    (tmp_path / "person" / "grace_hopper.jpg").write_bytes(photo.read_bytes())
    model = load_model(name, num_classes=1)
    (expected,), _ = seen_by_timm(model, tmp_path)
    images, _ = read_all(open_samples(model, tmp_path))
    assert torch.equal(images[0][0], expected)
    assert expected.std() > 0.5


def test_overrides_are_those_of_timm(tmp_path, make_image):
    (tmp_path / "data" / "one").mkdir(parents=True)
    make_image("photo.jpg", 90, 70).rename(tmp_path / "data" / "one" / "photo.jpg")
    options = {"img_size": 40, "crop_pct": 0.6, "interpolation": "bilinear", "mean": (0.1, 0.2, 0.3), "std": (1, 2, 3)}
    model = load_model("resnet18", num_classes=1)
    (expected,), _ = seen_by_timm(model, tmp_path / "data", **options)
    samples = open_samples(model, tmp_path / "data", config=evaluation_config(model, **options))
    assert torch.equal(samples[0][1], expected)
    assert not torch.equal(
        expected, open_samples(model, tmp_path / "data", config=evaluation_config(model, img_size=40))[0][1]
    )


def test_the_size_for_tests_is_taken_unless_that_for_training_is_asked_for():
    model = Classifier(test_input_size=(3, 48, 48), test_crop_pct=1.0, crop_pct=0.8)
    tested, trained = evaluation_config(model), evaluation_config(model, use_train_size=True)
    assert (tested["input_size"], tested["crop_pct"]) == ((3, 48, 48), 1.0)
    assert (trained["input_size"], trained["crop_pct"]) == ((3, 32, 32), 0.8)


def test_a_model_of_one_channel_reads_grey_images(folder):
    model = load_model("tiny_resnet", in_chans=1)
    image = open_samples(model, folder)[0][1]
    assert image.shape == (1, 64, 64)


def test_the_embedded_canvases_are_read_with_their_labels(model):
    samples = open_samples(model, "cluttered-mnist")
    canvases = evaluation_canvases()
    assert len(samples) == 2_000
    index, image, label = samples[1_234]
    assert (index, label) == (1_234, int(canvases.labels[1_234]))
    torch.testing.assert_close(image, normalised(model, canvases.images[1_234:1_235])[0])


def test_the_split_is_found_below_the_folder(model, folder):
    assert open_samples(model, folder).files == open_samples(model, folder / "val").files


def test_a_tar_file_holds_the_same_samples(model, folder, tmp_path):
    with tarfile.open(tmp_path / "digits.tar", "w") as archive:
        archive.add(folder / "val", ".")
    unpacked, _ = read_all(open_samples(model, folder))
    packed, _ = read_all(open_samples(model, tmp_path / "digits.tar"), workers=2)
    assert packed.keys() == unpacked.keys()
    assert all(torch.equal(packed[index][0], unpacked[index][0]) for index in unpacked)
    assert [packed[index][1] for index in packed] == [unpacked[index][1] for index in packed]


def test_a_dataset_of_torchvision_is_read(model, folder):
    ours, _ = read_all(open_samples(model, folder, dataset="torch/image_folder"))
    theirs, _ = read_all(open_samples(model, folder))
    assert all(torch.equal(ours[index][0], theirs[index][0]) for index in range(23))


def test_a_dataset_of_hugging_face_is_read_by_number(model, folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    (tmp_path / "hub").mkdir()
    datasets.load_dataset("imagefolder", data_dir=str(folder / "val"), split="train").to_parquet(
        tmp_path / "hub" / "validation-00000-of-00001.parquet"
    )
    samples = open_samples(model, tmp_path / "cache", dataset=f"hfds/{tmp_path / 'hub'}")
    images, failures = read_all(samples)
    expected, _ = read_all(open_samples(model, folder))
    assert not failures
    assert sorted(float(image.sum()) for image, _ in images.values()) == pytest.approx(
        sorted(float(image.sum()) for image, _ in expected.values())
    )


# --- which samples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3, 30])
@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_the_shares_of_several_processes_hold_every_sample_once(processes, batch_size):
    batches = [batch for rank in range(processes) for batch in Share(rank, processes).batches(23, batch_size)]
    assert sorted(index for batch in batches for index in batch) == list(range(23))
    assert max(map(len, batches)) <= batch_size


def test_samples_that_were_done_are_left_out_and_the_other_batches_stay_the_same():
    whole = Share(1, 2).batches(40, 5)
    rest = Share(1, 2, frozenset(whole[1])).batches(40, 5)
    assert rest == [whole[0], *whole[2:]]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_reads_every_sample_once_with_any_number_of_workers(model, folder, workers):
    images, failures = read_all(open_samples(model, folder), 5, workers)
    expected, labels = seen_by_timm(model, folder)
    assert not failures
    assert [images[index][1] for index in range(23)] == labels
    assert all(torch.equal(images[index][0], expected[index]) for index in range(23))


def test_a_smaller_number_of_samples_is_spread_over_all_classes(model, folder):
    samples = open_samples(model, folder, num_samples=11)
    every = open_samples(model, folder)
    assert len(samples) == 11
    assert len(set(samples.files)) == 11
    assert set(samples.files) <= set(every.files)
    assert len({Path(file).parent for file in samples.files}) >= 6


# --- samples that cannot be read --------------------------------------------------------------------------------


def damage(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_and_no_other_takes_its_place(model, folder, workers):
    whole, _ = read_all(open_samples(model, folder))
    broken = damage(sorted((folder / "val").rglob("*.png"))[7])
    images, failures = read_all(open_samples(model, folder), workers=workers)
    assert [failure.name for failure in failures] == [str(broken)]
    assert "truncated" in failures[0].reason
    assert images.keys() == whole.keys() - {failures[0].index}
    assert all(torch.equal(images[index][0], whole[index][0]) for index in images)


def test_a_file_that_is_no_image_is_named(model, folder):
    (folder / "val" / "3" / "note.png").write_text("no picture")
    (failure,) = read_all(open_samples(model, folder))[1]
    assert failure.name.endswith("note.png")
    with pytest.raises(DataError, match=r"note\.png.*--on-error skip"):
        open_samples(model, folder)[failure.index]


def test_a_damaged_image_in_a_tar_file_is_named_by_both(model, folder, tmp_path):
    damage(folder / "val" / "3" / sorted(path.name for path in (folder / "val" / "3").iterdir())[0])
    with tarfile.open(tmp_path / "digits.tar", "w") as archive:
        archive.add(folder / "val", ".")
    (failure,) = read_all(open_samples(model, tmp_path / "digits.tar"))[1]
    assert "digits.tar" in failure.name
    assert ".png" in failure.name


# --- data that do not fit ---------------------------------------------------------------------------------------


def test_a_missing_folder_is_an_error(model, tmp_path):
    with pytest.raises(DataError, match="no data folder"):
        open_samples(model, tmp_path / "nowhere")


def test_an_empty_folder_is_an_error(model, tmp_path):
    with pytest.raises(DataError, match="0 images"):
        open_samples(model, tmp_path)


def test_a_missing_split_is_an_error_and_not_the_whole_folder(model, folder):
    with pytest.raises(DataError, match="no folder test"):
        open_samples(model, folder, split="test")


def test_a_folder_of_other_splits_is_not_evaluated_as_a_whole(model, folder):
    (folder / "val").rename(folder / "train")
    shutil.copytree(folder / "train", folder / "test")
    with pytest.raises(DataError, match=r"has no folder validation or val, but train, test\. .*--split train"):
        open_samples(model, folder)
    assert len(open_samples(model, folder, split="test")) == 23


def test_a_class_may_be_called_train(folder):
    (folder / "val" / "0").rename(folder / "val" / "train")
    assert len(open_samples(load_model("tiny_resnet"), folder / "val")) == 23


def test_folders_that_a_class_map_lacks_are_an_error_and_not_left_out(folder, tmp_path):
    missing = len(list((folder / "val" / "3").iterdir()))
    (tmp_path / "classes.txt").write_text("\n".join("012T456789"))
    with pytest.raises(DataError, match=rf"lacks the folders 3, which hold {missing} of 23 images"):
        open_samples(load_model("resnet18"), folder, class_map=tmp_path / "classes.txt")


def test_folders_of_another_imagenet_are_an_error(tmp_path, make_image):
    names = ImageNetInfo("imagenet-1k").label_names()
    for name in ["n00007846", *names[1:]]:  # "person", of ImageNet-21k
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "0.png").touch()
    with pytest.raises(DataError, match=r"has classes that imagenet-1k lacks, such as n00007846, 1 of 1000"):
        open_samples(load_model("resnet18"), tmp_path / "data")
    (tmp_path / "data" / "n00007846").rename(tmp_path / "data" / names[0])
    assert len(open_samples(load_model("resnet18"), tmp_path / "data")) == 1000


@pytest.mark.parametrize("error", [MemoryError("none left"), OSError(errno.EMFILE, "too many open files")])
def test_what_the_machine_lacks_is_no_damaged_image(model, folder, error):
    samples = open_samples(model, folder)

    def transform(picture):
        raise error

    samples.transform = transform
    with pytest.raises(DataError, match=r"Cannot read .*png .*it is not the image's fault"):
        samples.read(0)


def test_a_model_of_another_number_of_classes_is_an_error_that_names_both(folder):
    with pytest.raises(DataError, match="has 10 classes, the model tells apart 1000"):
        open_samples(load_model("resnet18"), folder)


def test_folders_of_some_classes_are_numbered_by_a_class_map(folder, tmp_path):
    model = load_model("resnet18")
    names = [f"other{number}" for number in range(500)] + [str(digit) for digit in range(10)]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    samples = open_samples(model, folder, class_map=tmp_path / "classes.txt")
    assert {samples[index][2] for index in range(23)} == set(range(500, 510))


def test_folders_of_some_classes_are_numbered_by_valid_labels(folder):
    valid = [900 - digit for digit in range(10)]
    samples = open_samples(load_model("resnet18"), folder, valid_labels=valid)
    assert all(samples[index][2] == 900 - int(Path(samples.file_name(index)).parent.name) for index in range(23))


@pytest.mark.parametrize("valid", [[0, 1, 2], [*range(9), 1000]])
def test_valid_labels_that_fit_neither_data_nor_model_are_an_error(folder, valid):
    with pytest.raises(DataError, match="--valid-labels"):
        open_samples(load_model("resnet18"), folder, valid_labels=valid)


def test_a_model_without_a_classifier_is_an_error(folder):
    with pytest.raises(DataError, match="no classifier"):
        open_samples(Classifier(0), folder)


@pytest.mark.parametrize("dataset", ["tfds/imagenet2012", "imagenet", "torch/", "wds/digits"])
def test_a_dataset_that_is_not_read_by_number_is_an_error(model, folder, dataset):
    with pytest.raises(UnknownNameError, match="--dataset"):
        open_samples(model, folder, dataset=dataset)


def test_a_dataset_that_does_not_exist_is_an_error(model, folder):
    with pytest.raises(DataError, match="torch/nothing"):
        open_samples(model, folder, dataset="torch/nothing")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"img_size": 0}, "--img-size"),
        ({"input_size": (1, 32, 32)}, "3 channel"),
        ({"crop_pct": 0.0}, "--crop-pct"),
        ({"crop_mode": "middle"}, "--crop-mode"),
        ({"interpolation": "magic"}, "--interpolation"),
        ({"mean": (0.1, 0.2)}, "--mean got 2"),
    ],
)
def test_preprocessing_out_of_range_is_an_error(override, message):
    with pytest.raises((DataError, UnknownNameError), match=message):
        evaluation_config(Classifier(), **override)


@pytest.mark.parametrize(("batch_size", "workers"), [(0, 0), (1, -1)])
def test_a_loader_of_nothing_is_an_error(model, folder, batch_size, workers):
    with pytest.raises(DataError, match="--batch-size"):
        next(loader(open_samples(model, folder), batch_size, workers))


# --- streams ----------------------------------------------------------------------------------------------------


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
def test_a_stream_is_read_once_by_any_number_of_processes(model, shards, processes, workers):
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


def test_a_damaged_image_of_a_stream_is_named_and_the_numbers_of_the_others_stay(model, shards):
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
def test_a_damaged_file_of_a_stream_is_an_error(model, shards, workers):
    root, _ = shards
    content = (root / "digits-1.tar").read_bytes()
    (root / "digits-1.tar").write_bytes(content[: len(content) // 2 + 100])
    with pytest.raises(DataError, match=r"damaged|ended after") as caught:
        read_all(open_shards(model, root), workers=workers)
    assert "Traceback" not in str(caught.value)


def test_a_stream_that_ends_early_is_an_error(model, shards):
    root, _ = shards
    info = json.loads((root / "info.json").read_text())
    info["splits"]["validation"]["num_samples"] = 24
    (root / "info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="ended after 23 of 24"):
        read_all(open_shards(model, root))


def test_of_a_stream_the_first_samples_are_taken(model, shards):
    images, _ = read_all(open_shards(model, shards[0], num_samples=5))
    assert images.keys() == set(range(5))


def test_a_stream_without_such_a_split_is_an_error(model, shards):
    with pytest.raises(DataError, match="wds/digits"):
        open_shards(model, shards[0], split="training")


def test_reading_a_stream_leaves_the_log_as_it_was(model, shards):
    logger = logging.getLogger("timm.data.readers.reader_wds")
    before = (list(logger.handlers), logger.propagate)
    read_all(open_shards(model, shards[0]))
    assert (list(logger.handlers), logger.propagate) == before


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stream_of_hugging_face_is_read_once(model, folder, tmp_path, monkeypatch, processes):
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
