"""A run that is stopped at any moment goes on to the same result."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch
from timm.utils import CheckpointSaver
from torch import nn

from repshift import CheckpointError, DataError, Recipe
from repshift.analysis.finetuning import settings
from repshift.analysis.finetuning.checkpoints import Checkpoints
from repshift.analysis.finetuning.training import DivergenceError, FineTuning


@pytest.fixture(scope="module")
def left_behind(make_settings, new_process, interrupt, tmp_path_factory):
    """What a run that stopped in its second epoch leaves."""
    output = tmp_path_factory.mktemp("left")
    new_process()
    interrupt(make_settings(), output, "epoch 2 of", 2)
    return output


@pytest.fixture
def interrupted(left_behind, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(left_behind, tmp_path / "interrupted")


@pytest.mark.parametrize(
    ("what", "step"), [("dense", 2), ("epoch 1 of", 3), ("epoch 2 of", 1), ("epoch 2, evaluation", 2), ("3 of", 4)]
)
def test_a_run_stopped_while_computing_goes_on_to_the_same_result(
    make_settings, uninterrupted, tmp_path, what, step, run, interrupt, assert_same_result
):
    interrupt(make_settings(), tmp_path, what, step)
    run(make_settings(), tmp_path)
    assert_same_result(tmp_path, uninterrupted[0])


def stop_in(monkeypatch, stop, owner, name, call, early):
    """Stop at a call of a method, before or after it has done its work."""
    original, calls = getattr(owner, name), []

    def stopping(*args, **kwargs):
        calls.append(name)
        if early and len(calls) == call:
            raise stop
        result = original(*args, **kwargs)
        if len(calls) == call:
            raise stop
        return result

    monkeypatch.setattr(owner, name, stopping)


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
    make_settings,
    uninterrupted,
    tmp_path,
    monkeypatch,
    owner,
    name,
    call,
    early,
    run,
    new_process,
    assert_same_result,
    stop,
):
    with monkeypatch.context() as patch:
        stop_in(patch, stop, owner, name, call, early)
        with pytest.raises(stop):
            run(make_settings(), tmp_path)
    new_process()
    run(make_settings(), tmp_path)
    assert_same_result(tmp_path, uninterrupted[0])


def test_a_state_that_is_only_half_written_is_not_taken(
    make_settings, uninterrupted, interrupted, run, assert_same_result
):
    unfinished = shutil.copytree(interrupted / "state-1", interrupted / ".unfinished-state")
    (unfinished / "optimizer.bin").write_bytes(b"PK")
    run(make_settings(), interrupted)
    assert_same_result(interrupted, uninterrupted[0])


def test_loader_workers_draw_the_same_after_an_interruption(
    make_settings, tmp_path, run, interrupt, new_process, assert_same_result
):
    settings = make_settings(aa="rand-m9-mstd0.5-inc1")
    run(settings, tmp_path / "whole", workers=2)
    new_process()
    interrupt(settings, tmp_path / "parts", "epoch 3 of", 2, workers=2)
    run(settings, tmp_path / "parts", workers=2)
    assert_same_result(tmp_path / "parts", tmp_path / "whole")


def test_a_resumed_run_repeats_nothing_that_is_done(make_settings, interrupted, run):
    seen = []
    run(make_settings(), interrupted, observe=lambda what, step, steps: seen.append(what.partition(",")[0]))
    assert set(seen) == {f"epoch {epoch}{part}" for epoch in (2, 3) for part in ("", " of 3")}


def test_a_finished_run_is_only_reported_again(make_settings, uninterrupted, tmp_path, run, assert_same_result):
    output = shutil.copytree(uninterrupted[0], tmp_path / "finished")
    seen = []
    outcome = run(make_settings(), output, observe=lambda *step: seen.append(step))
    assert not seen
    assert asdict(outcome) | {"weights": 0} == asdict(uninterrupted[1]) | {"weights": 0}
    assert_same_result(output, uninterrupted[0])


def test_starting_anew_forgets_the_state(
    make_settings, uninterrupted, interrupted, run, new_process, assert_same_result
):
    seen = []
    run(make_settings(), interrupted, resume=False, observe=lambda what, step, steps: seen.append(what))
    assert any("dense" in what for what in seen)
    assert_same_result(interrupted, uninterrupted[0])
    new_process()
    run(make_settings(epochs=1, cooldown_epochs=0), interrupted, resume=False)
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
        ({"recipe": Recipe("10@0", keep="bottom")}, r"other keep \(top, now bottom\)"),
    ],
)
def test_a_state_of_other_settings_is_refused_and_kept(make_settings, interrupted, change, message, run):
    before = contents(interrupted)
    with pytest.raises(CheckpointError, match=message + r".*--output.*--no-resume"):
        run(make_settings(**change), interrupted)
    assert contents(interrupted) == before


def test_a_state_from_before_recipe_files_goes_on(make_settings, interrupted, run):
    (state,) = interrupted.glob("state-*")
    progress = json.loads((state / "progress.json").read_text())
    del progress["recipe"]["keep"]
    (state / "progress.json").write_text(json.dumps(progress))
    seen = []
    run(make_settings(), interrupted, observe=lambda what, step, steps: seen.append(what))
    assert "epoch 1" not in " ".join(seen)


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
        ("optimizer.bin", b"\x80\x04K\x01."),
        ("optimizer.bin", b"PK\x03\x04" + b"junk" * 99),
        ("progress.json", b"[" * 100_000),
        ("progress.json", b"\xff\xfe"),
        ("progress.json", b'{"recipe": [1], "processes": {}, "before": [], "epochs": 3}'),
        ("ema.safetensors", None),
    ],
)
def test_a_damaged_state_is_refused_with_what_to_do(make_settings, interrupted, name, content, run):
    path = interrupted / "state-1" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state-1 is not a readable state.*--no-resume"):
        run(make_settings(), interrupted)


@pytest.mark.parametrize("content", [b"", b"junk" * 99, b"PK\x03\x04junk", b"\x80\x04K\x01."])
def test_damaged_weights_are_refused_with_what_to_do(make_settings, uninterrupted, tmp_path, content, run, monkeypatch):
    output = shutil.copytree(uninterrupted[0], tmp_path / "finished")
    monkeypatch.setattr(Checkpoints, "_write_weights", lambda *_: None)
    (output / "model_best.pth.tar").write_bytes(content)
    before = contents(output)
    with pytest.raises(CheckpointError, match=r"model_best\.pth\.tar is damaged.*--no-resume"):
        run(make_settings(), output)
    assert contents(output) == before


def test_a_state_that_is_a_link_is_refused_and_not_deleted(make_settings, interrupted, tmp_path, run):
    (interrupted / "state-1").rename(tmp_path / "elsewhere")
    (interrupted / "state-1").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    for resume in (True, False):
        with pytest.raises(DataError, match="state-1 is a link"):
            run(make_settings(), interrupted, resume=resume)
    assert contents(tmp_path / "elsewhere") == before


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    make_settings, uninterrupted, tmp_path, monkeypatch, run, new_process, assert_same_result
):
    with monkeypatch.context() as patch:
        original = CheckpointSaver._save

        def save(self, path, epoch, metric=None):
            if epoch == 1:
                raise OSError(28, "No space left on device")
            original(self, path, epoch, metric)

        patch.setattr(CheckpointSaver, "_save", save)
        with pytest.raises(DataError, match=r"cannot be written.*No space left.*the same command goes on"):
            run(make_settings(), tmp_path)
    new_process()
    run(make_settings(), tmp_path)
    assert_same_result(tmp_path, uninterrupted[0])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state(
    make_settings, uninterrupted, tmp_path, monkeypatch, run, new_process, assert_same_result
):
    class Diverging(nn.Module):
        calls = 0

        def forward(self, logits, labels):
            type(self).calls += 1
            scale = math.inf if self.calls == 7 else 1
            return scale * torch.sum(-labels * logits.log_softmax(-1), -1).mean()

    with monkeypatch.context() as patch:
        patch.setattr(settings, "SoftTargetCrossEntropy", Diverging)
        with pytest.raises(DivergenceError, match=r"The loss is inf.*--lr"):
            run(make_settings(), tmp_path)
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-1"]
    new_process()
    run(make_settings(), tmp_path)
    assert_same_result(tmp_path, uninterrupted[0])


def test_weights_that_are_not_finite_are_not_saved(make_settings, tmp_path, monkeypatch, run):
    original = FineTuning._step

    def overflow(self, images, labels):
        loss = original(self, images, labels)
        self.pruned.fc.bias.data[3] = math.inf
        return loss

    monkeypatch.setattr(FineTuning, "_step", overflow)
    with pytest.raises(DivergenceError, match="weights are no longer finite"):
        run(make_settings(batch_size=40), tmp_path)  # one update an epoch, so that no later loss shows it
    assert not list(tmp_path.glob("state-*"))


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_result(make_settings, uninterrupted, tmp_path, run, assert_same_result):
    script = (
        "import json, sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from repshift.analysis.finetuning.training import finetune\n"
        "from repshift import Recipe\n"
        "from repshift.analysis.finetuning.settings import TrainingSettings\n"
        "settings = json.loads(sys.argv[1])\n"
        "settings['recipe'] = Recipe.from_dict(settings['recipe'])\n"
        "finetune(TrainingSettings(**settings), Path(sys.argv[2]), workers=0, device='cpu')"
    )
    settings = {**asdict(make_settings()), "recipe": make_settings().recipe.to_dict()}
    process = subprocess.Popen([sys.executable, "-c", script, json.dumps(settings), str(tmp_path)])
    until = time.monotonic() + 100
    while not list(tmp_path.glob("state-*")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("state-*"))
    run(make_settings(), tmp_path)
    assert_same_result(tmp_path, uninterrupted[0])
