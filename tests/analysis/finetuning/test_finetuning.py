import ast
import inspect
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from timm.utils import CheckpointSaver
from torch import nn
from torchvision.datasets import FakeData

from repshift import (
    CheckpointError,
    DataError,
    RepshiftError,
    ScheduleError,
    ShiftTracker,
    UnknownNameError,
    load_model,
)
from repshift.analysis import cli
from repshift.analysis.finetuning import loaders, settings, training
from repshift.analysis.finetuning.checkpoints import Checkpoints
from repshift.analysis.finetuning.loaders import load_data
from repshift.analysis.finetuning.settings import Recipe
from repshift.analysis.finetuning.training import DivergenceError, FineTuning, MissingPackageError, finetune
from repshift.analysis.samples.canvases import ClutteredDigits, draw_canvases
from repshift.analysis.samples.images import normalised

TRAINING, VALIDATION, BATCH, EPOCHS, RATE = 40, 23, 10, 3, 1e-3


class Stop(BaseException):
    """A kill: nothing catches it."""


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps one state a process, for good; each test is a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def pictures(few_digits, tmp_path_factory):
    """A folder of canvases as PNG files: 40 to train, 23 to validate, ten classes."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count, seed in (("train", TRAINING, 1), ("val", VALIDATION, 2)):
        canvases = ClutteredDigits(few_digits, seed)
        for index in range(count):
            image, label, _ = canvases[index]
            path = root / split / str(label) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(path)
    assert len(list((root / "train").iterdir())) == 10
    return root


@pytest.fixture(scope="module")
def hurt(tmp_path_factory):
    """The embedded model with a noisy classifier, so that there is something to mend: a checkpoint."""
    path = tmp_path_factory.mktemp("hurt") / "hurt.pt"
    model = load_model("tiny_resnet", pretrained=True)
    with torch.no_grad():
        model.fc.weight += 0.6 * torch.randn(model.fc.weight.shape, generator=torch.Generator().manual_seed(0))
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def recipe(pictures, hurt):
    """A short run that uses everything random: augmentation, mixup, moving average."""

    def make(**changes):
        settings = {
            "model": "tiny_resnet",
            "checkpoint": str(hurt),
            "drop": "10@0",
            "data": str(pictures),
            "epochs": EPOCHS,
            "cooldown_epochs": 1,
            "batch_size": BATCH,
            "lr": RATE,
            "mixup": 0.2,
            "reprob": 0.2,
            "hflip": 0.0,
            "model_ema": True,
            "model_ema_decay": 0.5,
        }
        return Recipe(**(settings | changes))

    return make


def run(recipe, output, **options):
    return finetune(recipe, output, **({"workers": 0, "device": "cpu"} | options))


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    """A whole run: its folder, its outcome, and what its observer saw."""
    output, seen = tmp_path_factory.mktemp("uninterrupted"), []
    outcome = run(recipe(), output, observe=lambda *step: seen.append(step))
    return output, outcome, seen


def checkpoint(path):
    """Read a checkpoint of timm's, but for the list of files that its saver keeps for itself."""
    content = torch.load(path, weights_only=True)
    content.pop("saver", None)
    return content


def tensors(value, name=""):
    """Flatten what a checkpoint holds into tensors and numbers by name."""
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, (list, tuple)):
        value = enumerate(value)
    else:
        return {name: value}
    return {key: leaf for part, inner in value for key, leaf in tensors(inner, f"{name}/{part}").items()}


def assert_same_result(output, expected):
    """All that a run leaves is equal, bit for bit: best and last weights, optimiser, moving average, numbers."""
    assert {path.name for path in output.iterdir()} == {path.name for path in expected.iterdir()}
    for name in ("model_best.pth.tar", "last.pth.tar"):
        ours, theirs = (tensors(checkpoint(folder / name)) for folder in (output, expected))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            same = torch.equal(ours[key], value) if isinstance(value, torch.Tensor) else ours[key] == value
            assert same, (name, key)
    assert (output / "model_best.safetensors").read_bytes() == (expected / "model_best.safetensors").read_bytes()
    assert json.loads((output / "summary.json").read_text()) == json.loads((expected / "summary.json").read_text())


