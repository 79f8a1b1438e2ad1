"""The pruned model is a model like any other, which shares the weights of the one it was made from."""

import copy
import inspect
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelThingsBlock
from torch import nn
from torch.nn.utils.prune import random_unstructured

from repshift import ShiftTracker, UnsupportedModelError, dense
from repshift.participants import participants

SCHEDULE = {0: 0.2, 1: 5, 2: 0.2}
MODELS = {
    "class token": {},
    "distillation token": {"model_class": VisionTransformerDistilled},
    "parallel branches": {"block_fn": ParallelThingsBlock},
}


@pytest.fixture
def pruned(vit):
    return ShiftTracker(vit).prune(SCHEDULE)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_pruned_has_the_class_and_the_keys_of_the_model(build_vit, options):
    model = build_vit(**options)
    pruned = ShiftTracker(model).prune(SCHEDULE)
    assert isinstance(pruned, type(model))
    assert list(pruned.state_dict()) == list(model.state_dict())
    assert [name for name, _ in pruned.named_modules()] == [name for name, _ in model.named_modules()]


def test_modules_of_the_pruned_model_are_instances_of_the_classes_they_had(vit, pruned):
    for name, module in vit.named_modules():
        assert isinstance(pruned.get_submodule(name), type(module))


def test_pruned_shares_the_storage_of_every_parameter_and_buffer(vit, pruned, tensors):
    vit.register_buffer("extra", torch.ones(2))
    pruned = ShiftTracker(vit).prune(SCHEDULE)
    own, shared = tensors(vit), tensors(pruned)
    assert shared.keys() == own.keys()
    assert all(shared[name].data_ptr() == own[name].data_ptr() for name in own)


def test_loading_weights_into_the_model_loads_them_into_the_pruned(build_vit, vit, pruned, images):
    other = build_vit()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    vit.load_state_dict(other.state_dict())
    assert torch.equal(pruned(images), ShiftTracker(other).prune(SCHEDULE)(images))


def test_several_pruned_models_of_one_model_do_not_disturb_each_other(vit, images):
    tracker = ShiftTracker(vit)
    one, other = tracker.prune({0: 0.2}), tracker.prune({0: 0.5, 2: 10})
    expected = one(images)
    other(images)
    assert torch.equal(one(images), expected)
    assert other.forward_features(images).shape[1] == 1 + 22


