"""``repshift finetune``."""

import inspect
import json
from dataclasses import MISSING, fields

import pytest
import torch

from repshift import Recipe, load_model, recipe_of
from repshift.analysis import cli
from repshift.analysis.finetuning.settings import TrainingSettings
from repshift.analysis.finetuning.training import FineTuning


@pytest.fixture
def command(monkeypatch, run_command, make_settings):
    """Run the command on the settings of the short run; returns exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "100")

    def command(output, *more, model="tiny_resnet", drop="10@0"):
        settings = {"model": model, "data": make_settings().data, "epochs": 2, "lr": 1e-3}
        settings |= {} if drop is None else {"drop": drop}
        options = [part for key, value in settings.items() for part in (f"--{key}", value)]
        options += ["-b", 10, "-j", 0, "--device", "cpu", "--output", output, *more]
        return run_command("finetune", *options)

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


def test_a_file_says_what_the_options_say(command, tmp_path, new_process):
    Recipe("10@0", score="norm").save(tmp_path / "mine.json")
    by_options = ("--pretrained", "--epochs", 1, "--score", "norm")
    assert command("a", *by_options)[0] == 0
    new_process()
    assert command("b", "--pretrained", "--epochs", 1, "--recipe", "mine.json", drop=None)[0] == 0
    for name in ("summary.json", "repshift.json", "model_best.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("drop", "options", "message"),
    [
        (None, [], "nothing is dropped. Give --drop"),
        (None, ["--score", "norm"], "nothing to choose by --score"),
        ("10@0", ["--recipe", "mine.json"], "Got --drop beside --recipe mine.json"),
        (None, ["--recipe", "mine.json", "--pruner", "positions"], "Got --pruner beside --recipe mine.json"),
        (None, ["--recipe", "missing.json"], "missing.json does not exist"),
        (None, ["--recipe", "words.json"], "words.json"),
    ],
)
def test_a_recipe_is_said_once_and_in_full(command, tmp_path, drop, options, message):
    Recipe("10@0", score="norm").save(tmp_path / "mine.json")
    (tmp_path / "words.json").write_text("10@0")
    code, _, err = command(tmp_path / "out", *options, drop=drop)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_model_that_was_fine_tuned_is_fine_tuned_again_from_its_folder(command, tmp_path, new_process):
    code, out, _ = command("first", "--pretrained", "--epochs", 1, drop="2@0::2")
    assert code == 0
    assert "2@0,2 dropped" in out
    first = load_model(f"{tmp_path}/first")
    new_process()
    code, out, _ = command("second", "--epochs", 1, model="./first", drop=None)
    assert code == 0
    assert "2@0,2 dropped" in out
    assert "random" not in out
    before, after = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("first", "second"))
    assert after["accuracy"]["pruned"] == before["accuracy"]["finetuned"]
    assert (tmp_path / "second" / "repshift.json").read_bytes() == (tmp_path / "first" / "repshift.json").read_bytes()
    second = load_model(f"{tmp_path}/second")
    assert recipe_of(second) == recipe_of(first) == Recipe("2@0,2", "stage", pruner="lines")
    assert not torch.equal(first.fc.weight, second.fc.weight)


def test_every_setting_of_a_run_is_an_option():
    options = inspect.signature(cli.finetune).parameters
    assert {setting.name for setting in fields(TrainingSettings)} <= options.keys()


def test_defaults_of_the_command_are_those_of_a_run():
    options = inspect.signature(cli.finetune).parameters
    given = {name: option.default for name, option in options.items() if option.default is not option.empty}
    own = {setting.name: setting.default for setting in fields(TrainingSettings) if setting.name in given}
    assert own.pop("recipe") is MISSING  # what the options for pruning come to
    own["cooldown_epochs"] = None  # a tenth of the epochs, which is 10 of 100
    assert {name: given[name] for name in own} == own


def test_the_command_tells_bad_input_in_one_line(command, tmp_path):
    code, _, err = command(tmp_path / "out", "--cooldown-epochs", 2)
    assert code == 1
    assert err.startswith("error: 2 epochs of cool-down")
    assert len(err.splitlines()) == 1


def test_an_interrupted_command_says_how_to_go_on(command, tmp_path, monkeypatch, interrupt):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(FineTuning, "_train_epoch", interrupt)
    code, out, err = command(tmp_path / "out", "--pretrained")
    assert code == 130
    assert "run the same command again to go on" in out
    assert "Traceback" not in err
