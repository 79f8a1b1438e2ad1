import re
import shutil
from dataclasses import asdict

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from repshift import CheckpointError, DataError, UnknownNameError, load_model
from repshift.analysis.samples.canvases import ClutteredDigits, draw_canvases
from repshift.analysis.zoo import training
from repshift.analysis.zoo.training import Trainer, ZooSettings, canvas_accuracy, model_card, train_model

RECIPE = ZooSettings(epochs=2, warmup_epochs=1, batch=10)  # 4 steps an epoch on 40 digits
STATE = "tiny_vit.training.pt"


@pytest.fixture(scope="session")
def interrupt(few_digits, stop):
    """Train a model into a folder until a step, and stop there as if killed."""

    def interrupt(name, output, step):
        def observe(done, steps, loss):
            if done == step:
                raise stop

        with pytest.raises(stop):
            Trainer(name, few_digits, output, RECIPE).train(observe)

    return interrupt


@pytest.fixture(scope="module")
def uninterrupted(few_digits, tmp_path_factory):
    """The weights of a whole run and what its observer saw."""
    output = tmp_path_factory.mktemp("uninterrupted")
    seen = []
    Trainer("tiny_vit", few_digits, output, RECIPE).train(lambda *progress: seen.append(progress))
    return output, seen


@pytest.fixture(scope="module")
def left_behind(interrupt, tmp_path_factory):
    """What a run that stopped in its second epoch leaves."""
    output = tmp_path_factory.mktemp("interrupted")
    interrupt("tiny_vit", output, 6)
    return output


@pytest.fixture
def interrupted(left_behind, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(left_behind, tmp_path / "interrupted")


# --- a run and its interruption ---------------------------------------------------------------------------------


def test_the_observer_sees_every_step_and_its_loss(uninterrupted):
    _, seen = uninterrupted
    assert [(done, steps) for done, steps, _ in seen] == [(step, 8) for step in range(1, 9)]
    assert all(0 < loss < 10 for _, _, loss in seen)


def test_a_finished_run_leaves_the_weights_and_nothing_else(uninterrupted):
    output, _ = uninterrupted
    assert [path.name for path in output.iterdir()] == ["tiny_vit.safetensors"]


def test_the_weights_are_those_of_the_trained_model(few_digits, tmp_path):
    model = Trainer("tiny_vit", few_digits, tmp_path, ZooSettings(epochs=1, batch=20)).train()
    assert not model.training
    saved = load_file(tmp_path / "tiny_vit.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[key], value) for key, value in model.state_dict().items())


def test_training_changes_every_weight(uninterrupted):
    torch.manual_seed(RECIPE.seed)
    untrained = load_model("tiny_vit")
    trained = load_file(uninterrupted[0] / "tiny_vit.safetensors")
    assert not [name for name, parameter in untrained.named_parameters() if torch.equal(parameter, trained[name])]


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(few_digits, uninterrupted, interrupted):
    torch.manual_seed(999)  # whatever the process did before
    Trainer("tiny_vit", few_digits, interrupted, RECIPE).train()
    expected, resumed = (load_file(folder / "tiny_vit.safetensors") for folder in (uninterrupted[0], interrupted))
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["tiny_resnet", "tiny_vim"])
def test_every_model_of_the_zoo_trains_and_resumes_exactly(name, few_digits, interrupt, tmp_path):
    Trainer(name, few_digits, tmp_path / "whole", RECIPE).train()
    interrupt(name, tmp_path / "parts", 6)
    Trainer(name, few_digits, tmp_path / "parts", RECIPE).train()
    expected, resumed = (load_file(tmp_path / folder / f"{name}.safetensors") for folder in ("whole", "parts"))
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)


def test_a_resumed_run_goes_on_after_the_last_whole_epoch(few_digits, interrupted):
    seen = []
    Trainer("tiny_vit", few_digits, interrupted, RECIPE).train(lambda done, steps, loss: seen.append((done, steps)))
    assert seen == [(5, 8), (6, 8), (7, 8), (8, 8)]
    assert not (interrupted / STATE).exists()


