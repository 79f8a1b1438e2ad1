"""The data of fine-tuning: folders, datasets and the embedded canvases; which of them are refused."""

import shutil

import pytest
import torch
from torchvision.datasets import FakeData

from repshift import DataError, load_model
from repshift.analysis.finetuning import loaders
from repshift.analysis.finetuning.loaders import load_data
from repshift.analysis.samples.canvases import ClutteredDigits, draw_canvases
from repshift.analysis.samples.images import normalised

TRAINING, BATCH = 40, 10  # of the pictures and the settings


@pytest.fixture
def few(monkeypatch, few_digits):
    """The embedded data in small: 40 digits to train, 20 canvases to evaluate."""
    canvases = draw_canvases(ClutteredDigits(few_digits, 7))
    canvases = type(canvases)(canvases.images[:20], canvases.labels[:20], canvases.boxes[:20])
    monkeypatch.setattr(loaders, "training_digits", lambda folder: few_digits)
    monkeypatch.setattr(loaders, "evaluation_canvases", lambda: canvases)
    return canvases


def test_a_failed_download_of_the_digits_says_how_to_go_on(make_settings, tmp_path, monkeypatch, run):
    class Fails:
        mirrors = ()

        def __init__(self, *args, **kwargs):
            raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST", Fails)
    with pytest.raises(DataError, match=r"no network.*--digits"):
        run(make_settings(data="cluttered-mnist", reprob=0.0), tmp_path)


def test_canvases_are_normalised_and_drawn_anew_in_every_epoch(make_settings, few, few_digits, tmp_path):
    model = load_model("tiny_resnet")
    settings = make_settings(data="cluttered-mnist", reprob=0.0, batch_size=TRAINING, seed=3)
    data = load_data(settings, model, tmp_path, workers=0)
    for epoch in (0, 1):
        data.draw(epoch)
        images, labels = next(iter(data.training))
        expected = draw_canvases(ClutteredDigits(few_digits, 3_000 + epoch))
        order = [
            next(index for index, canvas in enumerate(normalised(model, expected.images)) if torch.equal(canvas, image))
            for image in images
        ]
        assert sorted(order) == list(range(TRAINING))
        assert torch.equal(expected.labels[order], labels)
    seen = [torch.cat(part) for part in zip(*data.validation, strict=True)]
    assert torch.equal(seen[0], normalised(model, few.images))
    assert torch.equal(seen[1], few.labels)


@pytest.mark.usefixtures("few")
def test_a_run_shows_every_digit_once_an_epoch_on_a_canvas_of_its_own(make_settings, tmp_path, monkeypatch, run):
    shown = []

    class Recording(ClutteredDigits):
        def __getitem__(self, index):
            shown.append((index, self.seed))
            return super().__getitem__(index)

    monkeypatch.setattr(loaders, "ClutteredDigits", Recording)
    run(make_settings(data="cluttered-mnist", reprob=0.0, epochs=2, seed=3), tmp_path, digits=tmp_path)
    # but for the one that is looked at to see its shape
    assert sorted(shown[1:]) == [(index, 3_000 + epoch) for index in range(TRAINING) for epoch in (0, 1)]


@pytest.mark.usefixtures("few")
def test_the_embedded_data_can_be_resumed_too(make_settings, tmp_path, run, interrupt, new_process, assert_same_result):
    settings = make_settings(data="cluttered-mnist", reprob=0.0)
    run(settings, tmp_path / "whole", digits=tmp_path)
    new_process()
    interrupt(settings, tmp_path / "parts", "epoch 2 of", 2, digits=tmp_path)
    run(settings, tmp_path / "parts", digits=tmp_path)
    assert_same_result(tmp_path / "parts", tmp_path / "whole")


@pytest.fixture
def other_pictures(pictures, tmp_path):
    """A copy of the folder, to be changed."""
    return shutil.copytree(pictures, tmp_path / "pictures")


