"""Models under torch's transformations of functions and of graphs."""

import pytest
import torch
from torch.func import functional_call, grad, vmap

from repshift import ShiftTracker, load_model

MODELS = {"tiny_vit": "0.2@0,1", "tiny_vim": "0.2@0,1", "tiny_resnet": "2@0;1@1"}
SMALL = {"tiny_vit": {"depth": 2}, "tiny_vim": {"depth": 2}, "tiny_resnet": {}}
CASES = [(name, drop) for name, drop in MODELS.items() for drop in (None, drop)]
IDS = [f"{name} {'dense' if drop is None else 'pruned'}" for name, drop in CASES]


@pytest.fixture(params=CASES, ids=IDS)
def model(request):
    name, drop = request.param
    torch.manual_seed(0)
    # of random weights, lines rank too evenly: rounding decides which go
    dense = load_model(name, **SMALL[name], pretrained=name == "tiny_resnet")
    return dense if drop is None else ShiftTracker(dense).prune(drop).eval()


def test_vmap_over_batches_is_a_loop(model):
    batches = torch.randn(3, 2, 3, 64, 64)
    with torch.no_grad():
        expected = torch.stack([model(batch) for batch in batches])
        torch.testing.assert_close(vmap(model)(batches), expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_each_image_by_itself_are_those_of_a_loop(model):
    images, labels = torch.randn(3, 3, 64, 64), torch.tensor([1, 2, 3])
    parameters = dict(model.named_parameters())

    def loss(parameters, image, label):
        answers = functional_call(model, parameters, (image[None],))
        return torch.nn.functional.cross_entropy(answers, label[None])

    found = vmap(grad(loss), (None, 0, 0))(parameters, images, labels)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        expected = torch.autograd.grad(loss(parameters, image, label), list(parameters.values()))
        for name, right in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][number], right, rtol=1e-3, atol=1e-4)


def test_an_ensemble_under_vmap_is_a_loop(model):
    images = torch.randn(2, 3, 64, 64)
    several = {name: torch.stack([value, value * 1.1]) for name, value in model.named_parameters()}
    with torch.no_grad():
        found = vmap(lambda parameters: functional_call(model, parameters, (images,)))(several)
        for number in range(2):
            one = {name: value[number] for name, value in several.items()}
            torch.testing.assert_close(found[number], functional_call(model, one, (images,)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("class_position", ["head", "middle"])
def test_vision_mamba_is_traced_symbolically(class_position):
    model = load_model("tiny_vim", depth=2, class_position=class_position)
    images = torch.randn(3, 3, 64, 64)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(images), model(images))
    assert [node for node in traced.graph.nodes if node.target.__class__ and "selective_scan" in str(node.target)]


def test_features_of_vision_mamba_are_extracted_by_torchvision():
    from torchvision.models.feature_extraction import create_feature_extractor

    model, images = load_model("vim_tiny", depth=2, img_size=64), torch.randn(2, 3, 64, 64)
    features = create_feature_extractor(model, {"layers.0.mixer.out_proj": "mixed", "head": "answers"})(images)
    assert features["mixed"].shape == (2, 17, 192)
    assert torch.equal(features["answers"], model(images))
