import pytest
import torch

from repshift import load_model
from repshift.analysis.answering.ranking import answer_scores, best_answers, best_first_pieces
from repshift.errors import DataError


@pytest.fixture(scope="module")
def case():
    """A model, states and mask of three questions, word pieces and mask of seven answers."""
    torch.manual_seed(0)
    model = load_model("tiny_umt_qa", img_size=32, frames=2, patch_size=16, vocabulary=64).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that answers differ
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1))
    ids = torch.randint(4, 64, (3, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])
    ids[:, 0] = 2
    answers = torch.tensor(
        [[2, 9, 3, 0], [2, 9, 8, 3], [2, 11, 3, 0], [2, 12, 13, 14], [2, 9, 20, 3], [2, 30, 3, 0], [2, 31, 32, 3]]
    )
    with torch.inference_mode():
        states = model.question_states(torch.randn(1, 8, 64), ids, mask)
        yield model, states, mask, answers, (answers != 0).long()


def brute_force(model, states, mask, answers, answer_mask):
    """Score every answer by the published formula, from the decoder's logits at each place."""
    decoder = model.text_decoder
    rows = []
    for question in range(len(states)):
        own, seen = states[question : question + 1], mask[question : question + 1]
        row = []
        for ids, there in zip(answers, answer_mask, strict=True):
            first = decoder(torch.tensor([[2]]), torch.ones(1, 1), decoder.project(own), seen)[0, 0].softmax(0)[ids[1]]
            logits = decoder(ids[None], there[None], decoder.project(own), seen)[0]
            nll = sum(-logits[at].log_softmax(0)[ids[at + 1]] for at in range(len(ids) - 1) if there[at + 1])
            row.append(float(first.log() - nll))
        rows.append(row)
    return torch.tensor(rows)


def test_with_all_candidates_every_answer_has_the_published_score(case):
    expected = brute_force(*case)
    numbers, scores = answer_scores(*case, count=1000)
    torch.testing.assert_close(scores, expected.gather(1, numbers), rtol=1e-4, atol=1e-4)
    assert torch.equal(best_answers(numbers, scores), expected.argmax(1))


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_candidates_are_those_with_the_likeliest_first_piece(case, count):
    model, states, mask, answers, _ = case
    expected = brute_force(*case)
    numbers, scores = answer_scores(*case, count=count)
    first = model.first_token_logits(states, mask).softmax(1)[:, answers[:, 1]]
    for question in range(len(states)):
        ranked = sorted(range(len(answers)), key=lambda answer: (-float(first[question, answer]), answer))
        assert numbers[question].tolist() == ranked[:count]
    torch.testing.assert_close(scores, expected.gather(1, numbers), rtol=1e-4, atol=1e-4)


def test_of_equal_first_pieces_the_earlier_answers_are_looked_at():
    numbers, values = best_first_pieces(torch.zeros(1, 5), torch.tensor([[2, 3], [2, 3], [2, 4]]), 2)
    assert numbers.tolist() == [[0, 1]]
    torch.testing.assert_close(values.exp(), torch.full((1, 2), 0.2))


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(DataError, match="--candidates"):
        best_first_pieces(torch.zeros(1, 5), torch.tensor([[2, 3]]), 0)
    with pytest.raises(DataError, match="NaN"):
        best_answers(torch.tensor([[0]]), torch.tensor([[float("nan")]]))
