"""Training a Vision Mamba: gradients, stochastic depth, and what timm's optimisers make of its parameters."""

import copy
import pickle

import pytest
import torch
from timm.optim import create_optimizer_v2


def test_gradients_reach_every_parameter(build, images_for):
    model = build().train()
    model(images_for(model)).square().sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_whole_layers_are_dropped_while_training_only(build, images_for):
    model = build(drop_path_rate=0.5)
    images = images_for(model, batch=8)
    with torch.no_grad():
        assert torch.equal(model(images), build()(images))
        model.train()
        assert not torch.equal(model(images), model(images))


def test_without_stochastic_depth_training_computes_what_evaluation_does(build, images_for):
    model = build()
    images = images_for(model)
    with torch.no_grad():
        assert torch.equal(model.train()(images), model.eval()(images))


def test_the_rates_rise_linearly_from_the_first_change_to_the_last(create):
    model = create(depth=4, drop_path_rate=0.3)
    # a layer drops the change of the one before it, the last change is dropped behind them all
    parts = [*(layer.drop_path for layer in model.layers), model.drop_path]
    rates = [getattr(part, "drop_prob", 0.0) for part in parts]
    assert rates == pytest.approx([0, 0, 0.1, 0.2, 0.3])


def test_the_embedding_itself_is_never_dropped(states, build, images_for):
    model = build(drop_path_rate=0.9).train()
    images = images_for(model, batch=16)
    streams = [state.residual for state in states(model, images)[:1]]
    assert torch.equal(streams[0], states(model.eval(), images)[0].residual)


@pytest.mark.parametrize("build_copy", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_the_same(build_copy, build, images_for):
    model = build()
    images = images_for(model)
    assert torch.equal(build_copy(model)(images), model(images))


def test_timm_s_optimisers_spare_states_tokens_biases_and_norms_from_decay(create):
    model = create()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1)
    decays = {id(value): group["weight_decay"] for group in optimizer.param_groups for value in group["params"]}
    decaying = {name for name, value in model.named_parameters() if decays[id(value)]}
    parts = ("in_proj", "out_proj", "conv1d", "conv1d_b", "x_proj", "x_proj_b", "dt_proj", "dt_proj_b")
    assert decaying == {
        "patch_embed.proj.weight",
        "head.weight",
        *(f"layers.{layer}.mixer.{part}.weight" for layer in range(3) for part in parts),
    }
