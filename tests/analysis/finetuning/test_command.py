"""``repshift finetune``."""

import inspect
import json
from dataclasses import fields

import pytest

from repshift.analysis import cli
from repshift.analysis.finetuning.settings import Recipe
from repshift.analysis.finetuning.training import FineTuning


@pytest.fixture
def command(monkeypatch, run_command, recipe):
    """Run the command on the short recipe; returns exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "100")

    def command(output, *more):
        settings = {"model": "tiny_resnet", "drop": "10@0", "data": recipe().data, "epochs": 2, "lr": 1e-3}
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


def test_an_interrupted_command_says_how_to_go_on(command, tmp_path, monkeypatch, interrupt):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(FineTuning, "_train_epoch", interrupt)
    code, out, err = command(tmp_path / "out", "--pretrained")
    assert code == 130
    assert "run the same command again to go on" in out
    assert "Traceback" not in err
