import numpy as np
import pytest
import torch

from repshift import load_model
from repshift.analysis.samples.moving_digits import DigitPool, Move, all_moves, caption, questions
from repshift.analysis.video import Tokeniser, clean
from repshift.analysis.video.digit_files import write_videos
from repshift.analysis.zoo import video_losses
from repshift.analysis.zoo.video_losses import answering_loss, retrieval_loss, shared_cross_entropy
from repshift.analysis.zoo.videos import foil, model_input, phrase_caption, video_batches, word_numbers


@pytest.fixture(scope="module")
def pool(shipped_digits):
    return DigitPool(shipped_digits)


def batches(pool, seed=0, videos=10, size=4, moves=2):
    return list(video_batches(pool, seed, videos, size, moves))


# --- what is shown ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moves", [1, 2])
def test_an_epoch_has_all_its_videos(pool, moves):
    shown = batches(pool, moves=moves)
    assert [len(batch.moves) for batch in shown] == [4, 4, 2]
    assert [tuple(batch.videos.shape) for batch in shown] == [(n, 6, 1, 48, 48) for n in (4, 4, 2)]


@pytest.mark.parametrize("moves", [1, 2])
def test_a_half_without_a_digit_is_empty(pool, moves):
    counts = set()
    for batch in batches(pool, videos=20, moves=moves):
        inked = batch.videos.unflatten(1, (2, 3)).flatten(2).any(2)
        assert inked.tolist() == [[move is not None for move in happens] for happens in batch.moves]
        counts |= {tuple(row) for row in inked.tolist()}
    assert counts == ({(True, False), (False, True)} if moves == 1 else {(True, True)})


def test_the_caption_says_in_which_half_a_single_digit_comes():
    three, seven = Move(3, "left"), Move(7, "up")
    assert phrase_caption((three, None)) == "a three moves left"
    assert phrase_caption((None, seven)) == "then a seven moves up"
    assert phrase_caption((three, seven)) == caption((three, seven)) == "a three moves left then a seven moves up"


def test_epochs_follow_from_their_seed(pool):
    def drawn(seed):
        return [(batch.videos.numpy().tobytes(), batch.moves) for batch in batches(pool, seed)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize(("empty", "changed"), [(None, {1, 3, 6, 8}), (1, {1, 3}), (0, {2, 4})])
def test_a_foil_differs_by_one_word(empty, changed):
    random = np.random.RandomState(0)
    places = set()
    for moves in all_moves()[::37]:
        shown = tuple(None if half == empty else move for half, move in enumerate(moves))
        words, others = phrase_caption(shown).split(), phrase_caption(foil(shown, random)).split()
        (place,) = [at for at, (word, other) in enumerate(zip(words, others, strict=True)) if word != other]
        places.add(place)
    assert places == changed


def test_words_are_numbered_as_a_tokeniser_of_word_pieces_does(pool, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("av")
    write_videos([], tmp_path)
    texts = [caption(moves) for moves in all_moves()[::100]]
    texts += [question for moves in all_moves()[::300] for question, _ in questions(moves)]
    ids, mask = word_numbers(texts)
    expected_ids, expected_mask = Tokeniser(tmp_path)([clean(text) for text in texts], ids.shape[1])
    assert torch.equal(ids, expected_ids)
    assert torch.equal(mask, expected_mask.bool())


def test_the_input_is_scaled_as_the_model_says(pool):
    videos = batches(pool)[0].videos
    scaled = model_input(load_model("tiny_umt"), videos)
    assert scaled.shape == (4, 6, 3, 48, 48)
    torch.testing.assert_close(scaled, ((videos / 255 - 0.02) / 0.5).expand(-1, -1, 3, -1, -1))


# --- what is learned --------------------------------------------------------------------------------------------


def test_several_right_columns_share_the_target():
    logits = torch.randn(3, 5)
    right = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 1]]).bool()
    expected = -torch.stack([row[each].mean() for row, each in zip(logits.log_softmax(1), right, strict=True)]).mean()
    torch.testing.assert_close(shared_cross_entropy(logits, right), expected)


def test_a_right_caption_is_never_drawn_as_a_wrong_one():
    torch.manual_seed(0)
    right = torch.rand(6, 9) < 0.5
    right[:, :2] = False
    drawn = video_losses._drawn(torch.randn(6, 9), right, 2)
    assert not right.gather(1, drawn).any()
    assert (drawn[:, 0] != drawn[:, 1]).all()


def test_a_likely_wrong_caption_is_drawn_more_often():
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 8.0, 0.0, 0.0]]).expand(200, -1)
    drawn = video_losses._drawn(logits, torch.tensor([[True, False, False, False]]).expand(200, -1), 1)
    assert (drawn == 1).sum() > 190


@pytest.mark.parametrize("name", ["tiny_umt", "tiny_umt_qa"])
def test_every_weight_takes_part_in_the_loss(pool, name):
    torch.manual_seed(0)
    model = load_model(name)
    batch = batches(pool)[0]
    loss = answering_loss(model, batch) if name == "tiny_umt_qa" else retrieval_loss(model, batch, 2, 3)
    loss.backward()
    assert 0 < loss.item() < 20
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]


def test_the_loss_of_answers_is_their_mean_likelihood(pool):
    torch.manual_seed(0)
    model, batch = load_model("tiny_umt_qa").eval(), batches(pool)[0]
    expected = []
    tokens, _ = model.encode_vision(model_input(model, batch.videos))
    for number, moves in enumerate(batch.moves):
        for question, answer in questions(moves):
            states = model.question_states(tokens[number : number + 1], *word_numbers([question]))
            ids, _ = word_numbers([f"{answer} [SEP]"])
            seen = torch.ones(1, states.shape[1], dtype=torch.bool)
            whole = model.text_decoder(ids, torch.ones_like(ids), model.text_decoder.project(states), seen)
            expected.append(torch.nn.functional.cross_entropy(whole[0, :2], ids[0, 1:], reduction="sum"))
    torch.testing.assert_close(answering_loss(model, batch), torch.stack(expected).mean())
