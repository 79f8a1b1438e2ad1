"""Samples are read as timm validates models, and every one of them once."""

import tarfile
from pathlib import Path

import pytest
import torch
from matplotlib.cbook import get_sample_data
from timm.data import create_dataset, create_loader, resolve_data_config

from repshift import load_model
from repshift.analysis.samples.batches import Share
from repshift.analysis.samples.canvases import evaluation_canvases
from repshift.analysis.samples.data import open_samples
from repshift.analysis.samples.images import normalised
from repshift.analysis.samples.preprocessing import evaluation_config
from repshift.analysis.samples.processes import usual_workers


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


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_a_photo_is_preprocessed_as_timm_validates_the_model(name, tmp_path, read_all):
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


def test_the_size_for_tests_is_taken_unless_that_for_training_is_asked_for(classifier):
    model = classifier(test_input_size=(3, 48, 48), test_crop_pct=1.0, crop_pct=0.8)
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


def test_a_tar_file_holds_the_same_samples(model, folder, tmp_path, read_all):
    with tarfile.open(tmp_path / "digits.tar", "w") as archive:
        archive.add(folder / "val", ".")
    unpacked, _ = read_all(open_samples(model, folder))
    packed, _ = read_all(open_samples(model, tmp_path / "digits.tar"), workers=2)
    assert packed.keys() == unpacked.keys()
    assert all(torch.equal(packed[index][0], unpacked[index][0]) for index in unpacked)
    assert [packed[index][1] for index in packed] == [unpacked[index][1] for index in packed]


def test_a_dataset_of_torchvision_is_read(model, folder, read_all):
    ours, _ = read_all(open_samples(model, folder, dataset="torch/image_folder"))
    theirs, _ = read_all(open_samples(model, folder))
    assert all(torch.equal(ours[index][0], theirs[index][0]) for index in range(23))


def test_a_dataset_of_hugging_face_is_read_by_number(model, folder, tmp_path, monkeypatch, read_all):
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
def test_the_loader_reads_every_sample_once_with_any_number_of_workers(model, folder, workers, read_all):
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


@pytest.mark.parametrize(
    ("beside_gpu", "processors", "processes", "expected"),
    [(False, 16, 1, 0), (True, 16, 1, 8), (True, 6, 1, 5), (True, 16, 4, 3), (True, 1, 1, 1)],
)
def test_readers_take_the_processors_that_a_gpu_leaves_idle(monkeypatch, beside_gpu, processors, processes, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(processors)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert usual_workers(beside_gpu) == expected
