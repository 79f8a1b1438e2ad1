import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from repshift import ShiftTracker, load_model
from repshift.analysis.demo import timing, video_comparison
from repshift.analysis.demo.video_comparison import (
    HEADINGS,
    SCHEDULES,
    VideoResult,
    cells,
    frames_of_equal_work,
    read_inputs,
    run_video_demo,
    verdicts,
)
from repshift.analysis.samples.moving_digits import ANSWERS, VOCABULARY, caption, questions
from repshift.analysis.subjects.macs import count_macs
from repshift.analysis.video.digit_files import write_videos
from repshift.analysis.zoo.video_scores import answered, drawn, encoded, evaluation_videos, found
from repshift.analysis.zoo.videos import word_numbers
from repshift.errors import DataError

pytest.importorskip("av")
METHODS = ("shift", "norm", "random", "mnn", "fewer frames")
FILES = {"videos", "captions.json", "questions.json", "answers.json", "vocab.txt"} | {
    f"video.{ending}" for ending in ("json", "md", "png", "gif")
}


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {name: load_model(name) for name in ("tiny_umt", "tiny_umt_qa")}


@pytest.fixture(scope="module")
def inputs(models):
    return drawn(models["tiny_umt"], evaluation_videos(6), 6)


def result(method="random", **against_shift):
    return VideoResult("0.5@0", method, 0.8125, 0.9, 0.955, 71.6, 0.03971, against_shift)


# --- parts ------------------------------------------------------------------------------------------------------


def test_a_row_of_the_table_has_a_cell_for_every_heading():
    row = cells(result())
    assert row == ["0.5@0", "random", "81.2", "90.0", "95.5", "72", "0.0397"]
    assert len(HEADINGS) == len(row)


def test_there_is_a_verdict_for_every_other_method_and_measure():
    gains = {"similar": (5.0, 0.5), "matched": (-3.0, 0.4), "answers": (0.5, 0.3)}
    assert verdicts([result("dense"), result("shift", **gains), result(**gains)]) == [
        "0.5@0 R@1: the shift beats random (+5.00 points, s.e. 0.50)",
        "0.5@0 matched: the shift LOSES to random (-3.00 points, s.e. 0.40)",
        "0.5@0 answers: the shift ties with random (+0.50 points, s.e. 0.30)",
    ]


@pytest.mark.parametrize("schedule", [*SCHEDULES, "0.9@0,1,2"])
def test_fewer_frames_have_at_most_the_work_of_pruning(models, schedule):
    model = models["tiny_umt"]
    most = count_macs(ShiftTracker(model).prune(schedule), (6, 3, 48, 48))
    frames = frames_of_equal_work(model, ShiftTracker(model).prune(schedule))
    assert 1 <= frames < 6
    assert count_macs(model, (frames + 1, 3, 48, 48)) > most
    assert frames == 1 or count_macs(model, (frames, 3, 48, 48)) <= most


def test_files_give_nearly_what_was_drawn(models, inputs, tmp_path):
    files = write_videos(evaluation_videos(6), tmp_path)
    assert (read_inputs(models["tiny_umt"], files, 6) - inputs).abs().mean() < 0.02  # in standard deviations


def test_what_is_found_are_the_first_of_their_rows(models, inputs):
    """All pairs are candidates here, so matching is a matrix too."""
    model, moves = models["tiny_umt"], [video.moves for video in evaluation_videos(6)]
    tokens, pooled = encoded(model, inputs)
    hits = found(model, tokens, pooled, moves)
    ids, mask = word_numbers([caption(each) for each in moves])
    with torch.no_grad():
        states, first = model.encode_text(ids, mask)
        itc = model.itc(pooled, first)
        matched = torch.stack([model.match(model.project_video(each[None]), states, mask)[:, 1] for each in tokens])
    own = torch.arange(6)
    for scores, text, video in ((itc, hits.text, hits.video), (matched, hits.matched_text, hits.matched_video)):
        assert torch.equal(scores.argmax(1) == own, text)
        assert torch.equal(scores.argmax(0) == own, video)