def test_a_deepcopy_of_the_pruned_has_its_own_weights_and_the_same_outputs(pruned, images):
    copied = copy.deepcopy(pruned)
    expected = pruned(images)
    assert torch.equal(copied(images), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(pruned(images), expected)


def test_a_deepcopy_of_the_pruned_prunes(pruned, images):
    # 64 -> 52 -> 47 -> 38
    assert copy.deepcopy(pruned).forward_features(images).shape[1] == 1 + 38


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_pruned_survives_pickle(build_vit, images, options):
    pruned = ShiftTracker(build_vit(**options), residual=True).prune(SCHEDULE)
    assert torch.equal(pickle.loads(pickle.dumps(pruned))(images), pruned(images))


def test_a_pickled_pruned_model_runs_in_a_fresh_process(pruned, images, tmp_path):
    torch.save(pruned, tmp_path / "pruned.pt")
    torch.save(images, tmp_path / "images.pt")
    program = (
        "import torch; torch.set_num_threads(1);"
        "model = torch.load('pruned.pt', weights_only=False); images = torch.load('images.pt');"
        "torch.save(model(images).detach(), 'logits.pt')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), pruned(images))


def test_the_state_dict_of_the_pruned_loads_with_weights_only(vit, pruned, tmp_path):
    torch.save(pruned.state_dict(), tmp_path / "weights.pt")
    loaded = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(torch.equal(loaded[name], value) for name, value in vit.state_dict().items())


@pytest.mark.parametrize("operation", ["attn", "mlp", "block"])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_gradients_reach_every_parameter_that_the_dense_model_s_reach(build_vit, images, reached, options, operation):
    model = build_vit(**options)
    pruned = ShiftTracker(model, operation=operation).prune(SCHEDULE)
    assert reached(pruned, images) == reached(model, images)


def test_training_the_pruned_lowers_its_loss_and_moves_the_shared_weights(vit, pruned, images):
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=1e-3)
    before = vit.head.weight.detach().clone()
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(pruned.train()(images), torch.tensor([0, 1, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(vit.head.weight, before)


def test_scores_carry_no_gradient(vit, images):
    seen = []

    def watching(before, after):
        seen.append(before.requires_grad or after.requires_grad)
        return (after - before).norm(dim=-1)

    ShiftTracker(vit, distance=watching).prune({0: 0.2})(images)
    assert seen == [False]


def test_gradient_checkpointing_gives_the_same_gradients(vit, pruned, images):
    parameters = list(pruned.parameters())
    expected = torch.autograd.grad(pruned(images).square().sum(), parameters)
    pruned.set_grad_checkpointing()
    actual = torch.autograd.grad(pruned(images).square().sum(), parameters)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_forward_features_and_head_add_up_to_the_forward(pruned, images):
    features = pruned.forward_features(images)
    assert features.shape == (3, 1 + 38, 32)
    assert torch.equal(pruned.forward_head(features), pruned(images))


def test_timm_resolves_the_same_data_config_for_the_pruned():
    model = timm.create_model("deit_tiny_patch16_224", depth=2, embed_dim=24).eval()
    pruned = ShiftTracker(model).prune({0: 0.2})
    assert timm.data.resolve_model_data_config(pruned) == timm.data.resolve_model_data_config(model)


def test_the_classifier_of_the_pruned_can_be_replaced_without_touching_the_model(vit, pruned, images):
    pruned.reset_classifier(3)
    assert pruned(images).shape == (3, 3)
    assert vit(images).shape == (3, 10)


def test_pruned_trains_under_distributed_data_parallel(pruned, images, tmp_path):
    expected = pruned(images)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(pruned)
        logits = parallel(images)
        logits.square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(logits, expected)
    assert all(parameter.grad is not None for parameter in pruned.parameters())


def test_pruned_runs_in_inference_mode(pruned, images):
    with torch.inference_mode():
        logits = pruned(images)
    assert torch.equal(logits, pruned(images))


def test_images_given_by_keyword_are_pruned_too(pruned, images):
    assert torch.equal(pruned(x=images), pruned(images))


def test_a_model_with_results_left_on_it_can_be_pruned(vit, images):
    random_unstructured(vit.blocks[0].mlp.fc1, "weight", 0.5)  # its weight is now a result
    vit.cache = vit(images)
    pruned = ShiftTracker(vit).prune({3: 1})
    assert pruned(images).shape == vit.cache.shape


def test_what_cannot_be_copied_is_named_as_the_obstacle(vit, images):
    class Keeper:
        def hook(self, module, args, output):
            self.output = output

    vit.blocks[0].register_forward_hook(Keeper().hook)
    vit(images)
    with pytest.raises(UnsupportedModelError, match=r"cannot be copied.*hook that stores outputs.*remove it"):
        ShiftTracker(vit).prune({0: 0.2})


@pytest.mark.parametrize("method", ["forward_intermediates", "get_intermediate_layers"])
def test_what_lays_tokens_out_on_the_grid_is_refused_since_some_are_gone(vit, images, method):
    pruned = ShiftTracker(vit).prune({0: 0.75})  # 16 tokens are left, which would fit a grid of 4x4
    with pytest.raises(UnsupportedModelError, match=f"{method}.*has dropped some.*forward_features"):
        getattr(copy.deepcopy(pruned), method)(images)


@pytest.mark.parametrize("options", [{}, {"restore": True}], ids=["dropped", "restored"])
def test_pruned_modules_have_the_signatures_that_they_had(vit, options):
    pruned = ShiftTracker(vit).prune(SCHEDULE, **options)
    for name, module in vit.named_modules():
        assert inspect.signature(pruned.get_submodule(name).forward) == inspect.signature(module.forward)


@pytest.mark.parametrize(
    "shapes", [lambda batch: {"x": {0: batch}}, lambda batch: ({0: batch},)], ids=["name", "place"]
)
@pytest.mark.parametrize("options", [{}, {"restore": True}], ids=["dropped", "restored"])
def test_batches_of_any_size_go_through_one_exported_model(vit, images, options, shapes):
    pruned = ShiftTracker(vit).prune(SCHEDULE, **options)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(pruned, (images,), dynamic_shapes=shapes(batch), strict=False).module()
    torch.testing.assert_close(exported(images[:2]), pruned(images[:2]))


def test_a_class_that_others_derive_from_a_participant_s_leads_back_to_the_module_s_own(vit, images):
    pruned = ShiftTracker(vit).prune(SCHEDULE)
    for _, module in list(participants(pruned)):
        module.__class__ = type("Sharded", (Other, type(module)), {})
    assert torch.equal(dense(pruned)(images), vit(images))


class Other:
    """As what torch's fully_shard puts in front of a module's class."""
