"""Published files of every kind, made small: what is taken from them, and which are refused by what they hold."""

import argparse
import collections
import sys
import types

import numpy as np
import pytest
import torch

from repshift import CheckpointError, ShiftTracker, load_model, recipe_of, save_model
from repshift.backbones.umt.checkpoints import fitted, started

MODELS = {"vision": "", "retrieval": "_retrieval", "answering": "_qa"}
# what a file is taken as, by its kind
TAKEN = {
    "retrieval": ("vision", "retrieval"),
    "qa": ("vision", "answering"),
    "pretrained": ("vision", "retrieval"),
    "vision_only": ("vision",),
}
IN_WORDS = {"retrieval": "a retrieval", "pretrained": "a retrieval", "qa": "a question", "vision_only": "a video"}


def on_meta(name):
    with torch.device("meta"):
        return load_model(name)


def file_of(shapes):
    with torch.device("meta"):
        return {key: torch.empty(shape) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def models():
    """The published models, without numbers."""
    return {f"umt_{size}{kind}": on_meta(f"umt_{size}{kind}") for size in "bl" for kind in MODELS.values()}


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("size", "bl")
def test_every_published_kind_of_file_fits_the_models_that_it_is_for(manifest, models, size, kind, monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda one, other: True)  # there are no numbers
    weights = file_of(manifest(f"{kind}_{size}"))
    for model in MODELS:
        own = models[f"umt_{size}{MODELS[model]}"].state_dict()
        if model in TAKEN[kind]:
            taken = fitted(weights, own, model, "file.pth")
            assert {key: value.shape for key, value in taken.items()} == {key: own[key].shape for key in own}
        else:
            with pytest.raises(CheckpointError, match=rf"file\.pth holds {IN_WORDS[kind]}.*Load it as umt_b"):
                fitted(weights, own, model, "file.pth")


@pytest.mark.parametrize(("file", "model", "said"), [("b", "l", r"768 .*\(B\), expected 1024"), ("l", "b", "1024")])
def test_the_file_of_the_other_size_is_named(manifest, models, file, model, said):
    weights = file_of(manifest(f"retrieval_{file}"))
    for kind in ("vision", "retrieval"):
        with pytest.raises(CheckpointError, match=f"patch_embed.proj is {said}"):
            fitted(weights, models[f"umt_{model}{MODELS[kind]}"].state_dict(), kind, "file.pth")


@pytest.mark.parametrize("kind", MODELS)
def test_an_action_classifier_is_refused_by_its_name(models, kind):
    names = ("patch_embed.proj.weight", "blocks.0.attn.q_bias", "fc_norm.weight", "head.weight")
    with pytest.raises(CheckpointError, match="holds an action classifier"):
        fitted(file_of(dict.fromkeys(names, (768,))), models[f"umt_b{MODELS[kind]}"].state_dict(), kind, "file.pth")


# --- files on the disk, of small models ------------------------------------------------------------------------------


class EasyDict(dict):
    """A stand-in for the dictionary of settings that UMT's training pickles beside the weights."""

    def __init__(self, settings):
        super().__init__(settings)
        for name, value in settings.items():
            setattr(self, name, value)


EasyDict.__module__ = "utils.easydict"


@pytest.fixture
def training(monkeypatch, tmp_path):
    """Write a file as UMT's training does; its classes are gone when the file is read."""

    def write(weights, wrapper="model", **more):
        with monkeypatch.context() as patched:
            for name in ("utils", "utils.easydict"):
                patched.setitem(sys.modules, name, types.ModuleType(name))
            sys.modules["utils.easydict"].EasyDict = EasyDict
            config = EasyDict({"lr": 1e-5, "model": EasyDict({"name": "UMT"})})
            numbers = {"epoch": 3, "global_step": 12, "scheduler": {"base_lrs": [np.float64(0.1)]}}
            torch.save({wrapper: weights, "config": config, **numbers, **more}, tmp_path / "training.pth")
        return tmp_path / "training.pth"

    return write


def equal(model, weights):
    state = model.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in state)


@pytest.mark.parametrize("wrapper", ["model", "module"])
@pytest.mark.parametrize("name", ["tiny_umt", "tiny_umt_qa"])
def test_a_file_of_a_training_is_read_without_its_code(training, make, name, wrapper):
    weights = make(name).state_dict()
    extra = {"text_encoder.embeddings.position_ids": torch.arange(8)[None], "clip_teacher.proj": torch.ones(2)}
    path = training({**weights, **extra}, wrapper, args=argparse.Namespace(lr=1))
    model = load_model(name, checkpoint=path, frames=4, img_size=16, patch_size=8, width=24, heads=2, vocabulary=40)
    assert equal(model, weights)
    assert "utils.easydict" not in sys.modules


