"""Data, classes and preprocessing that do not fit the model are refused."""

import shutil
from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from repshift import DataError, UnknownNameError, load_model
from repshift.analysis.samples.data import loader, open_samples
from repshift.analysis.samples.preprocessing import evaluation_config


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


def test_a_model_without_a_classifier_is_an_error(folder, classifier):
    with pytest.raises(DataError, match="no classifier"):
        open_samples(classifier(0), folder)


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
def test_preprocessing_out_of_range_is_an_error(override, message, classifier):
    with pytest.raises((DataError, UnknownNameError), match=message):
        evaluation_config(classifier(), **override)


@pytest.mark.parametrize(("batch_size", "workers"), [(0, 0), (1, -1)])
def test_a_loader_of_nothing_is_an_error(model, folder, batch_size, workers):
    with pytest.raises(DataError, match="--batch-size"):
        next(loader(open_samples(model, folder), batch_size, workers))