def test_classes_keep_their_numbers_where_validation_lacks_one(make_settings, other_pictures):
    shutil.rmtree(other_pictures / "val" / "3")
    data = load_data(make_settings(data=str(other_pictures)), load_model("tiny_resnet"), None, workers=0)
    labels = torch.cat([labels for _, labels in data.validation])
    assert set(labels.tolist()) == {int(path.name) for path in (other_pictures / "val").iterdir()}
    assert 9 in labels


@pytest.fixture
def fake(monkeypatch):
    """Let timm open a torchvision dataset of so many channels."""

    def make(channels):
        images = FakeData(size=20, image_size=(channels, 70, 80), num_classes=10)
        monkeypatch.setattr(loaders, "create_dataset", lambda *args, **options: images)

    return make


def test_a_dataset_of_torchvision_can_be_named_instead_of_a_folder(make_settings, fake, tmp_path, run):
    fake(3)
    outcome = run(make_settings(dataset="torch/cifar10", epochs=1, cooldown_epochs=0), tmp_path)
    assert outcome.finetuned in [right / 20 for right in range(21)]


def test_images_that_do_not_fit_the_model_are_refused(make_settings, fake, tmp_path, run):
    fake(1)
    with pytest.raises(DataError, match=r"torch/mnist cannot be made fit for tiny_resnet"):
        run(make_settings(dataset="torch/mnist"), tmp_path)


def test_a_model_of_one_channel_sees_grey_pictures(make_settings):
    data = load_data(make_settings(), load_model("tiny_resnet", in_chans=1), None, workers=0)
    assert next(iter(data.training))[0].shape == (BATCH, 1, 64, 64)


def test_data_of_other_classes_are_refused_until_the_classifier_fits(
    make_settings, other_pictures, tmp_path, run, new_process
):
    shutil.rmtree(other_pictures / "train" / "9")
    shutil.rmtree(other_pictures / "val" / "9")
    with pytest.raises(DataError, match=r"has 9 classes, tiny_resnet tells 10 apart.*--num-classes 9"):
        run(make_settings(data=str(other_pictures)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    new_process()
    settings = {"data": str(other_pictures), "num_classes": 9, "checkpoint": None, "epochs": 1, "cooldown_epochs": 0}
    outcome = run(make_settings(**settings), tmp_path / "out")
    alone = load_model("tiny_resnet", num_classes=9, checkpoint=outcome.weights)
    whole = load_model(str(tmp_path / "out"))
    assert whole.num_classes == 9
    assert torch.equal(whole.fc.weight, alone.fc.weight)


def remove(*names):
    return lambda root: [shutil.rmtree(root / name) for name in names]


def add_class(root):
    shutil.copytree(root / "val" / "3", root / "val" / "eleven")


def empty_training(root):
    for path in (root / "train").rglob("*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("train", "val"), r"no folder train or training"),
        (remove("train"), r"no folder train or training.*one folder of images a class"),
        (remove("val"), r"no folder validation or val or valid"),
        (empty_training, r"has 0 images that end in"),
        (add_class, r"has classes that .* lacks: eleven"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_written(
    make_settings, other_pictures, tmp_path, spoil, message, run
):
    spoil(other_pictures)
    with pytest.raises(DataError, match=message):
        run(make_settings(data=str(other_pictures)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_training_image_is_named_and_not_replaced(make_settings, other_pictures, tmp_path, run, workers):
    broken = sorted((other_pictures / "train").rglob("*.png"))[3]
    broken.write_text("no picture")
    with pytest.raises(DataError, match=rf"^Cannot read {broken} \(UnidentifiedImageError"):
        run(make_settings(data=str(other_pictures)), tmp_path / "out", workers=workers)


def test_files_of_other_endings_are_left_out_only_if_asked(make_settings, other_pictures, tmp_path, run):
    (other_pictures / "val" / "0" / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"0/notes\.txt"):
        run(make_settings(data=str(other_pictures)), tmp_path / "out")
    outcome = run(make_settings(data=str(other_pictures), skip_other_files=True), tmp_path / "out")
    assert any("notes.txt" in note for note in outcome.notes)