def test_what_else_a_file_would_run_is_named(training, make):
    path = training(make().state_dict(), other=collections.Counter, code=types.SimpleNamespace(a=1))
    with pytest.raises(CheckpointError, match=r"objects beside tensors \(.*types.SimpleNamespace"):
        load_model("tiny_umt", checkpoint=path)


@pytest.mark.parametrize("name", ["tiny_umt", "tiny_umt_qa"])
def test_a_video_encoder_is_taken_out_of_a_file_of_a_task(training, make, name):
    whole = make(name)
    model = make().vision_encoder
    taken = model.fit_checkpoint(whole.state_dict(), "file.pth")
    model.load_state_dict(taken)
    assert torch.equal(model.encoder.norm.weight, whole.vision_encoder.encoder.norm.weight)
    if name == "tiny_umt_qa":  # which has no norm of pooled vectors: it starts as identity
        assert torch.equal(model.pool_norm.weight, torch.ones(24))
        assert torch.equal(model.pool_norm.bias, torch.zeros(24))
    else:
        assert torch.equal(model.pool_norm.weight, whole.vision_encoder.pool_norm.weight)


def test_one_missing_parameter_is_an_error(training, make):
    weights = make().state_dict()
    del weights["vision_encoder.pool_norm.bias"]
    with pytest.raises(CheckpointError, match=r"1 of its .* keys missing .*pool_norm\.bias"):
        load_model("tiny_umt", checkpoint=training(weights), frames=4, img_size=16, width=24, heads=2)


def test_two_values_for_one_parameter_are_an_error(training, make):
    weights = dict(make("tiny_umt_qa").state_dict())
    weights["text_decoder.cls.predictions.decoder.bias"] = torch.ones(40)
    with pytest.raises(CheckpointError, match="which are one parameter"):
        load_model("tiny_umt_qa", checkpoint=training(weights), width=24, heads=2, vocabulary=40)


@pytest.mark.parametrize("name", ["tiny_umt", "tiny_umt_qa"])
def test_a_pruned_model_is_saved_and_loaded(tmp_path, videos, make, name):
    sizes = {"frames": 4, "img_size": 16, "patch_size": 8, "width": 24, "heads": 2, "vocabulary": 40}
    pruned = ShiftTracker(make(name)).prune("0.25@0")
    save_model(pruned, tmp_path / "model", name, **sizes)
    loaded = load_model(tmp_path / "model")
    assert recipe_of(loaded) == recipe_of(pruned)
    assert torch.equal(loaded(videos)[0], pruned(videos)[0])


def test_weights_are_not_fetched_by_name():
    with pytest.raises(CheckpointError, match="checkpoint=FILE"):
        load_model("umt_b", pretrained=True)


@pytest.mark.parametrize("masked_words", [True, False])
def test_the_training_of_answering_starts_from_the_text_encoder(training, make, masked_words):
    weights = dict(make(layers=4, fusion=2).state_dict())
    head = {
        key.replace("text_decoder.cls.", "text_encoder.cls."): torch.randn_like(value)
        for key, value in make("tiny_umt_qa").state_dict().items()
        if ".predictions." in key
    }
    head["text_encoder.cls.predictions.decoder.bias"] = head["text_encoder.cls.predictions.bias"]
    if masked_words:  # and names as pretraining has them
        weights = {key.replace("text_encoder.", "text_encoder.bert."): value for key, value in weights.items()} | head
    model = make("tiny_umt_qa", layers=4, fusion=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.start_from(training(weights))
    state, source = model.state_dict(), make(layers=4, fusion=2).state_dict()
    for key, value in state.items():
        name = key.replace("text_decoder.bert.", "text_encoder.")
        if key.startswith("text_decoder.bert.encoder.layer."):
            name = name.replace("layer.0.", "layer.2.").replace("layer.1.", "layer.3.")
        if key.endswith("predictions.decoder.weight"):
            name = "text_encoder.embeddings.word_embeddings.weight"
        if ".predictions." in key and "decoder.weight" not in key:
            expected = head[key.replace("text_decoder.cls.", "text_encoder.cls.")] if masked_words else before[key]
        else:
            expected = source[name]
        assert torch.equal(value, expected), key


@pytest.mark.parametrize("size", "bl")
@pytest.mark.parametrize("kind", ["pretrained", "retrieval"])
def test_published_files_start_the_training_of_answering(manifest, models, size, kind):
    own = models[f"umt_{size}_qa"].state_dict()
    taken = started(file_of(manifest(f"{kind}_{size}")), own, {"b": 9, "l": 19}[size], "file.pth")
    assert {key: value.shape for key, value in taken.items()} == {key: own[key].shape for key in own}


def test_answering_does_not_start_from_a_file_of_another_kind(training, make):
    with pytest.raises(CheckpointError, match="holds a question-answering model, expected a retrieval model"):
        make("tiny_umt_qa").start_from(training(make("tiny_umt_qa").state_dict()))