def test_answers_are_those_with_the_highest_scores(models, inputs):
    """Written out for each question by itself: the first word counts twice, the end of the answer once."""
    model, moves = models["tiny_umt_qa"], [video.moves for video in evaluation_videos(6)]
    tokens, _ = encoded(model, inputs)
    right = answered(model, tokens, moves)
    assert right.shape == (6, 4)
    for number, each in enumerate(moves):
        for place, (question, answer) in enumerate(questions(each)):
            ids, mask = word_numbers([question])
            with torch.no_grad():
                states = model.question_states(tokens[number : number + 1], ids, mask)
                scores = []
                for candidate in ANSWERS:
                    words = torch.tensor([[2, VOCABULARY.index(candidate), 3]])
                    logits = model.text_decoder(words, torch.ones_like(words), model.text_decoder.project(states), mask)
                    known = logits.log_softmax(-1)[0, [0, 1], words[0, 1:]]
                    scores.append(float(2 * known[0] + known[1]))
            assert (ANSWERS[scores.index(max(scores))] == answer) == bool(right[number, place])


def test_an_output_that_cannot_be_written_to_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(video_comparison, "load_model", lambda *args, **kwargs: pytest.fail("began to compute"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="Cannot write to"):
        run_video_demo(tmp_path / "file")


# --- a small run: untrained, 6 videos ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_run(models, tmp_path_factory):
    output = tmp_path_factory.mktemp("small") / "demo"
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_comparison, "load_model", lambda name, **kwargs: models[name])
        patch.setattr(video_comparison, "TIMED", 2)
        patch.setattr(timing, "ROUNDS", 1)
        patch.setattr(timing, "SECONDS", 0.01)
        results = run_video_demo(output, lambda done, total: steps.append((done, total)), 6)
    return output, results, steps


@pytest.mark.slow
def test_the_demo_measures_the_dense_models_and_every_method(small_run):
    _, results, steps = small_run
    expected = [("none", "dense"), *((schedule, method) for schedule in SCHEDULES for method in METHODS)]
    assert [(one.schedule, one.method) for one in results] == expected
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert {total for _, total in steps} == {len(steps)}
    for one in results[1:]:
        assert one.gmacs < results[0].gmacs
        (shift,) = (other for other in results if (other.schedule, other.method) == (one.schedule, "shift"))
        for measure in ("similar", "matched", "answers"):
            expected = 100 * (getattr(shift, measure) - getattr(one, measure))
            assert one.against_shift[measure][0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_the_demo_writes_videos_figures_and_numbers(small_run):
    output, results, _ = small_run
    assert {path.name for path in output.iterdir()} == FILES
    assert len(list((output / "videos").iterdir())) == 6
    written = json.loads((output / "video.json").read_text())
    assert written["results"] == json.loads(json.dumps([asdict(one) for one in results]))
    headings, rule, *rows = [line.strip("| ").split(" | ") for line in (output / "video.md").read_text().splitlines()]
    assert headings == [*HEADINGS]
    assert rule == ["---"] * len(headings)
    assert rows == [cells(one) for one in results]
    with Image.open(output / "video.png") as figure:
        assert figure.width > figure.height > 300
    with Image.open(output / "video.gif") as moving:
        assert moving.n_frames == 6


@pytest.mark.slow
def test_the_demo_holds_what_the_page_says(tmp_path):
    # where the command ran just before, as .ci/run lets it, its folder is looked at instead of running it again
    ran = os.environ.get("REPSHIFT_DEMO_VIDEO")
    folder = Path(ran) if ran else tmp_path
    if not ran:
        run_video_demo(folder)
    assert {path.name for path in folder.iterdir()} == FILES
    dense, *pruned = [VideoResult(**each) for each in json.loads((folder / "video.json").read_text())["results"]]
    assert dense.similar >= 0.8
    assert dense.matched > dense.similar
    assert dense.answers >= 0.8
    assert all(one.gmacs < 0.8 * dense.gmacs for one in pruned)
