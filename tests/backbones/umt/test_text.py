"""Text encoder and decoder, against BERT of transformers and against layers that are written out."""

import pytest
import torch
import torch.nn.functional as F

from repshift.errors import RepresentationError

transformers = pytest.importorskip("transformers")


def bert_config(settings, layers, **more):
    return transformers.BertConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.width,
        num_hidden_layers=layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.ffn,
        max_position_embeddings=settings.positions,
        attn_implementation="eager",
        **more,
    )


def taken_over(model, state):
    """Load weights into a model of transformers; buffers and what is tied may be missing."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("position_ids" in key for key in missing)
    return model.eval()


@torch.no_grad()
def test_text_mode_is_bert(make, texts):
    model = make(layers=3, fusion=2)
    encoder, (ids, mask) = model.text_encoder, texts
    bert = transformers.BertModel(bert_config(encoder.settings, 2), add_pooling_layer=False)
    state = {key: value for key, value in encoder.state_dict().items() if "layer.2" not in key}
    expected = taken_over(bert, state)(ids, attention_mask=mask).last_hidden_state
    states, first = model.encode_text(ids, mask)
    torch.testing.assert_close(states[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)
    assert torch.equal(first, states[:, 0])


def attended(x, other, layer, hidden, heads):
    """An attention layer of BERT, spelled out."""
    own = layer.self
    queries, keys, values = (
        project(value).unflatten(-1, (heads, -1)).transpose(1, 2)
        for project, value in ((own.query, x), (own.key, other), (own.value, other))
    )
    logits = queries @ keys.mT / queries.shape[-1] ** 0.5
    mixed = ((logits + hidden).softmax(-1) @ values).transpose(1, 2).flatten(2)
    return layer.output.LayerNorm(layer.output.dense(mixed) + x)


@torch.no_grad()
def test_fusion_layers_look_at_the_video_between_attention_and_mlp(make, texts):
    model = make(layers=3, fusion=1)
    (ids, mask), tokens = texts, torch.randn(3, 7, 24)
    x = model.encode_text(ids, mask)[0]
    hidden = (1 - mask[:, None, None]) * -10000.0
    for layer in model.text_encoder.encoder.layer[1:]:
        x = attended(x, x, layer.attention, hidden, 2)
        x = attended(x, tokens, layer.crossattention, 0.0, 2)
        x = layer.output.LayerNorm(layer.output.dense(F.gelu(layer.intermediate.dense(x))) + x)
    found = model.text_encoder.fuse(*model.encode_text(ids, mask)[:1], mask, model.project_video(tokens))
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model.match(model.project_video(tokens), model.encode_text(ids, mask)[0], mask), model.itm_head(x[:, 0])
    )


@torch.no_grad()
def test_multi_modal_is_text_and_then_fusion(make, texts):
    encoder, (ids, mask) = make().text_encoder, texts
    projected = encoder.project(torch.randn(3, 7, 24))
    assert torch.equal(encoder(ids, mask, projected), encoder.fuse(encoder.text(ids, mask), mask, projected))


@torch.no_grad()
@pytest.mark.parametrize("videos", [1, 2])
def test_texts_of_one_video_share_its_keys_and_values(make, texts, videos):
    model = make()
    states, _ = model.encode_text(texts[0].repeat(2, 1), texts[1].repeat(2, 1))
    mask, tokens = texts[1].repeat(2, 1), torch.randn(videos, 7, 24)
    found = model.match(model.project_video(tokens), states, mask)
    each = tokens.repeat_interleave(6 // videos, 0)
    torch.testing.assert_close(found, model.match(model.project_video(each), states, mask), rtol=1e-4, atol=1e-5)


def test_videos_that_do_not_divide_the_texts_are_refused(make, texts):
    model = make()
    states, _ = model.encode_text(*texts)
    with pytest.raises(RepresentationError, match=r"3 text.* 2 video"):
        model.match(model.project_video(torch.randn(2, 7, 24)), states, texts[1])


# --- answers ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_decoder_is_a_causal_bert_that_looks_at_the_question(make, texts):
    model = make("tiny_umt_qa")
    decoder, (ids, mask) = model.text_decoder, texts
    config = bert_config(model.settings.text, 2, is_decoder=True, add_cross_attention=True)
    bert = taken_over(transformers.BertLMHeadModel(config), decoder.state_dict())
    states, seen = torch.randn(3, 5, 24), torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    expected = bert(ids, attention_mask=mask, encoder_hidden_states=states, encoder_attention_mask=seen).logits
    found = decoder(ids, mask, decoder.project(states), seen)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_answer_is_as_likely_as_its_word_pieces(make, texts):
    model, (answers, answer_mask) = make("tiny_umt_qa"), texts
    states, mask = torch.randn(1, 5, 24), torch.tensor([[1, 1, 1, 1, 0]])
    found = model.answer_log_likelihood(states, mask, answers, answer_mask)
    for answer, length, likelihood in zip(answers, answer_mask.sum(1), found, strict=True):
        expected = 0.0
        for place in range(1, int(length)):
            before = answer[None, :place]
            logits = model.text_decoder(before, torch.ones_like(before), model.text_decoder.project(states), mask)
            expected += logits[0, -1].log_softmax(-1)[answer[place]].item()
        assert likelihood.item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_the_first_word_piece_is_predicted_from_the_class_token_alone(make, texts):
    model = make("tiny_umt_qa")
    states, mask = torch.randn(3, 5, 24), torch.ones(3, 5, dtype=torch.int64)
    ids = torch.full((3, 1), 2)
    expected = model.text_decoder(ids, torch.ones_like(ids), model.text_decoder.project(states), mask)[:, 0]
    assert torch.equal(model.first_token_logits(states, mask), expected)


@torch.no_grad()
def test_questions_look_at_all_tokens_of_their_video(make, texts, videos):
    model = make("tiny_umt_qa")
    tokens, _ = model.encode_vision(videos[:1])
    found = model.question_states(tokens, *texts)
    each = model.question_states(tokens.expand(3, -1, -1), *texts)
    torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.question_states(tokens[:, 1:], *texts), found)


@torch.no_grad()
def test_videos_and_texts_are_compared_frame_by_frame(make, texts, videos):
    model = make()
    _, pooled = model.encode_vision(videos)
    _, first = model.encode_text(*texts)
    expected = torch.zeros(2, 3)
    for video in range(2):
        for text in range(3):
            words = model.text_proj(first[text])
            cosines = [F.cosine_similarity(model.vision_proj(frame), words, dim=0) for frame in pooled[video]]
            expected[video, text] = sum(cosines) / len(cosines)
    torch.testing.assert_close(model.itc(pooled, first), expected, rtol=1e-4, atol=1e-5)
