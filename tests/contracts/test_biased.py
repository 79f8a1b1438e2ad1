"""Vision transformers whose attention adds a bias of positions, which must follow the tokens that are left."""

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer_relpos import ResPostRelPosBlock, VisionTransformerRelPos
from torch.nn import functional as F

from repshift import Recipe, ShiftTracker, UnsupportedModelError, describe
from repshift.merging.mutual import MutualNearestPruner
from repshift.positions import pick
from repshift.testing import CHECKS, make_subject

SMALL = {"img_size": 24, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
CLASS_TOKEN = {"class_token": True, "global_pool": "token"}
MODELS = {
    "beit": (Beit, {"use_rel_pos_bias": True, "use_abs_pos_emb": False, "init_values": 0.5}),
    "beit, a shared bias, too": (Beit, {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": True}),
    "beit, a shared bias": (Beit, {"use_shared_rel_pos_bias": True, "global_pool": "token"}),
    "relpos": (VisionTransformerRelPos, {"rel_pos_type": "bias"}),
    "relpos, class token": (VisionTransformerRelPos, {"rel_pos_type": "mlp", **CLASS_TOKEN}),
    "relpos, a shared bias": (VisionTransformerRelPos, {"shared_rel_pos": True, "block_fn": ResPostRelPosBlock}),
}


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def build(name, fused=True):
    model_class, options = MODELS[name]
    model = model_class(**SMALL, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / (parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 2))
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 24, 24)


# --- written out ----------------------------------------------------------------------------------------------------


def bias_of(model, block):
    """All that a block adds to the logits, ``(heads, tokens, tokens)``."""
    if isinstance(model, Beit):
        own = block.attn._get_rel_pos_bias()[0] if block.attn.relative_position_bias_table is not None else 0
        return own + (model.rel_pos_bias() if model.rel_pos_bias is not None else 0)
    return (block.attn.rel_pos or model.shared_rel_pos).get_bias()[0]


def attend(attn, x, bias):
    batch, tokens, channels = x.shape
    heads = attn.num_heads
    qkv_bias = attn.qkv.bias
    if getattr(attn, "q_bias", None) is not None:
        qkv_bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    qkv = F.linear(x, attn.qkv.weight, qkv_bias).view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv
    weights = (q @ k.mT * (channels // heads) ** -0.5 + bias).softmax(-1)
    return attn.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, channels))


@torch.no_grad()
def by_hand(model, images, kept, behind, sizes=None):
    """Keep these tokens behind a block; or let the others have been equal to them, if sizes are given."""
    x, prefix = model.patch_embed(images), model.num_prefix_tokens
    if model.cls_token is not None:
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1)
    if getattr(model, "pos_embed", None) is not None:
        x = x + model.pos_embed
    where = None
    for number, block in enumerate(model.blocks):
        bias = bias_of(model, block)
        if where is not None:
            bias = torch.stack([bias[:, places][:, :, places] for places in where])
        post = isinstance(block, ResPostRelPosBlock)
        first, second = getattr(block, "gamma_1", None), getattr(block, "gamma_2", None)
        branch = block.norm1(attend(block.attn, x, bias)) if post else attend(block.attn, block.norm1(x), bias)
        branch = branch if post else getattr(block, "ls1", torch.nn.Identity())(branch)
        x = x + (branch if first is None else first * branch)
        branch = block.norm2(block.mlp(x)) if post else block.mlp(block.norm2(x))
        branch = branch if post else getattr(block, "ls2", torch.nn.Identity())(branch)
        x = x + (branch if second is None else second * branch)
        if number == behind:
            prefix_places = torch.arange(prefix).expand(len(x), -1)
            where = torch.cat([prefix_places, kept + prefix], 1)
            x = pick(x, where)
    return model.forward_head(model.norm(x))


@pytest.mark.parametrize("fused", [True, False])
def test_the_bias_follows_the_tokens(name, fused, images):
    model = build(name, fused)
    pruned = ShiftTracker(model).prune({0: 11})
    kept = ShiftTracker(pruned).run(images).kept["blocks.0"]
    assert (kept != torch.arange(25)).any()
    torch.testing.assert_close(pruned(images), by_hand(model, images, kept, 0), atol=1e-5, rtol=1e-4)


# --- what every pruned model promises -------------------------------------------------------------------------------

SOME = [
    "tokens and blocks are as described",
    "nothing dropped is the dense model, bit for bit",
    "so are the gradients",
    "what is left is treated as in the dense model",
    "places do not matter behind a cut",
    "restored tokens have their places back",
    "images do not disturb each other",
    "copies prune alike",
    "what is recorded is what is pruned by",
]


@pytest.mark.parametrize("promised", SOME)
@pytest.mark.parametrize("name", ["beit, a shared bias, too", "relpos, class token", "relpos, a shared bias"])
def test_promises_are_kept(name, promised, images):
    CHECKS[promised](make_subject(build(name), images))


@pytest.mark.parametrize("fused", [True, False])
def test_merged_tokens_count_for_all_that_they_are(name, fused, images):
    recipe = Recipe("0.3@0;7@1", pruner="mnn")
    CHECKS["merged tokens count for all that they are"](make_subject(build(name, fused), images, recipe))


def test_a_compiled_model_prunes_alike(images, fresh_dynamo):
    pruned = ShiftTracker(build("relpos, class token")).prune({0: 0.2})
    compiled = torch.compile(pruned, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), pruned(images))


def test_all_tokens_are_laid_out_where_they_have_their_places_back(images):
    model = build("beit")
    pruned = ShiftTracker(model).prune({0: 11}, restore=True)
    maps = pruned.forward_intermediates(images, intermediates_only=True)
    assert [tuple(each.shape) for each in maps] == [(2, 16, 6, 6)] * 3
    assert not torch.equal(maps[2], model.forward_intermediates(images, intermediates_only=True)[2])


def test_merged_tokens_may_count_once_in_attention(images):
    model = build("relpos")
    once, often = (
        ShiftTracker(model).prune({0: 11}, pruner=MutualNearestPruner(size_attention=told))(images)
        for told in (False, True)
    )
    assert not torch.allclose(once, often)


def test_attention_cannot_be_scored(images):
    with pytest.raises(UnsupportedModelError, match="a bias of positions that queries and keys do not show"):
        ShiftTracker(build("beit"), score="mean_attention")


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_relpos_small_patch16_224"])
def test_models_of_timm_are_known(name):
    with torch.device("meta"):
        known = describe(timm.create_model(name))
    assert (len(known.blocks), known.tokens, known.why_not) == (12, 196, None)
