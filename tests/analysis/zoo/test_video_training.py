import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from repshift import CheckpointError, DataError, load_model
from repshift.analysis.samples.moving_digits import DigitPool
from repshift.analysis.zoo import video_cards, video_training
from repshift.analysis.zoo.video_cards import MEASURES, accuracies
from repshift.analysis.zoo.video_scores import evaluation_videos
from repshift.analysis.zoo.video_training import VideoSettings, VideoTrainer, answering_start, train_video_model

RECIPE = VideoSettings(phrase_epochs=1, pair_epochs=1, digits=16, batch=4, warmup_steps=2)  # 4 steps, and then 2
NAMES = ("tiny_umt", "tiny_umt_qa")


@pytest.fixture(scope="module")
def pool(shipped_digits):
    return DigitPool(shipped_digits)


@pytest.fixture(scope="module")
def whole(pool, tmp_path_factory):
    """The folder of a whole run, and what its observer saw."""
    folder = tmp_path_factory.mktemp("whole")
    seen = []
    VideoTrainer("tiny_umt", pool, folder, RECIPE).train(lambda *progress: seen.append(progress))
    return folder, seen


@pytest.fixture(scope="module")
def left_behind(pool, stop, tmp_path_factory):
    """What a run that stopped in its second epoch leaves."""
    folder = tmp_path_factory.mktemp("stopped")

    def observe(done, steps, loss):
        if done == 5:
            raise stop

    with pytest.raises(stop):
        VideoTrainer("tiny_umt", pool, folder, RECIPE).train(observe)
    return folder


@pytest.fixture
def stopped(left_behind, tmp_path):
    return shutil.copytree(left_behind, tmp_path / "stopped")


def test_videos_of_one_digit_come_first(whole):
    folder, seen = whole
    assert [(done, steps) for done, steps, _ in seen] == [(step, 6) for step in range(1, 7)]
    assert [path.name for path in folder.iterdir()] == ["tiny_umt.safetensors"]


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(pool, whole, stopped):
    assert [path.name for path in stopped.iterdir()] == ["tiny_umt.training.pt"]
    torch.manual_seed(999)  # whatever the process did before
    seen = []
    VideoTrainer("tiny_umt", pool, stopped, RECIPE).train(lambda done, steps, loss: seen.append(done))
    assert seen == [5, 6]
    expected, resumed = (load_file(folder / "tiny_umt.safetensors") for folder in (whole[0], stopped))
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)


@pytest.mark.parametrize("change", [{"seed": 1}, {"pair_epochs": 3}, {"foils": 1}])
def test_a_state_of_another_recipe_is_refused(pool, stopped, change):
    with pytest.raises(CheckpointError, match=rf"other {next(iter(change))}\. Delete .* or give another output"):
        VideoTrainer("tiny_umt", pool, stopped, VideoSettings(**{**asdict(RECIPE), **change})).train()


@pytest.mark.parametrize("epochs", [0, -3])
def test_a_recipe_needs_an_epoch(epochs):
    with pytest.raises(DataError, match="at least 1"):
        VideoSettings(phrase_epochs=0, pair_epochs=epochs)


# --- answering --------------------------------------------------------------------------------------------------


def test_answering_starts_from_what_retrieval_learned():
    torch.manual_seed(0)
    retrieval, answering = load_model("tiny_umt"), load_model("tiny_umt_qa")
    missing, unexpected = answering.load_state_dict(answering_start(retrieval), strict=False)
    assert not unexpected
    words = "text_decoder.bert.embeddings.word_embeddings.weight"  # they are the last layer's weights, too
    assert all(
        key.startswith("text_decoder.cls") or key == words for key in missing
    )  # BERT's head, which retrieval lacks
    for layer in range(2):  # the decoder's layers are the fusion layers
        ours = answering.text_decoder.bert.encoder.layer[layer].state_dict()
        theirs = retrieval.text_encoder.encoder.layer[2 + layer].state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_answering_is_trained_from_the_shipped_weights(pool, tmp_path):
    trainer = VideoTrainer(
        "tiny_umt_qa", pool, tmp_path, VideoSettings(phrase_epochs=0, pair_epochs=1, digits=16, batch=4)
    )
    shipped = load_model("tiny_umt", pretrained=True)
    key = "vision_encoder.encoder.blocks.0.attn.qkv.weight"
    assert torch.equal(trainer.model.state_dict()[key], shipped.state_dict()[key])
    trained = trainer.train()
    assert not torch.equal(trained.state_dict()[key], shipped.state_dict()[key])


# --- the command's part, and what was shipped -------------------------------------------------------------------


def test_a_finished_run_has_a_card_with_what_was_measured(shipped_digits, monkeypatch, tmp_path):
    monkeypatch.setattr(video_training, "training_digits", lambda folder: shipped_digits)
    monkeypatch.setattr(video_cards, "evaluation_videos", lambda: evaluation_videos(8))
    monkeypatch.setitem(video_training.RECIPES, "tiny_umt", RECIPE)
    trained = train_video_model("tiny_umt", tmp_path, tmp_path / "out", epochs=2, seed=3)
    card = (tmp_path / "out" / "tiny_umt.md").read_text()
    assert list(trained.accuracies) == ["text", "video", "matched_text", "matched_video"]
    for key, value in trained.accuracies.items():
        assert f"| {MEASURES[key]} | {100 * value:.2f} % |" in card
    assert "| pair epochs | 2 |" in card
    assert "| seed | 3 |" in card
    assert trained.weights == tmp_path / "out" / "tiny_umt.safetensors"


def test_another_device_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"CPU alone, got device cuda.*--device"):
        train_video_model("tiny_umt", tmp_path, tmp_path, device="cuda")


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_do_what_their_card_says(name, monkeypatch):
    monkeypatch.setattr(video_cards, "evaluation_videos", lambda: evaluation_videos(60))
    measured = accuracies(name, load_model(name, pretrained=True))
    card = (
        (Path(video_cards.__file__).parents[2] / "backbones" / "weights" / f"{name}.safetensors")
        .with_suffix(".md")
        .read_text()
    )
    assert f"`repshift zoo train {name}`" in card
    for key, value in measured.items():
        (said,) = re.findall(rf"^\| {re.escape(MEASURES[key])} \| ([\d.]+) % \|$", card, re.M)
        assert abs(100 * value - float(said)) < 12, key  # of 60 videos; fewer are easier to tell apart


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_the_cards_are_reached(name):
    measured = accuracies(name, load_model(name, pretrained=True))
    card = (
        (Path(video_cards.__file__).parents[2] / "backbones" / "weights" / f"{name}.safetensors")
        .with_suffix(".md")
        .read_text()
    )
    for key, value in measured.items():
        (said,) = re.findall(rf"^\| {re.escape(MEASURES[key])} \| ([\d.]+) % \|$", card, re.M)
        assert abs(100 * value - float(said)) < 1, key
    if name == "tiny_umt":
        assert min(measured["text"], measured["video"]) >= 0.8
        assert measured["matched_text"] + measured["matched_video"] > measured["text"] + measured["video"]
    else:
        assert measured["all"] >= 0.8