def test_an_interrupted_run_leaves_no_weights(interrupted):
    assert [path.name for path in interrupted.iterdir()] == [STATE]


@pytest.mark.parametrize("change", [{"seed": 1}, {"epochs": 3}, {"batch": 20}])
def test_a_state_of_another_recipe_is_refused(few_digits, interrupted, change):
    before = (interrupted / STATE).read_bytes()
    with pytest.raises(CheckpointError, match=rf"other {next(iter(change))}\. Delete .* or give another output"):
        Trainer("tiny_vit", few_digits, interrupted, ZooSettings(**{**asdict(RECIPE), **change})).train()
    assert (interrupted / STATE).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"garbage" * 9, b"PK\x03\x04junk", b"\x80\x04K\x01.", None])
def test_a_damaged_state_is_refused_with_what_to_do(few_digits, interrupted, content):
    state = interrupted / STATE
    state.write_bytes(state.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(CheckpointError, match=r"not a readable training state.*Delete"):
        Trainer("tiny_vit", few_digits, interrupted, RECIPE).train()


@pytest.mark.parametrize("state", [[1, 2], {"epochs": 1}, {"recipe": asdict(RECIPE), "epochs": 1}])
def test_a_file_that_holds_something_else_is_refused_as_state(few_digits, tmp_path, state):
    torch.save(state, tmp_path / STATE)
    with pytest.raises(CheckpointError, match="Delete"):
        Trainer("tiny_vit", few_digits, tmp_path, RECIPE).train()


def test_the_state_of_a_model_of_another_shape_is_refused(few_digits, interrupted, monkeypatch):
    other = load_model("tiny_vit", depth=5)  # as after an upgrade that changed the model
    monkeypatch.setattr(training, "load_model", lambda name: other)
    with pytest.raises(CheckpointError, match="Delete"):
        Trainer("tiny_vit", few_digits, interrupted, RECIPE).train()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(few_digits, tmp_path):
    runs = []
    for run, seed in enumerate((0, 0, 1)):
        Trainer("tiny_vit", few_digits, tmp_path / str(run), ZooSettings(epochs=1, batch=20, seed=seed)).train()
        runs.append(load_file(tmp_path / str(run) / "tiny_vit.safetensors"))
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert not torch.equal(runs[0]["head.weight"], runs[2]["head.weight"])


def test_every_epoch_shows_other_canvases(few_digits, tmp_path, monkeypatch):
    shown = []

    class Recording(ClutteredDigits):
        def __getitem__(self, index):
            shown.append((index, self.seed))
            return super().__getitem__(index)

    monkeypatch.setattr(training, "ClutteredDigits", Recording)
    Trainer("tiny_vit", few_digits, tmp_path, ZooSettings(epochs=2, batch=40)).train()
    assert len(shown) == len(set(shown)) == 80
    assert {index for index, _ in shown} == set(range(40))


@pytest.mark.parametrize("epochs", [0, -3])
def test_a_recipe_needs_an_epoch(epochs):
    with pytest.raises(DataError, match="at least 1"):
        ZooSettings(epochs=epochs)


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_a_seed_that_cannot_be_used_is_refused(few_digits, tmp_path, seed):
    with pytest.raises(DataError, match="seed"):
        Trainer("tiny_vit", few_digits, tmp_path, ZooSettings(epochs=1, seed=seed)).train()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_runs_on_a_gpu(few_digits, tmp_path):
    model = Trainer("tiny_vit", few_digits, tmp_path, RECIPE, "cuda").train()
    assert next(model.parameters()).is_cuda
    saved = load_file(tmp_path / "tiny_vit.safetensors")
    assert torch.equal(saved["head.weight"], model.head.weight.detach().cpu())


# --- the command's part -----------------------------------------------------------------------------------------


@pytest.fixture
def canvases(few_digits):
    return draw_canvases(ClutteredDigits(few_digits, seed=7))


@pytest.fixture
def few(monkeypatch, few_digits, canvases):
    """Train on 40 digits, evaluate on 40 canvases."""
    monkeypatch.setattr(training, "training_digits", lambda folder: few_digits)
    monkeypatch.setattr(training, "evaluation_canvases", lambda: canvases)


@pytest.mark.usefixtures("few")
def test_a_training_run_writes_weights_and_card(tmp_path):
    trained = train_model("tiny_vit", tmp_path, tmp_path / "zoo", epochs=1, device="cpu")
    assert trained.weights == tmp_path / "zoo" / "tiny_vit.safetensors"
    assert {path.name for path in (tmp_path / "zoo").iterdir()} == {"tiny_vit.safetensors", "tiny_vit.md"}


@pytest.mark.usefixtures("few")
def test_the_written_weights_reach_the_accuracy_that_is_reported(tmp_path, canvases):
    trained = train_model("tiny_vit", tmp_path, tmp_path, epochs=1, device="cpu")
    model = load_model("tiny_vit", checkpoint=trained.weights)
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        right = model((canvases.images / 255 - mean) / std).argmax(1) == canvases.labels
    assert trained.accuracy == right.sum().item() / 40
    assert f"{100 * trained.accuracy:.2f} %" in (tmp_path / "tiny_vit.md").read_text()


@pytest.mark.usefixtures("few")
def test_the_card_names_the_epochs_and_the_seed_of_this_run(tmp_path):
    train_model("tiny_vit", tmp_path, tmp_path, epochs=1, seed=5, device="cpu")
    card = (tmp_path / "tiny_vit.md").read_text()
    assert "| epochs | 1 |" in card
    assert "| seed | 5 |" in card


def test_an_unknown_model_is_refused_with_the_closest_name(tmp_path):
    with pytest.raises(UnknownNameError, match=r"no model 'tinyvit'\. Did you mean 'tiny_vit'"):
        train_model("tinyvit", tmp_path, tmp_path / "zoo")
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match=r"no CUDA device for --device cuda:0.*--device cpu"):
        train_model("tiny_vit", tmp_path, tmp_path / "zoo", device="cuda:0")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("few")