def share_right(model, pictures):
    """Classify the validation pictures one by one, without timm's loader."""
    files = sorted((pictures / "val").rglob("*.png"))
    right = 0
    for path in files:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        with torch.no_grad():
            right += int(model(normalised(model, pixels[None])).argmax()) == int(path.parent.name)
    assert len(files) == VALIDATION
    return right / len(files)


# --- a whole run ------------------------------------------------------------------------------------------------


def test_a_run_measures_both_models_as_loaded_and_the_pruned_one_with_the_best_weights(uninterrupted, pictures, hurt):
    _, outcome, _ = uninterrupted
    dense = load_model("tiny_resnet", checkpoint=hurt)
    assert outcome.dense == share_right(dense, pictures)
    assert outcome.pruned == share_right(ShiftTracker(dense).prune("10@0"), pictures)
    tuned = load_model("tiny_resnet", checkpoint=outcome.weights)
    assert outcome.finetuned == share_right(ShiftTracker(tuned).prune("10@0"), pictures)


def test_fine_tuning_mends_what_is_hurt(uninterrupted):
    _, outcome, _ = uninterrupted
    assert 0 < outcome.dense < 0.5
    assert outcome.dense != outcome.pruned
    assert outcome.finetuned > 1.3 * outcome.pruned


def test_without_a_moving_average_the_weights_themselves_are_evaluated_and_kept(recipe, pictures, tmp_path):
    outcome = run(recipe(model_ema=False, epochs=2), tmp_path)
    tuned = load_model("tiny_resnet", checkpoint=outcome.weights)
    assert outcome.finetuned == share_right(ShiftTracker(tuned).prune("10@0"), pictures)
    best = checkpoint(tmp_path / "model_best.pth.tar")
    assert "state_dict_ema" not in best
    assert torch.equal(best["state_dict"]["fc.weight"], tuned.fc.weight)


def test_the_kept_weights_are_those_of_the_best_epoch(uninterrupted):
    output, outcome, _ = uninterrupted
    accuracies = [epoch["accuracy"] for epoch in json.loads((output / "summary.json").read_text())["epochs"]]
    assert outcome.best_epoch == 1 + accuracies.index(max(accuracies))
    assert outcome.finetuned == max(accuracies)
    best = checkpoint(output / "model_best.pth.tar")
    assert (best["epoch"], best["metric"]) == (outcome.best_epoch - 1, max(accuracies))


def test_every_kind_of_file_loads_into_the_dense_model(uninterrupted):
    output, outcome, _ = uninterrupted
    models = [load_model("tiny_resnet", checkpoint=path) for path in (outcome.weights, output / "model_best.pth.tar")]
    first, second = (model.state_dict() for model in models)
    assert first.keys() == load_model("tiny_resnet").state_dict().keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_moving_average_is_what_is_kept(uninterrupted):
    output, outcome, _ = uninterrupted
    best, weights = checkpoint(output / "model_best.pth.tar"), load_file(outcome.weights)
    assert all(torch.equal(weights[key], value) for key, value in best["state_dict_ema"].items())
    assert not torch.equal(best["state_dict_ema"]["fc.weight"], best["state_dict"]["fc.weight"])


def test_fine_tuning_changes_every_weight(uninterrupted, hurt):
    before, after = load_model("tiny_resnet", checkpoint=hurt), load_file(uninterrupted[1].weights)
    assert not [name for name, weight in before.named_parameters() if torch.equal(weight, after[name])]


def test_the_summary_holds_the_numbers_the_recipe_and_the_versions(uninterrupted, recipe):
    output, outcome, _ = uninterrupted
    summary = json.loads((output / "summary.json").read_text())
    assert summary["accuracy"] == {key: getattr(outcome, key) for key in ("dense", "pruned", "finetuned")}
    assert summary["recipe"] == asdict(recipe())
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(summary["epochs"]) == EPOCHS
    assert all(0 < epoch["loss"] < 10 for epoch in summary["epochs"])


def test_the_observer_sees_every_batch_of_training_and_evaluation(uninterrupted):
    seen = Counter("training" if "loss" in what else what for what, _, _ in uninterrupted[2])
    assert seen.pop("training") == EPOCHS * TRAINING // BATCH
    assert len(seen) == 2 + EPOCHS  # dense, pruned, and one evaluation an epoch
    assert set(seen.values()) == {math.ceil(VALIDATION / BATCH)}


