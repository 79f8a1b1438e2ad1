import csv
import json
import os

import pytest
import torch

from repshift import ShiftTracker, load_model
from repshift.analysis.answering.ranking import answer_scores, best_answers
from repshift.analysis.video import Tokeniser, clean, preprocess, read_clip
from repshift.analysis.video.by_video import PartialValues

OPTIONS = {"img_size": 32, "frames": 4, "patch_size": 8}
SIZES = ["--model-kwargs", " ".join(f"{name}={value}" for name, value in OPTIONS.items())]
DROP = ["--drop", "0.25@0,1"]
ANSWERS = ["red", "green", "blue", "white", "left", "right"]


@pytest.fixture
def options(moving):
    return [
        moving.questions, moving.answers, moving.root, "-m", "tiny_umt_qa", *SIZES, "--vocab", moving.vocabulary,
        "--device", "cpu", "-b", 3,
    ]  # fmt: skip


def rows_of(file):
    return {row["method"]: row for row in json.loads(file.read_text())["results"]}


def brute_force(moving, drop=None):
    """Answer each question alone, at the seed of the command."""
    torch.manual_seed(0)
    model = load_model("tiny_umt_qa", **OPTIONS).eval()
    encoder = model if drop is None else ShiftTracker(model).prune(drop)
    tokeniser = Tokeniser(moving.vocabulary)
    answers = tokeniser([f"{answer} [SEP]" for answer in ANSWERS], 5)
    found = []
    with torch.inference_mode():
        for entry in json.loads(moving.questions.read_text()):
            clip = read_clip(moving.root / entry["video"], 4)
            config = model.pretrained_cfg
            tokens, _ = encoder(preprocess(clip, 32, config["mean"], config["std"])[None])
            ids, mask = tokeniser([clean(entry["question"])], 25)
            states = model.question_states(tokens, ids, mask)
            found += best_answers(*answer_scores(model, states, mask, *answers)).tolist()
    return [ANSWERS[number] for number in found]


def test_answers_are_those_of_each_question_by_itself(run_command, moving, options, tmp_path):
    files = ("--results-file", "r.json", "--per-question", "q.csv")
    code, out, err = run_command("answer", *options, *DROP, "--compare-dense", *files)
    assert (code, err) == (0, "")
    rows = rows_of(tmp_path / "r.json")
    with (tmp_path / "q.csv").open(newline="") as file:
        told = list(csv.DictReader(file))
    right = {}
    for method, drop in (("dense", None), ("shift", "0.25@0,1")):
        own = [row for row in told if row["method"] == method]
        predicted = brute_force(moving, drop)
        assert [row["predicted"] for row in own] == predicted
        right[method] = 100.0 * torch.tensor([row["predicted"] == row["answer"] for row in own]).double()
        assert rows[method]["accuracy"] == pytest.approx(float(right[method].mean()))
    difference = right["shift"] - right["dense"]
    assert rows["shift"]["accuracy_against_dense"] == pytest.approx(float(difference.mean()))
    assert (rows["dense"]["questions"], rows["dense"]["videos"]) == (16, 8)
    assert "16 questions on 8 videos" in out
    assert not list(tmp_path.glob("r.json.*"))


def test_questions_without_a_video_or_with_an_answer_that_is_not_listed_count_as_wrong(
    run_command, moving, options, tmp_path
):
    (moving.root / moving.names[1]).write_bytes(b"")
    options[1] = moving.write("few.json", ANSWERS[:3])
    code, out, err = run_command("answer", *options, "--on-error", "skip", "--results-file", "r.json",
                                 "--per-question", "q.json")  # fmt: skip
    assert (code, err) == (0, "")
    row = rows_of(tmp_path / "r.json")["dense"]
    assert (row["questions"], row["unanswered"], row["answers"], row["candidates"]) == (16, 2, 3, 3)
    assert "10 questions have an answer that is not in the list" in out
    told = json.loads((tmp_path / "q.json").read_text())["results"]
    assert [each["predicted"] is None for each in told] == [number in (2, 3) for number in range(16)]
    assert row["accuracy"] == pytest.approx(100 * sum(each["predicted"] == each["answer"] for each in told) / 16)


def test_a_run_that_was_killed_ends_as_if_nothing_had_happened(
    run_command, moving, options, tmp_path, monkeypatch, stop
):
    run = ("answer", *options, *DROP, "--compare-dense")
    assert run_command(*run, "--results-file", "whole.json", "--per-question", "whole.csv")[0] == 0
    original, calls = PartialValues.add, []

    def killing(self, *rest):
        if len(calls) == 5:
            raise stop
        calls.append(rest)
        original(self, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(PartialValues, "add", killing)
        with pytest.raises(stop):
            run_command(*run, "--results-file", "r.json", "--per-question", "q.csv")
    monkeypatch.setattr(PartialValues, "add", lambda self, *rest: calls.append(rest) or original(self, *rest))
    seen = moving.root / moving.names[7]
    time = seen.stat().st_mtime_ns
    os.utime(seen, (1, 1))  # another state of a video
    code, _, err = run_command(*run, "--resume", "--results-file", "r.json", "--per-question", "q.csv")
    assert code == 1
    assert "belong to another run: videos was" in err
    os.utime(seen, ns=(time, time))
    assert run_command(*run, "--results-file", "r.json", "--per-question", "q.csv")[0] == 1
    assert run_command(*run, "--resume", "--results-file", "r.json", "--per-question", "q.csv")[0] == 0
    assert len(calls) == 16
    assert rows_of(tmp_path / "r.json") == rows_of(tmp_path / "whole.json")
    assert (tmp_path / "q.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_no_candidates_are_refused_before_a_video_is_read(run_command, options, monkeypatch):
    monkeypatch.setattr("repshift.analysis.video.encoding.Encoding.run", None)
    code, _, err = run_command("answer", *options, "--candidates", "0")
    assert code == 1
    assert "0 candidates cannot be looked at" in err


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--dataset", "msvd"], "repshift retrieve"),
        (["--results-file", "r.json", "--per-question", "r.json"], "--per-question"),
        (["--question-length", "40"], "--question-length"),
        (["-m", "tiny_umt"], "umt_b_qa"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(run_command, options, changed, named):
    if changed[0] == "-m":
        options[options.index("-m") + 1] = changed[1]
        changed = []
    code, _, err = run_command("answer", *options, *changed)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert named in err
