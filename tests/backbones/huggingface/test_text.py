"""Text encoders of transformers: padding is no token, and heads that answer for every word get all of them."""

import pytest
import torch
from torch import nn

from repshift import ShiftTracker, describe
from repshift.errors import RepresentationError, UnsupportedModelError
from repshift.testing import CHECKS, leftovers, make_subject

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
    "num_labels": 3,
    "max_position_embeddings": 40,
}
KINDS = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "Data2VecText", "Ernie")


@pytest.fixture
def built(strong):
    def make(kind, head="Model", **options):
        config = getattr(transformers, f"{kind}Config")(**{**SIZES, **options})
        return strong(getattr(transformers, f"{kind}{head}")(config))

    return make


@pytest.fixture
def bert(built):
    return built("Bert", "ForSequenceClassification")


@pytest.fixture
def texts():
    """Three texts of 16, 11 and 6 tokens: numbers, and which of them are there."""
    torch.manual_seed(1)
    lengths = torch.tensor([16, 11, 6])
    there = (torch.arange(16) < lengths[:, None]).long()
    return torch.randint(3, 60, (3, 16)) * there, there


class Embedded(nn.Module):
    """Takes the features of words instead of their numbers."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, features):
        return self.encoder(inputs_embeds=features).logits


SLOW = ("compiled", "graph breaks", "threads", "fails", "own thread")  # other families hold these


def test_every_promise_is_kept(bert):
    subject = make_subject(Embedded(bert).eval(), torch.randn(2, 13, 24))
    for promise, check in CHECKS.items():
        if not any(word in promise for word in SLOW):
            check(subject)


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_like_bert_are_pruned(built, kind, texts):
    numbers, there = texts
    model = built(kind)
    pruned = ShiftTracker(model).prune("0.3@0,2")
    assert pruned(input_ids=numbers, attention_mask=there).last_hidden_state.shape == (3, 1 + 8, 24)
    whole = ShiftTracker(model).prune("0.3@0,2", restore=True)(input_ids=numbers, attention_mask=there)
    assert whole.last_hidden_state.shape == (3, 16, 24)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_nothing_dropped_is_the_dense_encoder(bert, texts, kernel, keep_all):
    numbers, there = texts
    bert.set_attn_implementation(kernel)
    kept = ShiftTracker(bert).prune("0.3@0,2", pruner=keep_all)
    assert torch.equal(kept(numbers[:1]).logits, bert(numbers[:1]).logits)
    # padding is hidden by minus infinity instead of the lowest number, which is the same
    found, expected = (each(numbers, attention_mask=there).logits for each in (kept, bert))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("restore", [False, True, "left"])
@pytest.mark.parametrize("keep", ["top", "bottom"])
def test_a_padded_batch_is_its_texts_one_by_one(bert, texts, kernel, restore, keep):
    numbers, there = texts
    bert.set_attn_implementation(kernel)
    pruned = ShiftTracker(bert).prune("0.3@0;0.4@2", keep=keep, restore=restore)
    together = pruned(numbers, attention_mask=there, output_hidden_states=bool(restore))
    for number, length in enumerate(there.sum(1)):
        alone = pruned(numbers[number : number + 1, :length], output_hidden_states=bool(restore))
        torch.testing.assert_close(together.logits[number], alone.logits[0], atol=1e-5, rtol=1e-4)
        if restore:
            features, expected = together.hidden_states[-1][number], alone.hidden_states[-1][0]
            torch.testing.assert_close(features[:length], expected, atol=1e-5, rtol=1e-4)
    assert not leftovers(pruned)


@pytest.mark.parametrize("pruner", ["tokens", "mnn", "merge", "fuse"])
def test_what_stands_in_the_padding_does_not_matter(bert, texts, pruner):
    numbers, there = texts
    pruned = ShiftTracker(bert).prune("0.3@0;0.4@2", pruner=pruner)
    other = torch.where(there.bool(), numbers, 59)
    found, expected = (pruned(each, attention_mask=there).logits for each in (other, numbers))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pruner", ["mnn1", "merge"])
def test_padding_is_merged_before_any_word(bert, texts, pruner):
    numbers, _ = texts
    numbers, there = numbers[:1], torch.ones(1, 16, dtype=torch.int64)
    there[:, 12:] = 0
    padded = ShiftTracker(bert).prune({1: 4 + 3}, pruner=pruner)(numbers, attention_mask=there).logits
    plain = ShiftTracker(bert).prune({1: 3}, pruner=pruner)(numbers[:, :12]).logits
    torch.testing.assert_close(padded, plain, atol=1e-4, rtol=1e-4)


def test_padding_before_the_words_is_refused(bert, texts):
    numbers, there = texts
    with pytest.raises(RepresentationError, match="padding_side = 'right'"):
        ShiftTracker(bert).prune("0.3@0")(numbers, attention_mask=there.flip(1))


def test_a_text_has_no_map(bert, texts):
    tracker = ShiftTracker(bert).run(
        torch.cat([texts[0], texts[0][:, :1]], 1)
    )  # 16 = 4x4 tokens behind the class token
    assert tracker.shifts[0].shape == (3, 16)
    with pytest.raises(RepresentationError, match="no known rows and columns"):
        tracker.maps[0]


@torch.no_grad()
def test_shifts_are_those_of_the_branches_before_the_norm(bert, texts):
    numbers, there = texts
    block = bert.bert.encoder.layer[0]
    x = bert.bert.embeddings(numbers)
    mask = (1.0 - there[:, None, None].float()) * torch.finfo(torch.float32).min
    branch = block.attention.output.dense(block.attention.self(x, mask)[0])
    middle = block.attention.output.LayerNorm(x + branch)
    change = block.output.dense(block.intermediate(middle))
    for operation, before, after in (("attn", x, branch), ("mlp", middle, change)):
        with ShiftTracker(bert, operation=operation) as tracker:
            bert(numbers, attention_mask=there)
        expected = (after - before).norm(dim=-1)[:, 1:]
        torch.testing.assert_close(tracker.shifts[0], expected, atol=1e-4, rtol=1e-4)


def test_nothing_is_cut_between_attention_and_mlp_where_the_sum_is_normalised(bert):
    with pytest.raises(UnsupportedModelError, match="between attention and MLP"):
        ShiftTracker(bert).prune("0.3@0", pruner="saliency_merge")
    assert "saliency_merge" not in describe(bert).pruners


@pytest.mark.parametrize("head", ["MaskedLM", "TokenClassification", "QuestionAnswering", "PreTraining"])
def test_heads_that_answer_for_every_token_need_all_of_them(built, texts, head):
    numbers, there = texts
    model = built("Bert", f"For{head}", **({"num_labels": 2} if head == "QuestionAnswering" else {}))
    with pytest.raises(UnsupportedModelError, match="restore=True"):
        ShiftTracker(model).prune("0.3@0")
    found = ShiftTracker(model).prune("0.3@0", restore=True)(numbers, attention_mask=there)
    first = next(value for value in found.values() if value is not None)
    assert first.shape[:2] == (3, 16)


def test_decoders_are_refused(built):
    with pytest.raises(UnsupportedModelError, match="it is a decoder"):
        ShiftTracker(built("Bert", "LMHeadModel", is_decoder=True)).prune("0.3@0", restore=True)


@pytest.mark.parametrize("when", ["before", "after"])
def test_masks_of_other_kernels_are_refused(bert, texts, when):
    numbers, there = texts
    bert.set_attn_implementation("flex_attention" if when == "before" else "sdpa")
    pruned = ShiftTracker(bert).prune("0.3@0")
    pruned.set_attn_implementation("flex_attention")
    with pytest.raises(RepresentationError, match=r"flex_attention.*set_attn_implementation\('sdpa'\)"):
        pruned(numbers, attention_mask=there)
    assert not leftovers(pruned)
    pruned.set_attn_implementation("eager")
    assert pruned(numbers, attention_mask=there).logits.shape == (3, 3)


def test_an_mlp_in_chunks_is_refused(built):
    with pytest.raises(UnsupportedModelError, match="chunk_size_feed_forward=0"):
        ShiftTracker(built("Bert", chunk_size_feed_forward=4)).prune("0.3@0")
