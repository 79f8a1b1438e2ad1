from dataclasses import replace

import pytest
import torch
from torch import nn

from repshift import Recipe, Schedule, UnsupportedModelError, load_model
from repshift.analysis.subjects.macs import count_macs
from repshift.analysis.subjects.memory import MemoryExhaustedError, fitting
from repshift.analysis.subjects.methods import choose_methods
from repshift.analysis.subjects.models import ModelOptions
from repshift.analysis.subjects.recipes import apply
from repshift.analysis.throughput.comparison import Comparison
from repshift.analysis.throughput.setup import Setup

PRUNED = Recipe("0.2@0,2")


def compare(setup, pruned=PRUNED, asked=None, **options):
    dense = setup.load()
    models, _ = choose_methods(dense, pruned, asked, setup.input_size(dense))
    return Comparison(setup, models, rounds=3, warm_up=1, memory=False, **options)


@pytest.fixture(scope="module")
def rows():
    return {row["method"]: row for row in compare(Setup("tiny_vit")).run(2)}


def test_each_method_has_a_row(rows):
    assert list(rows) == ["dense", "shift", "cls_attention", "norm", "random", "mnn", "lowres", "oracle_free"]


def test_a_row_has_the_keys_of_timms_benchmark_and_the_units_they_have_there(rows):
    for row in rows.values():
        assert (row["batch_size"], row["img_size"], row["param_count"]) == (2, 64, 0.2)
        assert row["samples_per_sec"] == pytest.approx(2 / (1e-3 * row["step_time"]), rel=1e-3)
        assert row["step_time_low"] <= row["step_time"] <= row["step_time_high"]


def test_work_is_that_of_one_image_and_its_rate_that_of_all_of_them(rows):
    macs = count_macs(load_model("tiny_vit"), (3, 64, 64))
    assert rows["dense"]["gmacs"] == pytest.approx(macs / 1e9, abs=1e-4)
    assert rows["dense"]["gmacs"] > rows["shift"]["gmacs"] == rows["oracle_free"]["gmacs"]
    for row in rows.values():
        assert row["macs_per_sec"] == pytest.approx(row["gmacs"] * row["samples_per_sec"], rel=0.01)


def test_kept_tokens_are_those_of_the_schedule(rows):
    left = Schedule.of("0.2@0,2").kept(256)
    assert rows["dense"]["kept_tokens"] == [256] * 6
    assert rows["dense"]["schedule"] == ""
    for name in ("shift", "norm", "oracle_free"):
        assert rows[name]["kept_tokens"] == [left[0]] * 2 + [left[2]] * 4
        assert rows[name]["schedule"] == "0.2@0,2"


def test_dense_is_the_measure_of_speed_and_the_limit_that_of_efficiency(rows):
    assert rows["dense"]["speedup"] == 1.0
    assert rows["oracle_free"]["efficiency"] == 1.0
    # both are medians over the rounds of a ratio to the same row, turned around
    assert rows["dense"]["efficiency"] == pytest.approx(1 / rows["oracle_free"]["speedup"], rel=2e-3)


def test_a_smaller_input_is_timed_on_the_images_of_all_others(rows):
    assert rows["lowres"]["gmacs"] <= rows["shift"]["gmacs"]
    assert (rows["lowres"]["img_size"], rows["lowres"]["input_size"], rows["lowres"]["schedule"]) == (64, 56, "")
    assert rows["lowres"]["kept_tokens"] == [14 * 14] * 6
    assert Recipe.from_dict(rows["lowres"]["recipe"]) == Recipe(None, input_size=56)


def test_ratios_are_taken_round_by_round():
    comparison = compare(Setup("tiny_vit"), asked=["shift", "oracle_free"])
    seconds = {"dense": (4.0, 8.0, 40.0), "shift": (2.0, 4.0, 10.0), "oracle_free": (1.0, 4.0, 10.0)}
    row = comparison._row("shift", torch.zeros(2, 3, 64, 64), seconds, peak=3 * 2**20)
    assert (row["speedup"], row["speedup_quartiles"]) == (2.0, [2.0, 3.0])
    assert (row["efficiency"], row["efficiency_quartiles"]) == (1.0, [0.75, 1.0])
    assert (row["step_time"], row["samples_per_sec"], row["peak_memory"]) == (4000.0, 0.5, 3.0)


def test_a_dense_model_alone_has_no_efficiency():
    (row,) = compare(Setup("tiny_resnet"), None, ["dense"]).run(1)
    assert (row["speedup"], row["efficiency"], row["efficiency_quartiles"]) == (1.0, None, None)
    assert row["attention"] is None


def test_positions_of_maps_are_the_tokens_of_a_convolutional_network():
    row = compare(Setup("tiny_resnet"), Recipe("4@0"), ["shift"]).run(1)[1]
    assert row["kept_tokens"] == [28**2, 14**2, 7**2, 4**2]


def test_a_row_says_how_it_was_run():
    setup = Setup("tiny_vit", ModelOptions(img_size=32), precision="bfloat16", attention="eager", channels_last=True)
    for row in compare(setup, asked=["shift", "oracle_free"]).run(1):
        assert (row["img_size"], row["precision"], row["attention"]) == (32, "bfloat16", "eager")
        assert (row["channels_last"], row["torchcompile"]) == (True, False)


