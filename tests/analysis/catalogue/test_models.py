import csv

import pytest
import timm
import torch
from torch import nn

from repshift.analysis.catalogue import checking, records, sources
from repshift.analysis.catalogue.checking import looked_at, numbers_of
from repshift.analysis.output.results import read_results

# One of each kind: prefix tokens, lines, lines of which only a multiple can go, windows, mixing of tokens
SLICE = "vit_tiny_patch16_224,resnet18,resnetaa50,swin_tiny_patch4_window7_224,mixer_s32_224,torchvision/mnasnet0_5"


@pytest.fixture
def rows(run_command, tmp_path):
    """What a check of the slice writes, by model."""
    code, out, err = run_command("models", SLICE, "--check", "--results-file", "m.csv", "--page", "m.md")
    assert (code, err) == (0, "")
    with (tmp_path / "m.csv").open() as file:
        return {row["model"]: row for row in csv.DictReader(file)}, out, (tmp_path / "m.md").read_text()


def test_models_are_checked_and_told_in_rows_and_on_a_page(rows, tmp_path):
    found, out, page = rows
    assert {name: row["state"] for name, row in found.items()} == {
        "mixer_s32_224": "tracked",
        "resnet18": "pruned",
        "resnetaa50": "pruned",
        "swin_tiny_patch4_window7_224": "tracked",
        "torchvision/mnasnet0_5": "pruned",
        "vit_tiny_patch16_224": "pruned",
    }
    deit, resnet = found["vit_tiny_patch16_224"], found["resnet18"]
    assert (deit["schedule"], deit["kept"], deit["numbers"]) == ("0.2@0,3,6", "157 126 101", "equal")
    assert (resnet["schedule"], resnet["kept"], resnet["numbers"]) == ("0.1@0,1", "2601 576", "equal")  # 51², 24²
    assert (found["resnetaa50"]["schedule"], found["resnetaa50"]["kept"]) == (
        "0.1@0,1",
        "2304 400",
    )  # multiples of 8, 4
    assert found["swin_tiny_patch4_window7_224"]["why"].startswith("it attends within windows")
    assert "4 pruned" in out
    assert "2 tracked" in out
    assert "| timm | 5 | 3 | 2 |  |  |" in page
    assert "| torchvision | 1 | 1 |  |  |  |" in page
    assert "| swin_transformer | 1 |  | 1 |  |  | it attends within windows" in page
    assert not list(tmp_path.glob("*.partial"))


def test_without_check_models_are_only_described(run_command, monkeypatch):
    monkeypatch.setattr(nn.Module, "__call__", lambda *args, **kwargs: pytest.fail("a model ran"))
    code, out, _ = run_command("models", "vit_tiny_patch16_224,*vgg11", "--results-file", "m.json")
    assert code == 0
    found = {row["model"]: row for row in read_results("m.json").rows}
    assert found["vit_tiny_patch16_224"]["state"] == "pruned"
    assert found["torchvision/vgg11"]["why"].startswith("it has no shortcuts")
    assert "torchvision/vgg11" in out


def test_an_unknown_pattern_has_the_closest_names(run_command):
    code, _, err = run_command("models", "resnet18,vit_tny_patch16_224")
    assert code == 1
    assert "'vit_tny_patch16_224'" in err
    assert "vit_tiny_patch16_224" in err.partition("Did you mean")[2]


def test_a_model_that_raises_is_a_row_and_not_the_end(run_command, monkeypatch):
    create = timm.create_model

    def broken(name, **options):
        if name == "resnet18":
            raise ZeroDivisionError("of its own")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", broken)
    assert run_command("models", "resnet18,resnet26", "--results-file", "m.json")[0] == 0
    first, second = read_results("m.json").rows
    assert (first["state"], first["why"]) == ("refused", "ZeroDivisionError: of its own")
    assert second["state"] == "pruned"


