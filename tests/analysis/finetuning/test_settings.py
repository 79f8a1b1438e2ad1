"""Settings, devices and packages that fine-tuning refuses."""

import ast
import sys
from pathlib import Path

import pytest
import torch

from repshift import DataError, RepshiftError, ScheduleError, UnknownNameError
from repshift.analysis.finetuning import training
from repshift.errors import MissingPackageError


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
def test_settings_that_fit_nothing_are_refused(make_settings, tmp_path, changes, error, message, run):
    with pytest.raises(error, match=message):
        run(make_settings(**changes), tmp_path / "out")
    assert not list(tmp_path.glob("out/state-*"))


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
def test_a_number_out_of_its_range_is_refused(make_settings, changes, message):
    with pytest.raises(DataError, match=message):
        make_settings(**changes)


def test_a_schedule_that_is_none_is_refused(make_settings):
    with pytest.raises(ScheduleError):
        make_settings(drop="lots")


@pytest.mark.parametrize(("device", "message"), [("abacus", "cpu or cuda"), ("cuda", "no CUDA device.*--device cpu")])
def test_a_device_that_is_not_there_is_refused(make_settings, tmp_path, monkeypatch, device, message, run):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match=message):
        run(make_settings(), tmp_path / "out", device=device)
    assert not (tmp_path / "out").exists()


def test_float16_on_the_cpu_is_refused(make_settings, tmp_path, run):
    with pytest.raises(DataError, match="bfloat16"):
        run(make_settings(amp=True, amp_dtype="float16"), tmp_path / "out")


def test_an_output_that_cannot_be_written_to_is_refused(make_settings, tmp_path, run):
    (tmp_path / "taken").write_text("in the way")
    with pytest.raises(DataError, match="Cannot write to"):
        run(make_settings(), tmp_path / "taken")


def test_missing_accelerate_is_told_with_how_to_install_it(make_settings, tmp_path, monkeypatch, run):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingPackageError, match=r'pip install "repshift\[train\]"') as caught:
        run(make_settings(), tmp_path / "out")
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