@pytest.mark.parametrize("accumulated", [1, 3])  # 4 batches an epoch: 4 updates, or 2, the second of one batch
def test_the_rate_follows_a_cosine_and_stays_at_its_lowest_while_cooling_down(recipe, tmp_path, accumulated):
    run(recipe(epochs=3, cooldown_epochs=1, grad_accum_steps=accumulated), tmp_path)
    rates = [epoch["lr"] for epoch in json.loads((tmp_path / "summary.json").read_text())["epochs"]]
    updates = math.ceil(4 / accumulated)
    for epoch in range(2):  # the last update of each epoch
        progress = (updates * (epoch + 1) - 1) / (2 * updates)
        assert rates[epoch] == pytest.approx(1e-6 + (RATE - 1e-6) * (1 + math.cos(math.pi * progress)) / 2)
    assert rates[2:] == [1e-6]


def test_the_warm_up_rises_from_the_first_rate(recipe, tmp_path):
    run(recipe(warmup_epochs=1), tmp_path)
    first, *_ = json.loads((tmp_path / "summary.json").read_text())["epochs"]
    assert first["lr"] == pytest.approx(1e-6 + (RATE - 1e-6) * 3 / 4)  # before the last of 4 updates


def test_gradients_are_clipped_when_asked(recipe, hurt, tmp_path):
    settings = {"opt": "momentum", "weight_decay": 0.0, "model_ema": False, "epochs": 1, "cooldown_epochs": 0}
    run(recipe(**settings, batch_size=TRAINING, lr=1.0, clip_grad=1e-3), tmp_path)
    before, after = load_model("tiny_resnet", checkpoint=hurt), load_file(tmp_path / "model_best.safetensors")
    moved = torch.stack([(after[name] - weight).norm() for name, weight in before.named_parameters()]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)  # one update of rate 1