def test_other_numbers_of_tokens_than_predicted_are_wrong(run_command, monkeypatch):
    predicted = checking._predicted
    monkeypatch.setattr(checking, "_predicted", lambda *args: {**predicted(*args), "blocks.6": 102})
    assert run_command("models", "vit_tiny_patch16_224", "--check", "--results-file", "m.json")[0] == 1
    (row,) = read_results("m.json").rows
    assert row["state"] == "wrong"
    assert "expected {'blocks.0': 157, 'blocks.3': 126, 'blocks.6': 102}" in row["why"]


def test_a_cut_whose_places_nobody_knows_is_looked_for_by_its_shape(monkeypatch):
    row = checking.looked_at("inception_v3", check=True)
    assert (row["state"], row["kept"], row["map"]) == ("pruned", "1024", "in part")
    assert row["why"] == "where the lines behind Mixed_6e stood is not known"
    monkeypatch.setattr(checking, "_sides", lambda *args: {"Mixed_5d": (35, 35), "Mixed_6e": (17, 17)})
    assert "nothing went behind Mixed_6e" in checking.looked_at("inception_v3", check=True)["why"]


def test_lines_of_maps_that_travel_as_sequences_are_predicted():
    row = checking.looked_at("xcit_nano_12_p16_224", check=True)
    assert (row["state"], row["kept"]) == ("pruned", "144 100 64")


def test_other_numbers_than_the_dense_models_are_wrong(monkeypatch):
    built = []
    monkeypatch.setattr(checking, "build", lambda *args: built[-1])
    options = {"img_size": 224, "patch_size": 56, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    built.append(timm.models.VisionTransformer(**options).eval())
    assert numbers_of("small", "0.2@0", None) == {"numbers": "equal"}
    built.append(timm.models.VisionTransformer(**options).eval())
    built[-1].blocks[1].norm1 = OverTheBatch()
    found = numbers_of("small", "0.2@0", None)
    assert found["state"] == "wrong"
    assert "other numbers image 0 alone" in found["why"]


class OverTheBatch(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def test_a_share_of_less_than_one_line_is_no_cut():
    row = looked_at("tinynet_d", check=True)  # whose second stage with a shortcut has nine lines
    assert (row["state"], row["kept"]) == ("pruned", "81")


def test_what_cannot_be_tracked_by_itself_either_says_both_reasons():
    row = looked_at("torchvision/vgg11", check=True)
    assert row["state"] == "refused"
    assert row["why"].startswith("it has no shortcuts")
    assert "no repeated blocks" in row["why"]


def test_a_run_that_was_interrupted_goes_on(run_command, monkeypatch, tmp_path):
    seen = []

    def look(name, *, check):
        seen.append(name)
        if name == "resnet26" and seen.count(name) == 1:
            raise KeyboardInterrupt
        return looked_at(name, check=False)

    monkeypatch.setattr(records, "looked_at", look)
    run = ("models", "resnet18,resnet26,resnet34", "--results-file", "m.csv")
    assert run_command(*run)[0] == 130
    assert not (tmp_path / "m.csv").exists()
    code, _, err = run_command(*run)
    assert code == 1
    assert "--resume" in err
    code, _, err = run_command(*run[:1], "resnet18", *run[2:], "--resume")
    assert code == 1
    assert "belong to another run" in err
    assert run_command(*run, "--resume")[0] == 0
    assert seen == ["resnet18", "resnet26", "resnet26", "resnet34"]
    assert (tmp_path / "m.csv").read_text().count("pruned") == 3
    assert not list(tmp_path.glob("*.partial"))


def test_page_and_results_are_two_files(run_command):
    code, _, err = run_command("models", "resnet18", "--results-file", "m.md", "--page", "m.md")
    assert code == 1
    assert "Give two names" in err


def test_the_smallest_of_each_family_and_class_runs_on_real_tensors():
    row = {"state": "pruned", "family": "resnet", "class": "ResNet"}
    rows = [{**row, "params": 3}, {**row, "params": 2}, {**row, "class": "Other", "params": 9}]
    rows += [{**row, "params": 1, "state": "tracked"}]
    assert records.smallest(rows) == [1, 2]


def test_models_that_compute_their_widths_by_tensors_are_built_all_the_same():
    model = sources.build("torchvision/regnet_x_400mf")
    assert {each.device for each in model.parameters()} == {torch.device("meta")}