def test_every_turn_is_reported():
    comparison = compare(Setup("tiny_vit"), asked=["shift", "oracle_free"])
    reports = []
    comparison.run(1, reports.append)
    assert len(reports) == comparison.turns() == 3 * (1 + 3)
    assert reports[0] == "batch 1, warming up"
    assert reports[-1] == "batch 1, timing"


def test_methods_run_as_often_before_as_they_are_asked_to():
    setup = Setup("tiny_vit")
    model, runs = setup.load(), []
    model.register_forward_hook(lambda *_: runs.append(1))
    for warm_up in (1, 5):
        runs.clear()
        Comparison(setup, {"dense": model}, rounds=1, warm_up=warm_up, memory=False)._warm_up(
            "dense", lambda: model(torch.zeros(1, 3, 64, 64))
        )
        assert len(runs) == warm_up


def test_a_method_that_does_not_run_is_one_clear_error():
    comparison = Comparison(Setup("tiny_vit"), {"dense": nn.Linear(1, 1)}, rounds=1, warm_up=1, memory=False)
    with pytest.raises(UnsupportedModelError, match=r"tiny_vit does not run as dense .*RuntimeError.* --attention"):
        comparison._ready("dense", lambda: comparison.models["dense"](torch.zeros(2)), "eager")


class TooLarge(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return torch.empty(2**60), self.model(images)


def test_a_batch_that_does_not_fit_is_one_clear_error():
    setup = Setup("tiny_vit")
    comparison = Comparison(setup, {"dense": TooLarge(setup.load())}, memory=False)
    with pytest.raises(MemoryExhaustedError, match=r"A batch of 6 does not fit into the memory of cpu\. .*-size 3,"):
        comparison.run(6)


def test_images_that_do_not_fit_are_one_clear_error():
    with pytest.raises(MemoryExhaustedError, match=r"A batch of 100000000000 does not fit"):
        compare(Setup("tiny_vit"), asked=["dense"]).run(10**11)


def test_a_single_image_that_does_not_fit_cannot_be_halved():
    with pytest.raises(MemoryExhaustedError, match="Give smaller images"), fitting(1, "cpu"):
        torch.empty(2**60)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shape"), fitting(1, "cpu"):
        torch.empty(3) @ torch.empty(4, 2)


def test_a_model_that_the_compiler_leaves_alone_is_refused():
    with (
        torch._dynamo.config.patch(disable=True),
        pytest.raises(UnsupportedModelError, match="was not compiled as dense"),
    ):
        compare(Setup("tiny_vit", torchcompile=True), asked=["dense"]).run(1)


@pytest.mark.slow
def test_more_methods_than_dynamo_holds_graphs_for_are_all_compiled(monkeypatch):
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiler(model, backend="eager", **options))
    setup = Setup("tiny_vit", torchcompile=True)
    dense = setup.load()
    models = {"dense": dense} | {f"{count} dropped": apply(Recipe(f"{count}@0"), dense) for count in range(1, 4)}
    limit = torch._dynamo.config.recompile_limit
    with torch._dynamo.config.patch(recompile_limit=2):
        comparison = Comparison(setup, models, rounds=2, warm_up=1, memory=False)
        rows = [row for size in (1, 2) for row in comparison.run(size)]
    assert len(rows) == 2 * 4
    assert torch._dynamo.config.recompile_limit == limit


@pytest.mark.slow
def test_methods_compiled_in_earnest_are_timed():
    comparison = replace(compare(Setup("tiny_vit"), asked=["shift"]), runtimes=("eager", "compile"), count_bytes=True)
    for _ in range(2):  # what is compiled already counts all the same
        rows = comparison.run(2)
        assert [(row["method"], row["torchcompile"]) for row in rows] == [
            (method, compiled) for compiled in (False, True) for method in ("dense", "shift")
        ]
        dense, shift, compiled_dense, compiled_shift = (row["bytes_moved"] for row in rows)
        weights = 4 * sum(parameter.numel() for parameter in comparison.models["dense"].parameters())
        assert weights < compiled_dense < dense
        assert weights < compiled_shift < shift


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_reports_what_its_allocator_handed_out():
    setup = Setup("tiny_vit", device="cuda")
    models, _ = choose_methods(setup.load(), PRUNED, ["shift"], (3, 64, 64))
    rows = Comparison(setup, models, rounds=2, warm_up=1).run(64)
    weights = sum(parameter.numel() * 4 for parameter in models["dense"].parameters())
    assert all(row["peak_memory"] > (weights + 64 * 3 * 64 * 64 * 4) / 2**20 for row in rows)


def test_a_graph_that_is_compiled_anew_while_it_is_timed_is_one_clear_error():
    def call():
        raise torch._dynamo.exc.RecompileError("why")

    comparison = compare(Setup("tiny_vit"), asked=["dense"])
    with pytest.raises(UnsupportedModelError, match=r"compiled anew as shift by compile while it was timed\. Leave"):
        comparison._timed("shift", call, "compile")()
