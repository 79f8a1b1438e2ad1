"""Models of images and language: as many places in the prompt as the pruned tower has tokens, or all of them."""

import pytest
import torch
from torch import nn

from repshift import ShiftTracker, describe
from repshift.backbones.huggingface_prompts import image_tokens, shortened_prompt
from repshift.errors import RepresentationError, UnsupportedModelError
from repshift.positions import pick

transformers = pytest.importorskip("transformers")

IMAGE = 59
TEXT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
CONFIGS = {
    "clip": lambda: transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
    ),
    "siglip": lambda: transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    ),
}
# of VipLLaVA, which reads several blocks, and drops the class token whatever its tower
SEVERAL = {"vision_feature_layers": [-2, -3, 2], "image_token_index": IMAGE}


@pytest.fixture(params=CONFIGS)
def llava(request):
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(CONFIGS[request.param]()).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def inputs():
    """Two prompts with 16 places for one image each, in different places, and their images."""
    torch.manual_seed(1)
    ids = torch.randint(3, 50, (2, 22))
    ids[0, 2:18] = IMAGE
    ids[1, 5:21] = IMAGE
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 32, 32)}


def test_restored_tokens_change_nothing_else(llava, inputs):
    pruned = ShiftTracker(llava).prune("0.25@0,1", restore=True)
    assert image_tokens(pruned) == image_tokens(llava) == 16
    found, expected = pruned(**inputs).logits, llava(**inputs).logits
    assert found.shape == expected.shape
    assert not torch.allclose(found, expected)


def test_nothing_dropped_is_the_dense_model(llava, inputs, keep_all):
    assert torch.equal(ShiftTracker(llava).prune("0.25@0,1", pruner=keep_all)(**inputs).logits, llava(**inputs).logits)


@torch.no_grad()
def test_fewer_tokens_stand_in_a_shorter_prompt(llava, inputs):
    pruned = ShiftTracker(llava).prune("0.25@0,1")
    assert image_tokens(pruned) == 9
    shorter = shortened_prompt(pruned, inputs)
    assert shorter["input_ids"].shape == shorter["attention_mask"].shape == (2, 22 - 7)
    assert (shorter["input_ids"] == IMAGE).sum(1).tolist() == [9, 9]
    assert torch.equal(
        shorter["input_ids"][shorter["input_ids"] != IMAGE], inputs["input_ids"][inputs["input_ids"] != IMAGE]
    )
    with ShiftTracker(pruned) as tracker:
        found = pruned(**shorter).logits
    # by hand: the tower's own blocks on the kept tokens, and the language model on the prompt's features
    tower = llava.model.vision_tower
    prefix = 17 - 16 if "CLIP" in type(tower).__name__ else 0
    x = tower.embeddings(inputs["pixel_values"])
    x = tower.pre_layrnorm(x) if prefix else x
    before = torch.arange(16).expand(2, -1)
    for number, layer in enumerate(tower.encoder.layers[: 3 if prefix else 4]):
        x = layer(x, attention_mask=None)
        if number < 2:
            kept = tracker.kept[number]
            places = (before[:, None] == kept[:, :, None]).float().argmax(-1)
            x = torch.cat([x[:, :prefix], pick(x[:, prefix:], places)], 1)
            before = kept
    features = llava.model.multi_modal_projector(x[:, prefix:])
    embedded = llava.get_input_embeddings()(shorter["input_ids"])
    embedded[shorter["input_ids"] == IMAGE] = features.flatten(0, 1)
    expected = llava(inputs_embeds=embedded, attention_mask=shorter["attention_mask"]).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_prompt_that_is_too_long_is_explained(llava, inputs):
    pruned = ShiftTracker(llava).prune("0.25@0,1", pruner="mnn")
    with pytest.raises(RepresentationError, match=r"shortened_prompt.*restore=True"):
        pruned(**inputs)
    assert pruned(**shortened_prompt(pruned, inputs)).logits.shape[1] == 15


def test_prompts_of_other_numbers_of_places_are_refused(llava, inputs):
    pruned = ShiftTracker(llava).prune("0.25@0,1")
    with pytest.raises(RepresentationError, match="16 places an image"):
        shortened_prompt(pruned, shortened_prompt(pruned, inputs))


@torch.no_grad()
def test_vipllava_reads_no_class_token(inputs):
    config = transformers.VipLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION), text_config=transformers.LlamaConfig(**TEXT), **SEVERAL
    )
    model = transformers.VipLlavaForConditionalGeneration(config).eval()
    assert image_tokens(model) == 16
    pruned = ShiftTracker(model).prune("0.25@0,1")
    assert pruned(**shortened_prompt(pruned, inputs)).logits.shape[1] == 15


def test_a_prompt_is_shortened_of_a_model_in_a_wrapper(llava, inputs):
    wrapped = ShiftTracker(nn.Sequential(llava)).prune("0.25@0,1")
    assert shortened_prompt(wrapped, inputs)["input_ids"].shape == (2, 15)


def test_blocks_behind_the_one_that_is_read_are_not_listed(llava):
    assert len(describe(llava).blocks) == (3 if llava.config.vision_feature_layer == -2 else 4)


def test_a_model_that_lays_the_tokens_out_must_restore():
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
    )
    model = transformers.LlavaNextForConditionalGeneration(config).eval()
    with pytest.raises(UnsupportedModelError, match="restore=True"):
        ShiftTracker(model).prune("0.25@0")
    ShiftTracker(model).prune("0.25@0", restore=True)
    with pytest.raises(UnsupportedModelError, match=r"LlavaNext.* is known of LLaVA, .*restore=True"):
        image_tokens(model)  # an image comes to several of the tower's


def test_no_prompt_is_shortened_of_a_model_without_images(build):
    with pytest.raises(UnsupportedModelError, match=r"image of ViTModel comes to in a prompt is known of LLaVA"):
        shortened_prompt(build("ViTModel"), {"input_ids": torch.ones(1, 4, dtype=torch.int64)})


# --- packed towers -------------------------------------------------------------------------------------------------


def qwen2():
    config = transformers.Qwen2VLConfig().vision_config.__class__(
        embed_dim=16, hidden_size=24, depth=3, num_heads=2, mlp_ratio=2, patch_size=4
    )
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

    return Qwen2VisionTransformerPretrainedModel(config).eval()


def qwen2_5():
    config = transformers.Qwen2_5_VLConfig().vision_config.__class__(
        hidden_size=16, out_hidden_size=24, depth=3, num_heads=2, intermediate_size=32, patch_size=4, window_size=16
    )
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    return Qwen2_5_VisionTransformerPretrainedModel(config).eval()


@pytest.mark.parametrize("make", [qwen2, qwen2_5])
def test_packed_towers_are_tracked_without_maps(make):
    tower = make()
    patches, grid = torch.randn(16 + 24, 3 * 2 * 16), torch.tensor([[1, 4, 4], [1, 4, 6]])
    with ShiftTracker(tower) as tracker, torch.no_grad():
        tower(patches, grid_thw=grid)
    assert [each.shape for each in tracker.shifts.values()] == [(1, 40)] * 3
    with pytest.raises(RepresentationError, match="no known rows and columns"):
        tracker.maps[0]
    with pytest.raises(UnsupportedModelError, match=r"can be tracked but not pruned.*one sequence for all images"):
        ShiftTracker(tower).prune("0.25@0")
    assert "one sequence for all images" in describe(tower).why_not
