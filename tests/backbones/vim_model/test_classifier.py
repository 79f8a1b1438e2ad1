"""Features and classifier of a Vision Mamba, by the methods that timm's tools expect."""

import torch
from torch import nn


def test_forward_features_and_head_add_up_to_the_forward(build, images_for):
    model = build()
    images = images_for(model)
    features = model.forward_features(images)
    assert features.shape == (2, 24)
    assert torch.equal(model.forward_head(features), model(images))
    assert torch.equal(model.forward_head(features, pre_logits=True), features)


def test_the_features_are_normalised(build, images_for):
    model = build()
    with torch.no_grad():
        features = model.forward_features(images_for(model)) / model.norm_f.weight
    torch.testing.assert_close(features.square().mean(1), torch.ones(2, dtype=torch.float64), atol=1e-4, rtol=0)


def test_a_model_without_classes_answers_with_the_features(build, images_for):
    model = build(num_classes=0)
    images = images_for(model)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert torch.equal(model(images), model.forward_features(images))


def test_the_classifier_can_be_replaced(build, images_for):
    model = build().bfloat16()
    images = images_for(model).bfloat16()
    features = model.forward_features(images)
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model.get_classifier() is model.head
    assert model(images).shape == (2, 3)
    assert model(images).dtype == torch.bfloat16
    assert torch.equal(model.forward_features(images), features)


def test_the_classifier_can_be_taken_off(build, images_for):
    model = build()
    images = images_for(model)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(images), model.forward_features(images))