def test_an_unknown_device_is_refused(tmp_path):
    with pytest.raises(DataError, match="'abacus'"):
        train_model("tiny_vit", tmp_path, tmp_path / "zoo", epochs=1, device="abacus")


def test_digits_that_are_missing_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        train_model("tiny_vit", tmp_path / "nowhere", tmp_path / "zoo", device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_failed_download_says_how_to_go_on_without_a_network(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST.__init__", fail)
    monkeypatch.setattr("repshift.analysis.samples.canvases.why_unreachable", lambda address: None)
    with pytest.raises(DataError, match=r"no network.*--digits"):
        train_model("tiny_vit", None, tmp_path / "zoo", device="cpu")


def test_accuracy_is_the_share_of_right_answers(canvases):
    class AlwaysSeven(nn.Module):
        def forward(self, images):
            return nn.functional.one_hot(torch.full((len(images),), 7), 10).float()

    expected = (canvases.labels == 7).sum().item() / 40
    assert canvas_accuracy(AlwaysSeven(), canvases, batch=15) == expected
    assert 0 < expected < 1


def test_the_card_says_what_a_user_must_know():
    model = load_model("tiny_vit")
    card = model_card("tiny_vit", model, RECIPE, 0.98765)
    assert card.startswith("# tiny_vit\n")
    assert "98.77 % on the 2,000 evaluation canvases" in card
    assert "CC BY-SA 3.0" in card
    assert "repshift zoo train tiny_vit" in card
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters" in card
    for name, value in asdict(RECIPE).items():
        assert re.search(rf"^\| {name.replace('_', ' ')} \| {value} \|$", card, re.MULTILINE)
