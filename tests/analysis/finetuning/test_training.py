"""What a whole run of fine-tuning does, and what it leaves."""

import json
import math
from collections import Counter

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from repshift import Recipe, ShiftTracker, load_model, recipe_of

TRAINING, VALIDATION, BATCH, EPOCHS, RATE = 40, 23, 10, 3, 1e-3  # of the pictures and the settings


def test_a_run_measures_both_models_as_loaded_and_the_pruned_one_with_the_best_weights(
    uninterrupted, pictures, hurt, share_right
):
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


def test_without_a_moving_average_the_weights_themselves_are_evaluated_and_kept(
    make_settings, pictures, tmp_path, run, read_checkpoint, share_right
):
    outcome = run(make_settings(model_ema=False, epochs=2), tmp_path)
    tuned = load_model("tiny_resnet", checkpoint=outcome.weights)
    assert outcome.finetuned == share_right(ShiftTracker(tuned).prune("10@0"), pictures)
    best = read_checkpoint(tmp_path / "model_best.pth.tar")
    assert "state_dict_ema" not in best
    assert torch.equal(best["state_dict"]["fc.weight"], tuned.fc.weight)


def test_the_kept_weights_are_those_of_the_best_epoch(uninterrupted, read_checkpoint):
    output, outcome, _ = uninterrupted
    accuracies = [epoch["accuracy"] for epoch in json.loads((output / "summary.json").read_text())["epochs"]]
    assert outcome.best_epoch == 1 + accuracies.index(max(accuracies))
    assert outcome.finetuned == max(accuracies)
    best = read_checkpoint(output / "model_best.pth.tar")
    assert (best["epoch"], best["metric"]) == (outcome.best_epoch - 1, max(accuracies))


def test_every_kind_of_file_loads_into_the_dense_model(uninterrupted):
    output, outcome, _ = uninterrupted
    models = [load_model("tiny_resnet", checkpoint=path) for path in (outcome.weights, output / "model_best.pth.tar")]
    first, second = (model.state_dict() for model in models)
    assert first.keys() == load_model("tiny_resnet").state_dict().keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_folder_is_a_model_that_loads_as_it_was_pruned_and_trained(uninterrupted, pictures, share_right):
    output, outcome, _ = uninterrupted
    model = load_model(str(output))
    assert recipe_of(model) == outcome.recipe == Recipe("10@0", "stage", pruner="lines")
    assert share_right(model, pictures) == outcome.finetuned


def test_the_moving_average_is_what_is_kept(uninterrupted, read_checkpoint):
    output, outcome, _ = uninterrupted
    best, weights = read_checkpoint(output / "model_best.pth.tar"), load_file(outcome.weights)
    assert all(torch.equal(weights[key], value) for key, value in best["state_dict_ema"].items())
    assert not torch.equal(best["state_dict_ema"]["fc.weight"], best["state_dict"]["fc.weight"])


def test_fine_tuning_changes_every_weight(uninterrupted, hurt):
    before, after = load_model("tiny_resnet", checkpoint=hurt), load_file(uninterrupted[1].weights)
    assert not [name for name, weight in before.named_parameters() if torch.equal(weight, after[name])]


def test_the_summary_holds_the_numbers_the_settings_and_the_versions(uninterrupted, make_settings):
    output, outcome, _ = uninterrupted
    summary = json.loads((output / "summary.json").read_text())
    assert summary["accuracy"] == {key: getattr(outcome, key) for key in ("dense", "pruned", "finetuned")}
    assert summary["recipe"] == make_settings().as_dict()
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(summary["epochs"]) == EPOCHS
    assert all(0 < epoch["loss"] < 10 for epoch in summary["epochs"])


def test_the_observer_sees_every_batch_of_training_and_evaluation(uninterrupted):
    seen = Counter("training" if "loss" in what else what for what, _, _ in uninterrupted[2])
    assert seen.pop("training") == EPOCHS * TRAINING // BATCH
    assert len(seen) == 2 + EPOCHS  # dense, pruned, and one evaluation an epoch
    assert set(seen.values()) == {math.ceil(VALIDATION / BATCH)}


@pytest.mark.parametrize("accumulated", [1, 3])  # 4 batches an epoch: 4 updates, or 2, the second of one batch
def test_the_rate_follows_a_cosine_and_stays_at_its_lowest_while_cooling_down(
    make_settings, tmp_path, accumulated, run
):
    run(make_settings(epochs=3, cooldown_epochs=1, grad_accum_steps=accumulated), tmp_path)
    rates = [epoch["lr"] for epoch in json.loads((tmp_path / "summary.json").read_text())["epochs"]]
    updates = math.ceil(4 / accumulated)
    for epoch in range(2):  # the last update of each epoch
        progress = (updates * (epoch + 1) - 1) / (2 * updates)
        assert rates[epoch] == pytest.approx(1e-6 + (RATE - 1e-6) * (1 + math.cos(math.pi * progress)) / 2)
    assert rates[2:] == [1e-6]


def test_the_warm_up_rises_from_the_first_rate(make_settings, tmp_path, run):
    run(make_settings(warmup_epochs=1), tmp_path)
    first, *_ = json.loads((tmp_path / "summary.json").read_text())["epochs"]
    assert first["lr"] == pytest.approx(1e-6 + (RATE - 1e-6) * 3 / 4)  # before the last of 4 updates


def test_gradients_are_clipped_when_asked(make_settings, hurt, tmp_path, run):
    settings = {"opt": "momentum", "weight_decay": 0.0, "model_ema": False, "epochs": 1, "cooldown_epochs": 0}
    run(make_settings(**settings, batch_size=TRAINING, lr=1.0, clip_grad=1e-3), tmp_path)
    before, after = load_model("tiny_resnet", checkpoint=hurt), load_file(tmp_path / "model_best.safetensors")
    moved = torch.stack([(after[name] - weight).norm() for name, weight in before.named_parameters()]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)  # one update of rate 1


def test_mixed_precision_trains_weights_that_stay_in_float32(make_settings, tmp_path, run):
    outcome = run(make_settings(amp=True, epochs=1, cooldown_epochs=0), tmp_path)
    weights = load_file(outcome.weights)
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
    AcceleratorState._reset_state(reset_partial_state=True)
    run(make_settings(epochs=1, cooldown_epochs=0), tmp_path / "full")
    full = load_file(tmp_path / "full" / "model_best.safetensors")
    assert not torch.equal(full["fc.weight"], weights["fc.weight"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_trains_and_goes_on_on_a_gpu(make_settings, tmp_path, dtype, run, interrupt):
    settings = make_settings(amp=True, amp_dtype=dtype)
    interrupt(settings, tmp_path, "epoch 2 of", 2, device="cuda")
    outcome = run(settings, tmp_path, device="cuda")
    assert {value.dtype for value in load_file(outcome.weights).values()} == {torch.float32, torch.int64}


def test_a_vision_transformer_can_be_fine_tuned_too(make_settings, tmp_path, run):
    outcome = run(
        make_settings(model="tiny_vit", checkpoint=None, drop="0.2@0,2", epochs=1, cooldown_epochs=0), tmp_path
    )
    load_model("tiny_vit", checkpoint=outcome.weights)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    make_settings, uninterrupted, tmp_path, run, assert_same_result
):
    run(make_settings(), tmp_path / "same")
    assert_same_result(tmp_path / "same", uninterrupted[0])
    run(make_settings(seed=1), tmp_path / "other")
    expected, other = (
        load_file(folder / "model_best.safetensors") for folder in (uninterrupted[0], tmp_path / "other")
    )
    assert not torch.equal(expected["fc.weight"], other["fc.weight"])