def test_mixed_precision_trains_weights_that_stay_in_float32(recipe, tmp_path):
    outcome = run(recipe(amp=True, epochs=1, cooldown_epochs=0), tmp_path)
    weights = load_file(outcome.weights)
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
    AcceleratorState._reset_state(reset_partial_state=True)
    run(recipe(epochs=1, cooldown_epochs=0), tmp_path / "full")
    full = load_file(tmp_path / "full" / "model_best.safetensors")
    assert not torch.equal(full["fc.weight"], weights["fc.weight"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_trains_and_goes_on_on_a_gpu(recipe, tmp_path, dtype):
    settings = recipe(amp=True, amp_dtype=dtype)
    with pytest.raises(Stop):
        run(settings, tmp_path, device="cuda", observe=stop_at("epoch 2 of", 2))
    fresh_torch_state()
    outcome = run(settings, tmp_path, device="cuda")
    assert {value.dtype for value in load_file(outcome.weights).values()} == {torch.float32, torch.int64}


def test_a_vision_transformer_can_be_fine_tuned_too(recipe, tmp_path):
    outcome = run(recipe(model="tiny_vit", checkpoint=None, drop="0.2@0,2", epochs=1, cooldown_epochs=0), tmp_path)
    load_model("tiny_vit", checkpoint=outcome.weights)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(recipe, uninterrupted, tmp_path):
    run(recipe(), tmp_path / "same")
    assert_same_result(tmp_path / "same", uninterrupted[0])
    run(recipe(seed=1), tmp_path / "other")
    expected, other = (
        load_file(folder / "model_best.safetensors") for folder in (uninterrupted[0], tmp_path / "other")
    )
    assert not torch.equal(expected["fc.weight"], other["fc.weight"])


# --- stopping and going on --------------------------------------------------------------------------------------


def stop_at(what, step):
    def observe(seen, done, steps):
        if what in seen and done == step:
            raise Stop

    return observe


def stop_in(monkeypatch, owner, name, call, early):
    """Stop at a call of a method, before or after it has done its work."""
    original, calls = getattr(owner, name), []

    def stopping(*args, **kwargs):
        calls.append(name)
        if early and len(calls) == call:
            raise Stop
        result = original(*args, **kwargs)
        if len(calls) == call:
            raise Stop
        return result

    monkeypatch.setattr(owner, name, stopping)


@pytest.mark.parametrize(
    ("what", "step"), [("dense", 2), ("epoch 1 of", 3), ("epoch 2 of", 1), ("epoch 2, evaluation", 2), ("3 of", 4)]
)
def test_a_run_stopped_while_computing_goes_on_to_the_same_result(recipe, uninterrupted, tmp_path, what, step):
    with pytest.raises(Stop):
        run(recipe(), tmp_path, observe=stop_at(what, step))
    fresh_torch_state()
    run(recipe(), tmp_path)
    assert_same_result(tmp_path, uninterrupted[0])


def fresh_torch_state():
    """Do what a new process does, and have other random states than a new process has."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.manual_seed(999)
    np.random.seed(999)


@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Checkpoints, "_write_state", 2),
        (Checkpoints, "_write_weights", 2),
        (CheckpointSaver, "_replace", 2),
        (os, "link", 3),  # of the numbered file of the second epoch, the best so far; the old one is gone
        (os, "link", 4),  # of the best file
        (Checkpoints, "write_best", 1),
    ],
)
def test_a_run_stopped_while_writing_goes_on_to_the_same_result(
    recipe, uninterrupted, tmp_path, monkeypatch, owner, name, call, early
):
    with monkeypatch.context() as patch:
        stop_in(patch, owner, name, call, early)
        with pytest.raises(Stop):
            run(recipe(), tmp_path)
    fresh_torch_state()
    run(recipe(), tmp_path)
    assert_same_result(tmp_path, uninterrupted[0])


def test_a_state_that_is_only_half_written_is_not_taken(recipe, uninterrupted, interrupted):
    unfinished = shutil.copytree(interrupted / "state-1", interrupted / ".unfinished-state")
    (unfinished / "optimizer.bin").write_bytes(b"PK")
    run(recipe(), interrupted)
    assert_same_result(interrupted, uninterrupted[0])


def test_loader_workers_draw_the_same_after_an_interruption(recipe, tmp_path):
    settings = recipe(aa="rand-m9-mstd0.5-inc1")
    run(settings, tmp_path / "whole", workers=2)
    fresh_torch_state()
    with pytest.raises(Stop):
        run(settings, tmp_path / "parts", workers=2, observe=stop_at("epoch 3 of", 2))
    fresh_torch_state()
    run(settings, tmp_path / "parts", workers=2)
    assert_same_result(tmp_path / "parts", tmp_path / "whole")


@pytest.fixture(scope="module")
def left_behind(recipe, tmp_path_factory):
    """What a run that stopped in its second epoch leaves."""
    output = tmp_path_factory.mktemp("left")
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(Stop):
        run(recipe(), output, observe=stop_at("epoch 2 of", 2))
    return output


@pytest.fixture
def interrupted(left_behind, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(left_behind, tmp_path / "interrupted")


def test_a_resumed_run_repeats_nothing_that_is_done(recipe, interrupted):
    seen = []
    run(recipe(), interrupted, observe=lambda what, step, steps: seen.append(what.partition(",")[0]))
    assert set(seen) == {f"epoch {epoch}{part}" for epoch in (2, 3) for part in ("", f" of {EPOCHS}")}


def test_a_finished_run_is_only_reported_again(recipe, uninterrupted, tmp_path):
    output = shutil.copytree(uninterrupted[0], tmp_path / "finished")
    outcome = run(recipe(), output, observe=stop_at("", 1))
    assert asdict(outcome) | {"weights": 0} == asdict(uninterrupted[1]) | {"weights": 0}
    assert_same_result(output, uninterrupted[0])


def test_starting_anew_forgets_the_state(recipe, uninterrupted, interrupted):
    seen = []
    run(recipe(), interrupted, resume=False, observe=lambda what, step, steps: seen.append(what))
    assert any("dense" in what for what in seen)
    assert_same_result(interrupted, uninterrupted[0])
    fresh_torch_state()
    run(recipe(epochs=1, cooldown_epochs=0), interrupted, resume=False)
    assert sorted(path.name for path in interrupted.glob("state-*")) == ["state-1"]
    assert sorted(path.name for path in interrupted.glob("checkpoint-*")) == ["checkpoint-0.pth.tar"]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, r"other lr \(0\.001, now 0\.5\)"),
        ({"epochs": 5, "seed": 1}, r"other epochs \(3, now 5\), seed \(42, now 1\)"),
        ({"drop": "9@0"}, r"other drop \(10@0, now 9@0\)"),
    ],
)
def test_a_state_of_another_recipe_is_refused_and_kept(recipe, interrupted, change, message):
    before = contents(interrupted)
    with pytest.raises(CheckpointError, match=message + r".*--output.*--no-resume"):
        run(recipe(**change), interrupted)
    assert contents(interrupted) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("progress.json", None),
        ("progress.json", b""),
        ("progress.json", b"[1, 2]"),
        ("progress.json", b'{"recipe": {}, "processes": 1, "before": {}, "epochs": [{"loss": 1}]}'),
        ("model.safetensors", b"garbage" * 9),
        ("optimizer.bin", b""),
        ("optimizer.bin", None),
        ("ema.safetensors", None),
    ],
)
def test_a_damaged_state_is_refused_with_what_to_do(recipe, interrupted, name, content):
    path = interrupted / "state-1" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state-1 is not a readable state.*--no-resume"):
        run(recipe(), interrupted)


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(recipe, uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        original = CheckpointSaver._save

        def save(self, path, epoch, metric=None):
            if epoch == 1:
                raise OSError(28, "No space left on device")
            original(self, path, epoch, metric)

        patch.setattr(CheckpointSaver, "_save", save)
        with pytest.raises(DataError, match=r"cannot be written.*No space left.*the same command goes on"):
            run(recipe(), tmp_path)
    fresh_torch_state()
    run(recipe(), tmp_path)
    assert_same_result(tmp_path, uninterrupted[0])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state(recipe, uninterrupted, tmp_path, monkeypatch):
    class Diverging(nn.Module):
        calls = 0

        def forward(self, logits, labels):
            type(self).calls += 1
            scale = math.inf if self.calls == 7 else 1
            return scale * torch.sum(-labels * logits.log_softmax(-1), -1).mean()

    with monkeypatch.context() as patch:
        patch.setattr(settings, "SoftTargetCrossEntropy", Diverging)
        with pytest.raises(DivergenceError, match=r"The loss is inf.*--lr"):
            run(recipe(), tmp_path)
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-1"]
    fresh_torch_state()
    run(recipe(), tmp_path)
    assert_same_result(tmp_path, uninterrupted[0])


def test_weights_that_are_not_finite_are_not_saved(recipe, tmp_path, monkeypatch):
    original = FineTuning._step

    def overflow(self, images, labels):
        loss = original(self, images, labels)
        self.pruned.fc.bias.data[3] = math.inf
        return loss

    monkeypatch.setattr(FineTuning, "_step", overflow)
    with pytest.raises(DivergenceError, match="weights are no longer finite"):
        run(recipe(batch_size=TRAINING), tmp_path)  # one update an epoch, so that no later loss shows it
    assert not list(tmp_path.glob("state-*"))


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_result(recipe, uninterrupted, tmp_path):
    script = (
        "import json, sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from repshift.analysis.finetuning.training import finetune\n"
        "from repshift.analysis.finetuning.settings import Recipe\n"
        "finetune(Recipe(**json.loads(sys.argv[1])), Path(sys.argv[2]), workers=0, device='cpu')"
    )
    process = subprocess.Popen([sys.executable, "-c", script, json.dumps(asdict(recipe())), str(tmp_path)])
    until = time.monotonic() + 100
    while not list(tmp_path.glob("state-*")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("state-*"))
    run(recipe(), tmp_path)
    assert_same_result(tmp_path, uninterrupted[0])


# --- data -------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch, few_digits):
    """The embedded data in small: 40 digits to train, 20 canvases to evaluate."""
    canvases = draw_canvases(ClutteredDigits(few_digits, 7))
    canvases = type(canvases)(canvases.images[:20], canvases.labels[:20], canvases.boxes[:20])
    monkeypatch.setattr(loaders, "training_digits", lambda folder: few_digits)
    monkeypatch.setattr(loaders, "evaluation_canvases", lambda: canvases)
    return canvases


def test_a_failed_download_of_the_digits_says_how_to_go_on(recipe, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST", fail)
    with pytest.raises(DataError, match=r"no network.*--digits"):
        run(recipe(data="cluttered-mnist", reprob=0.0), tmp_path)


def test_canvases_are_normalised_and_drawn_anew_in_every_epoch(recipe, few, few_digits, tmp_path):
    model = load_model("tiny_resnet")
    settings = recipe(data="cluttered-mnist", reprob=0.0, batch_size=TRAINING, seed=3)
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
def test_a_run_shows_every_digit_once_an_epoch_on_a_canvas_of_its_own(recipe, tmp_path, monkeypatch):
    shown = []

    class Recording(ClutteredDigits):
        def __getitem__(self, index):
            shown.append((index, self.seed))
            return super().__getitem__(index)

    monkeypatch.setattr(loaders, "ClutteredDigits", Recording)
    run(recipe(data="cluttered-mnist", reprob=0.0, epochs=2, seed=3), tmp_path, digits=tmp_path)
    # but for the one that is looked at to see its shape
    assert sorted(shown[1:]) == [(index, 3_000 + epoch) for index in range(TRAINING) for epoch in (0, 1)]


@pytest.mark.usefixtures("few")
def test_the_embedded_data_can_be_resumed_too(recipe, tmp_path):
    settings = recipe(data="cluttered-mnist", reprob=0.0)
    run(settings, tmp_path / "whole", digits=tmp_path)
    fresh_torch_state()
    with pytest.raises(Stop):
        run(settings, tmp_path / "parts", digits=tmp_path, observe=stop_at("epoch 2 of", 2))
    fresh_torch_state()
    run(settings, tmp_path / "parts", digits=tmp_path)
    assert_same_result(tmp_path / "parts", tmp_path / "whole")


@pytest.fixture
def other_pictures(pictures, tmp_path):
    """A copy of the folder, to be changed."""
    return shutil.copytree(pictures, tmp_path / "pictures")


def test_classes_keep_their_numbers_where_validation_lacks_one(recipe, other_pictures):
    shutil.rmtree(other_pictures / "val" / "3")
    data = load_data(recipe(data=str(other_pictures)), load_model("tiny_resnet"), None, workers=0)
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


def test_a_dataset_of_torchvision_can_be_named_instead_of_a_folder(recipe, fake, tmp_path):
    fake(3)
    outcome = run(recipe(dataset="torch/cifar10", epochs=1, cooldown_epochs=0), tmp_path)
    assert outcome.finetuned in [right / 20 for right in range(21)]


def test_images_that_do_not_fit_the_model_are_refused(recipe, fake, tmp_path):
    fake(1)
    with pytest.raises(DataError, match=r"torch/mnist cannot be made fit for tiny_resnet"):
        run(recipe(dataset="torch/mnist"), tmp_path)


def test_a_model_of_one_channel_sees_grey_pictures(recipe):
    data = load_data(recipe(), load_model("tiny_resnet", in_chans=1), None, workers=0)
    assert next(iter(data.training))[0].shape == (BATCH, 1, 64, 64)


def test_data_of_other_classes_are_refused_until_the_classifier_fits(recipe, other_pictures, tmp_path):
    shutil.rmtree(other_pictures / "train" / "9")
    shutil.rmtree(other_pictures / "val" / "9")
    with pytest.raises(DataError, match=r"has 9 classes, tiny_resnet tells 10 apart.*--num-classes 9"):
        run(recipe(data=str(other_pictures)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fresh_torch_state()
    settings = {"data": str(other_pictures), "num_classes": 9, "checkpoint": None, "epochs": 1, "cooldown_epochs": 0}
    outcome = run(recipe(**settings), tmp_path / "out")
    load_model("tiny_resnet", num_classes=9, checkpoint=outcome.weights)


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
        (empty_training, r"timm cannot open images.*Found 0 images"),
        (add_class, r"has classes that .* lacks: eleven"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_written(
    recipe, other_pictures, tmp_path, spoil, message
):
    spoil(other_pictures)
    with pytest.raises(DataError, match=message):
        run(recipe(data=str(other_pictures)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": "nowhere"}, DataError, r"no data folder nowhere.*train/"),
        ({"batch_size": 42}, DataError, r"40 images .* fewer than one batch of 42.*--batch-size"),
        ({"dataset": "wds/something"}, UnknownNameError, r"'wds/something'.*torch/NAME or hfds/NAME"),
        ({"dataset": "torch/nonsense"}, DataError, r"timm cannot open torch/nonsense.*Unknown torchvision dataset"),
        ({"dataset": "torch/cifar10"}, DataError, r"timm cannot open torch/cifar10.*not found"),
        ({"aa": "nonsense"}, UnknownNameError, r"--aa"),
        ({"opt": "adamwx"}, UnknownNameError, r"optimiser 'adamwx'.*Did you mean.*'adamw'"),
        ({"model": "tiny_resnets", "checkpoint": None}, UnknownNameError, r"tiny_resnet"),
        ({"drop": "10@7"}, ScheduleError, r"stage"),
        ({"score": "shifty"}, UnknownNameError, r"shifty"),
        ({"val_split": "exam"}, DataError, r"no folder exam\."),
    ],
)
def test_settings_that_fit_nothing_are_refused(recipe, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run(recipe(**changes), tmp_path / "out")
    assert not list(tmp_path.glob("out/state-*"))


# --- the recipe, the device, the packages -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0, "cooldown_epochs": 0}, "at least 1 epoch"),
        ({"cooldown_epochs": 3}, r"3 epochs of cool-down and 0 of warm-up leave none of 3"),
        ({"warmup_epochs": 2}, r"1 epochs of cool-down and 2 of warm-up leave none of 3"),
        ({"cooldown_epochs": -1}, "negative"),
        ({"lr": 0.0}, "--lr"),
        ({"min_lr": 1.0}, "--min-lr"),
        ({"batch_size": 0}, "--batch-size"),
        ({"batch_size": 5}, "even --batch-size"),
        ({"grad_accum_steps": 0}, "--grad-accum-steps"),
        ({"clip_grad": 0.0}, "--clip-grad"),
        ({"smoothing": 1.5}, "--smoothing"),
        ({"mixup": -1.0}, "--mixup"),
        ({"model_ema_decay": 1.0}, "--model-ema-decay"),
        ({"amp_dtype": "float8"}, "bfloat16 or float16"),
        ({"seed": -1}, "seed"),
        ({"data": "cluttered-mnist"}, "--reprob"),
        ({"data": "cluttered-mnist", "reprob": 0.0, "dataset": "torch/mnist"}, "--dataset"),
    ],
)
def test_a_number_out_of_its_range_is_refused(recipe, changes, message):
    with pytest.raises(DataError, match=message):
        recipe(**changes)


def test_a_schedule_that_is_none_is_refused(recipe):
    with pytest.raises(ScheduleError):
        recipe(drop="lots")


@pytest.mark.parametrize(("device", "message"), [("abacus", "cpu or cuda"), ("cuda", "no CUDA device.*--device cpu")])
def test_a_device_that_is_not_there_is_refused(recipe, tmp_path, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match=message):
        run(recipe(), tmp_path / "out", device=device)
    assert not (tmp_path / "out").exists()


def test_float16_on_the_cpu_is_refused(recipe, tmp_path):
    with pytest.raises(DataError, match="bfloat16"):
        run(recipe(amp=True, amp_dtype="float16"), tmp_path / "out")


def test_an_output_that_cannot_be_written_to_is_refused(recipe, tmp_path):
    (tmp_path / "taken").write_text("in the way")
    with pytest.raises(DataError, match="Cannot write to"):
        run(recipe(), tmp_path / "taken")


def test_missing_accelerate_is_told_with_how_to_install_it(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingPackageError, match=r'pip install "repshift\[train\]"') as caught:
        run(recipe(), tmp_path / "out")
    assert isinstance(caught.value, RepshiftError)
    assert not (tmp_path / "out").exists()


def test_accelerate_is_imported_inside_functions_only():
    places = [
        node.col_offset
        for path in Path(training.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "accelerate")
        or (isinstance(node, ast.Import) and any(alias.name.startswith("accelerate") for alias in node.names))
    ]
    assert places
    assert min(places) > 0


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys, recipe):
    """Run the command on the short recipe; returns exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "100")

    def command(output, *more):
        settings = {"model": "tiny_resnet", "drop": "10@0", "data": recipe().data, "epochs": 2, "lr": 1e-3}
        options = [part for key, value in settings.items() for part in (f"--{key}", value)]
        options += ["-b", BATCH, "-j", 0, "--device", "cpu", "--output", output, *more]
        monkeypatch.setattr(sys, "argv", ["repshift", "finetune", *map(str, options)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, *capsys.readouterr()

    return command


def test_the_command_prints_what_pruning_costs_and_what_fine_tuning_brings_back(command, tmp_path):
    code, out, err = command(tmp_path / "out", "--pretrained")
    assert (code, err.strip()) == (0, "")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    rows = [line.split("│") for line in out.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row[1:4]] for row in rows] == [
        ["dense", "as loaded", f"{100 * summary['accuracy']['dense']:.2f}"],
        ["pruned", "as loaded", f"{100 * summary['accuracy']['pruned']:.2f}"],
        [
            "pruned",
            f"fine-tuned, epoch {summary['best_epoch']} of 2",
            f"{100 * summary['accuracy']['finetuned']:.2f}",
        ],
    ]
    assert "model_best.safetensors" in out
    assert "summary.json" in out
    assert summary["recipe"]["cooldown_epochs"] == 0  # a tenth of 2


def test_the_command_says_that_weights_were_random(command, tmp_path):
    _, out, _ = command(tmp_path / "out")
    assert "weights were random" in out


def test_every_setting_of_a_recipe_is_an_option():
    options = inspect.signature(cli.finetune).parameters
    assert {setting.name for setting in fields(Recipe)} <= options.keys()


def test_defaults_of_the_command_are_those_of_the_recipe():
    options = inspect.signature(cli.finetune).parameters
    given = {name: option.default for name, option in options.items() if option.default is not option.empty}
    own = {setting.name: setting.default for setting in fields(Recipe) if setting.name in given}
    own["cooldown_epochs"] = None  # a tenth of the epochs, which is the recipe's 10 of 100
    assert {name: given[name] for name in own} == own


def test_the_command_tells_bad_input_in_one_line(command, tmp_path):
    code, _, err = command(tmp_path / "out", "--cooldown-epochs", 2)
    assert code == 1
    assert err.startswith("error: 2 epochs of cool-down")
    assert len(err.splitlines()) == 1


def test_an_interrupted_command_says_how_to_go_on(command, tmp_path, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(FineTuning, "_train_epoch", interrupt)
    code, out, err = command(tmp_path / "out", "--pretrained")
    assert code == 130
    assert "run the same command again to go on" in out
    assert "Traceback" not in err


CHECKED = """
import torch
from torch import distributed
from repshift.analysis import cli
from repshift.analysis.finetuning.checkpoints import Checkpoints

original = Checkpoints.save

def save(self, progress):
    own = torch.cat([value.flatten().double() for value in self.saver.model.state_dict().values()])
    every = [torch.empty_like(own) for _ in range(2)]
    distributed.all_gather(every, own)
    assert torch.equal(*every), "the processes evaluate different models"
    original(self, progress)

Checkpoints.save = save
cli.main()
"""


@pytest.mark.slow
def test_two_processes_train_one_model_and_count_every_image_once(pictures, tmp_path):
    (tmp_path / "checked.py").write_text(CHECKED)

    def launch(*program, epochs):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += [*program, "finetune", "-m", "tiny_resnet", "--pretrained", "--drop", "10@0"]
        command += ["--data", str(pictures), "--epochs", str(epochs), "--lr", "3e-3", "-b", "6", "-j", "0"]
        command += ["--device", "cpu", "--output", str(tmp_path / "out")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    done = launch(tmp_path / "checked.py", epochs=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fine-tuned, epoch") == 1  # only one of them reports
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["processes"] == 2
    dense = load_model("tiny_resnet", pretrained=True)
    tuned = load_model("tiny_resnet", checkpoint=tmp_path / "out" / "model_best.safetensors")
    assert not torch.equal(tuned.fc.weight, dense.fc.weight)
    assert summary["accuracy"] == {
        "dense": share_right(dense, pictures),
        "pruned": share_right(ShiftTracker(dense).prune("10@0"), pictures),
        "finetuned": share_right(ShiftTracker(tuned).prune("10@0"), pictures),
    }
    refused = launch("-m", "repshift", epochs=3)
    assert refused.returncode == 1
    assert "other epochs (2, now 3)" in refused.stderr
