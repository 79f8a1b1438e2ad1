import pytest
import torch

from repshift import CheckpointError
from repshift.backbones.checkpoints import load_weights


@pytest.fixture
def model(make_vit):
    return make_vit(num_classes=0)


@pytest.fixture
def weights(model):
    """Other weights for the model."""
    return {key: torch.rand_like(value) for key, value in model.state_dict().items()}


def behind(prefix, weights):
    return {f"{prefix}{key}": value for key, value in weights.items()}


def equal(model, weights):
    state = model.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in state)


PREFIXES = [
    "model.",
    "module.",
    "_orig_mod.",
    "backbone.",
    "teacher.backbone.",
    "student.module.backbone.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model._orig_mod.module.net.",
    "anything.at.all.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_common_prefix_is_found(model, weights, tmp_path, prefix):
    torch.save({"state_dict": behind(prefix, weights)}, tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    assert equal(model, weights)


def test_names_of_wrappers_within_names_are_dropped(model, weights, tmp_path):
    wrapped = {key.replace("blocks.0.", "blocks.0._orig_mod."): value for key, value in weights.items()}
    wrapped = {key.replace("mlp.", "mlp._checkpoint_wrapped_module."): value for key, value in wrapped.items()}
    torch.save(behind("_fsdp_wrapped_module.", wrapped), tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    assert equal(model, weights)


def test_what_stands_under_other_prefixes_belongs_to_the_training_program(model, weights, tmp_path):
    other = {"loss.weight": torch.ones(3), "teacher.head.mlp.0.weight": torch.ones(2), "metric": torch.ones(())}
    torch.save(behind("teacher.backbone.", weights) | other, tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    assert equal(model, weights)


def test_a_checkpoint_of_several_networks_is_read_by_their_names(model, weights, tmp_path):
    saved = {"teacher": behind("backbone.", weights), "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(saved, tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    assert equal(model, weights)


@pytest.mark.parametrize("prefixes", [("teacher.backbone.", "student.backbone."), ("", "module."), ("a.", "b.a.")])
@pytest.mark.parametrize("nested", [False, True])
def test_a_model_that_is_there_twice_is_refused_with_both_names(model, weights, tmp_path, prefixes, nested):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    both = {key: value for prefix in prefixes for key, value in behind(prefix, weights).items()}
    torch.save({"state_dict": both} if nested else both, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"holds the model 2 times.*Save those that you want") as caught:
        load_weights(model, tmp_path / "weights.pt")
    assert all(repr(prefix) in str(caught.value) for prefix in prefixes)
    assert equal(model, before)


def test_the_advice_for_a_model_that_is_there_twice_works(model, weights, tmp_path):
    others = {key: value + 1 for key, value in weights.items()}
    both = {"teacher": behind("backbone.", weights), "student": behind("backbone.", others)}
    torch.save(both, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"'student\.backbone\.', 'teacher\.backbone\.'"):
        load_weights(model, tmp_path / "weights.pt")
    torch.save({"teacher": both["teacher"]}, tmp_path / "teacher.pt")
    load_weights(model, tmp_path / "teacher.pt")
    assert equal(model, weights)


SURPLUS = {
    "beside a bare model": ("", "blocks.9.norm1.weight", r"1 unexpected keys \(first: blocks\.9\.norm1\.weight\)"),
    "behind the prefix": (
        "model.",
        "model.blocks.9.norm1.weight",
        r"1 unexpected keys behind 'model\.' \(first: blocks\.9\.norm1\.weight\)",
    ),
}


@pytest.mark.parametrize("case", SURPLUS)
def test_what_is_left_over_within_the_model_is_refused(model, weights, tmp_path, case):
    prefix, surplus, message = SURPLUS[case]
    torch.save(behind(prefix, weights) | {surplus: torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, tmp_path / "weights.pt")


def test_half_of_a_model_behind_a_prefix_is_refused(model, weights, tmp_path):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights.pop("norm.bias")
    torch.save(behind("teacher.backbone.", weights), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"1 of its \d+ keys missing behind 'teacher\.backbone\.' .*norm\.bias"):
        load_weights(model, tmp_path / "weights.pt")
    assert equal(model, before)


def test_shapes_behind_a_prefix_are_still_checked(model, weights, tmp_path):
    weights["norm.bias"] = torch.ones(5)
    torch.save(behind("model.", weights), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"norm\.bias has shape \(5,\), expected \(16,\)"):
        load_weights(model, tmp_path / "weights.pt")
