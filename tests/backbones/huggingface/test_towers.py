"""Image towers of transformers: what every pruned model promises, and what each class does with its tokens."""

import pytest
import torch

from repshift import ShiftTracker, UnsupportedModelError, recipe_of
from repshift.testing import CHECKS, KeepAll, make_subject

ALONE = {
    "ViTModel": 1,
    "ViTForImageClassification": 1,
    "DeiTForImageClassificationWithTeacher": 2,
    "Dinov2Model": 1,
    "Dinov2ForImageClassification": 1,
    "Dinov2WithRegistersModel": 5,
    "Dinov2WithRegistersForImageClassification": 5,
    "DINOv3ViTModel": 3,
    "CLIPVisionModel": 1,
    "CLIPVisionModelWithProjection": 1,
    "CLIPForImageClassification": 1,
    "SiglipVisionModel": 0,
    "SiglipForImageClassification": 0,
    "IJepaForImageClassification": 0,
    "ViTMSNModel": 1,
    "BeitModel": 1,
    "BeitForImageClassification": 1,
}


def keeps(name):
    return not any(word in name for word in ("compiled", "graph breaks", "exports"))


@pytest.mark.parametrize("name", [name for name in CHECKS if keeps(name)])
def test_every_promise_is_kept_by_one_class(build, images, name):
    CHECKS[name](make_subject(build("Dinov2ForImageClassification"), images))


@pytest.mark.parametrize(("name", "prefix"), ALONE.items())
def test_towers_are_described_as_they_are(build, images, name, prefix):
    model = build(name)
    subject = make_subject(model, images)
    assert subject.structure.layout.prefix == prefix
    for check in (
        check for check in CHECKS if check.startswith(("nothing dropped", "what is left")) or "tokens" in check
    ):
        CHECKS[check](subject)
    assert ShiftTracker(model).run(images).maps[0].shape == (2, 4, 4)


@pytest.mark.parametrize("name", ["Dinov2Backbone", "Dinov2WithRegistersBackbone", "DINOv3ViTBackbone", "BeitBackbone"])
def test_feature_maps_take_all_tokens(build, images, name):
    model = build(name)
    with pytest.raises(UnsupportedModelError, match=rf"tokens of {name} must have .*feature maps.*restore=True"):
        ShiftTracker(model).prune({0: 4})
    kept = ShiftTracker(model).prune({0: 4}, restore=True, pruner=KeepAll())
    pruned = ShiftTracker(model).prune({0: 4, 1: 3}, restore=True)
    with torch.no_grad():
        dense, whole, some = (each(images).feature_maps for each in (model, kept, pruned))
    assert [each.shape for each in some] == [(2, 16, 4, 4)] * 2
    assert all(map(torch.equal, dense, whole))
    # the first stage lies before any cut but its own: the tokens that stay are the dense model's, at their places
    tracker = ShiftTracker(pruned).run(images)
    places = tracker.kept[0].unsqueeze(1).expand(-1, 16, -1)
    assert torch.equal(some[0].flatten(2).gather(2, places), dense[0].flatten(2).gather(2, places))


@pytest.mark.parametrize("name", ["ViTForMaskedImageModeling", "DeiTForMaskedImageModeling"])
def test_a_model_that_makes_images_of_its_tokens_is_restored(build, images, name):
    model = build(name, encoder_stride=8)
    with pytest.raises(UnsupportedModelError, match=r"makes an image of all its tokens.*restore=True"):
        ShiftTracker(model).prune({0: 4})
    pruned = ShiftTracker(model).prune({0: 4}, restore=True)
    assert pruned(images).reconstruction.shape == (2, 3, 32, 32)


def test_the_decoder_of_a_masked_autoencoder_is_refused(build):
    with pytest.raises(UnsupportedModelError, match=r"ViTMAEForPreTraining cannot be pruned.*ids_restore.*model\.vit"):
        ShiftTracker(build("ViTMAEForPreTraining")).prune({0: 1})


def test_the_encoder_of_a_masked_autoencoder_has_no_map(build, images):
    model, noise = build("ViTMAEModel", mask_ratio=0.0), torch.rand(2, 16)
    kept, pruned = ShiftTracker(model).prune({0: 4}, pruner=KeepAll()), ShiftTracker(model).prune({0: 4})
    with torch.no_grad():
        assert torch.equal(kept(images, noise=noise)[0], model(images, noise=noise)[0])
    assert pruned(images).last_hidden_state.shape == (2, 13, 16)
    with pytest.raises(Exception, match="no known rows and columns"):  # 16 tokens, in an order of their own
        ShiftTracker(model).run(images).maps[0]


def test_spectrograms_are_served(build):
    model, sounds = build("ASTForAudioClassification"), torch.randn(2, 32, 16)
    kept = ShiftTracker(model).prune({0: 4}, pruner=KeepAll())
    with torch.no_grad():
        assert torch.equal(kept(sounds).logits, model(sounds).logits)
    assert ShiftTracker(ShiftTracker(model).prune({0: 4})).run(sounds).kept[0].shape == (2, 10)


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel"])
def test_the_text_tower_is_left_alone(build, images, name):
    model, ids = build(name), torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0], [1, 9, 4, 2]])
    kept, pruned = ShiftTracker(model).prune({0: 4}, pruner=KeepAll()), ShiftTracker(model).prune({0: 4}, pruner="mnn")
    with torch.no_grad():
        dense, whole, some = (each(input_ids=ids, pixel_values=images) for each in (model, kept, pruned))
    assert torch.equal(whole.logits_per_image, dense.logits_per_image)
    assert torch.equal(some.text_embeds, dense.text_embeds)
    assert not torch.equal(some.image_embeds, dense.image_embeds)
    assert some.logits_per_image.shape == (2, 3)
    assert torch.equal(pruned.get_image_features(images).pooler_output, pruned(ids, images).vision_model_output[1])


@pytest.mark.parametrize("pruner", [None, "mnn"])
def test_hidden_states_are_what_is_left_of_them(build, images, pruner):
    for model in (build("ViTModel"), build("ViTForImageClassification")):
        pruned = ShiftTracker(model).prune({0: 4, 1: 3}, pruner=pruner)
        states = pruned(images, output_hidden_states=True).hidden_states
        assert [state.shape[1] for state in states] == [17, 13, 10, 10]


def test_a_model_inside_timms_wrapper_is_found(transformers):
    model = transformers.TimmWrapperModel(
        transformers.TimmWrapperConfig(architecture="test_vit", model_args={"depth": 2})
    )
    pruned = ShiftTracker(model.eval()).prune({0: 4})
    assert recipe_of(pruned.timm_model) is not None
    assert pruned(torch.rand(1, 3, 160, 160)).last_hidden_state.shape[1] == 97


@pytest.mark.parametrize(
    ("name", "sizes", "why"),
    [
        ("SwinModel", {"depths": [1, 1], "num_heads": [1, 1]}, "attends within windows"),
        ("HieraModel", {}, "attends within windows"),
        ("SegformerModel", {}, "take strides over the grid"),
        ("ResNetModel", {}, "timm's model of this kind is described and pruned instead"),
        ("T5EncoderModel", {}, "how far apart two tokens stand"),
        ("Blip2ForConditionalGeneration", {}, "images are read by a tower of a kind that is not known"),
    ],
)
def test_other_models_are_refused_with_what_stands_in_the_way(transformers, name, sizes, why):
    kind = getattr(transformers, name)
    with torch.device("meta"):
        model = kind(kind.config_class(**sizes))
    with pytest.raises(UnsupportedModelError, match=rf"{name} can be tracked but not pruned: .*{why}"):
        ShiftTracker(model)
