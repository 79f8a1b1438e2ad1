"""Folders of pruned models: transformers finds the dense model in them, repshift the pruned one."""

import copy
import json
import pickle

import pytest
import torch

from repshift import CheckpointError, ShiftTracker, UnknownNameError, dense, load_model, recipe_of, save_model

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIDEO = {"image_size": 16, "patch_size": 8, "num_frames": 4}
OTHERS = {
    "text": lambda library: library.BertForMaskedLM(library.BertConfig(**TINY, vocab_size=20)),
    "video": lambda library: library.VideoMAEForVideoClassification(library.VideoMAEConfig(**TINY, **VIDEO)),
    "timm": lambda library: library.TimmWrapperForImageClassification(
        library.TimmWrapperConfig(architecture="test_vit", model_args={"depth": 2}, num_labels=3)
    ),
}


@pytest.fixture
def pruned(build):
    return ShiftTracker(build("ViTForImageClassification")).prune({0: 4, 1: 3}, pruner="mnn")


@pytest.fixture
def folder(pruned, tmp_path):
    pruned.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_dense_model_and_the_recipe_are_saved(transformers, pruned, folder, images):
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", "repshift.json"}
    plain, again = transformers.ViTForImageClassification.from_pretrained(folder).eval(), load_model(folder)
    assert recipe_of(plain) is None
    assert recipe_of(again) == recipe_of(pruned)
    with torch.no_grad():
        assert torch.equal(plain(images).logits, dense(pruned)(images).logits)
        assert torch.equal(again(images).logits, pruned(images).logits)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_save_their_recipe_too(transformers, tmp_path, kind):
    model = OTHERS[kind](transformers).eval()
    pruned = ShiftTracker(model).prune("0.25@0", restore=True)
    pruned.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert recipe_of(again) == recipe_of(pruned)
    assert type(dense(again)) is type(model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_tower_that_is_held_saves_its_own(pruned, tmp_path, images):
    pruned.vit.save_pretrained(tmp_path)
    assert type(load_model(tmp_path)).__name__ == "ViTModel"
    with torch.no_grad():
        again = load_model(tmp_path)(images).last_hidden_state
        assert torch.equal(again, pruned.vit(images).last_hidden_state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_save_themselves(pruned, tmp_path, copied):
    other = copied(pruned)
    with torch.no_grad():
        other.classifier.bias.fill_(7)
    other.save_pretrained(tmp_path)
    assert (load_model(tmp_path).classifier.bias == 7).all()


def test_a_dense_model_saves_no_recipe(pruned, tmp_path):
    dense(pruned).save_pretrained(tmp_path)
    assert not (tmp_path / "repshift.json").exists()


def test_processes_that_do_not_write_write_nothing(pruned, tmp_path):
    pruned.save_pretrained(tmp_path / "model", is_main_process=False)
    assert not (tmp_path / "model" / "repshift.json").exists()


def test_save_model_says_how_it_is_saved(pruned, tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.save_pretrained\(folder\)"):
        save_model(pruned, tmp_path)


def test_options_are_refused(folder):
    with pytest.raises(UnknownNameError, match=r"says itself how its model is built\. Leave num_labels out"):
        load_model(folder, num_labels=3)


@pytest.mark.parametrize("name", ["torch", "AutoModel", "pipeline", "NoSuchModel"])
def test_only_models_of_transformers_are_built(folder, name):
    said = json.loads((folder / "repshift.json").read_text())
    (folder / "repshift.json").write_text(json.dumps({**said, "model": f"transformers:{name}"}))
    with pytest.raises(CheckpointError, match=f"'{name}', which is no model of this version"):
        load_model(folder)


@pytest.mark.parametrize(
    "more",
    [
        {"auto_map": {"AutoModel": "code.Model"}},
        {"attn_implementation": "someone/kernel"},
        {"backbone_config": {"use_pretrained_backbone": True}},
        {"quantization_config": {"quant_method": "awq"}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_folder_leads_nowhere_else(folder, more):
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **more}))
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        load_model(folder)


def test_neither_do_adapters_nor_lists_of_weights(folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"names .\.\./other"):
        load_model(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds an adapter"):
        load_model(folder)


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read by transformers"):
        load_model(folder)
