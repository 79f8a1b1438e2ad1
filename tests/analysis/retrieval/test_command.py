import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from repshift import ShiftTracker, load_model
from repshift.analysis.retrieval.ranking import ranks_of_best, recalls
from repshift.analysis.subjects.macs import count_macs
from repshift.analysis.video import Tokeniser, clean, preprocess, read_clip
from repshift.analysis.video.by_video import PartialValues
from repshift.analysis.video.features import FeatureStore

OPTIONS = {"img_size": 32, "frames": 4, "patch_size": 8}
SIZES = ["--model-kwargs", " ".join(f"{name}={value}" for name, value in OPTIONS.items())]
DROP = ["--drop", "0.25@0,1"]


@pytest.fixture
def options(moving):
    return [
        moving.annotations, moving.root, "-m", "tiny_umt", *SIZES, "--vocab", moving.vocabulary,
        "--device", "cpu", "-b", 3,
    ]  # fmt: skip


def rows_of(file):
    return {row["method"]: row for row in json.loads(file.read_text())["results"]}


def brute_force(moving, drop=None):
    """Encode every video alone, match every pair alone, and rank; at the seed of the command."""
    torch.manual_seed(0)
    model = load_model("tiny_umt", **OPTIONS).eval()
    encoder = model if drop is None else ShiftTracker(model).prune(drop)
    ids, mask = Tokeniser(moving.vocabulary)([clean(caption) for caption in moving.captions], 16)
    with torch.inference_mode():
        clips = [read_clip(moving.root / name, 4) for name in moving.names]
        config = model.pretrained_cfg
        seen = [encoder(preprocess(clip, 32, config["mean"], config["std"])[None]) for clip in clips]
        states, first = model.encode_text(ids, mask)
        itc = torch.cat([model.itc(pooled, first) for _, pooled in seen])
        rows = []
        for tokens, _ in seen:
            projected = model.project_video(tokens)
            rows.append([float(model.match(projected, states[n : n + 1], mask[n : n + 1])[0, 1]) for n in range(8)])
    right = [[number] for number in range(8)]
    scores = torch.tensor(rows)
    found = {"v2t": scores, "t2v": scores.T, "v2t_emb": itc, "t2v_emb": itc.T}
    return {name: ranks_of_best(matrix, right) for name, matrix in found.items()}


def test_recall_is_that_of_every_video_and_pair_by_itself(run_command, moving, options, tmp_path):
    code, out, err = run_command(
        "retrieve", *options, *DROP, "--compare-dense", "--results-file", "r.json", "--per-query", "q.json"
    )
    assert (code, err) == (0, "")
    rows = rows_of(tmp_path / "r.json")
    assert list(rows) == ["dense", "shift"]
    queries = json.loads((tmp_path / "q.json").read_text())["results"]
    assert len(queries) == 2 * 2 * 8
    for method, drop in (("dense", None), ("shift", "0.25@0,1")):
        ranks = brute_force(moving, drop)
        for name, own in ranks.items():
            direction, _, alone = name.partition("_")
            rank = f"rank_{alone}" if alone else "rank"
            told = [row[rank] for row in queries if (row["direction"], row["method"]) == (direction, method)]
            assert told == (own + 1).tolist()
        expected = {name: recalls(own) for name, own in ranks.items()}
        for cutoff in ("r1", "r5", "r10"):
            for direction in ("v2t", "t2v"):
                assert rows[method][f"{direction}_{cutoff}"] == expected[direction][cutoff]
                assert rows[method][f"{direction}_{cutoff}_emb"] == expected[f"{direction}_emb"][cutoff]
        mean = (expected["v2t"]["r1"] + expected["t2v"]["r1"]) / 2
        assert rows[method]["mean_r1"] == mean
    assert rows["shift"]["gmacs"] < rows["dense"]["gmacs"]
    assert "T2V - dense" in out
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("r.json")) == ["r.json"]


def test_differences_from_the_dense_model_are_those_of_each_query(run_command, options, tmp_path):
    methods = ("--methods", "shift,random,fewer_frames", "--seeds", 2)
    code, _, err = run_command(
        "retrieve", *options, *DROP, *methods, "--results-file", "r.json", "--per-query", "q.json"
    )
    assert (code, err) == (0, "")
    rows = rows_of(tmp_path / "r.json")
    assert list(rows) == ["dense", "shift", "random", "fewer_frames"]
    ranks = {}
    for row in json.loads((tmp_path / "q.json").read_text())["results"]:
        ranks.setdefault((row["direction"], row["method"]), []).append(row["rank"])
    hit = {key: 100.0 * (torch.tensor(own) == 1).double() for key, own in ranks.items()}
    for direction in ("t2v", "v2t"):
        difference = hit[direction, "shift"] - hit[direction, "dense"]
        row = rows["shift"]
        assert row[f"{direction}_r1_against_dense"] == pytest.approx(float(difference.mean()))
        assert row[f"{direction}_r1_against_dense_error"] == pytest.approx(float(difference.std() / 8**0.5))
        drawn = (hit[direction, "random"] + hit[direction, "random, draw 2"]) / 2
        assert rows["random"][f"{direction}_r1"] == pytest.approx(float(drawn.mean()))
    frames = rows["fewer_frames"]["frames"]
    assert 0 < frames < rows["dense"]["frames"] == 4
    assert rows["fewer_frames"]["gmacs"] <= rows["shift"]["gmacs"] < rows["dense"]["gmacs"]
    one_more = count_macs(load_model("tiny_umt", **OPTIONS), (frames + 1, 3, 32, 32))
    assert one_more / 1e9 > rows["shift"]["gmacs"]


def test_a_broken_and_a_missing_video_are_named_and_skipped_or_fatal(run_command, moving, options, tmp_path):
    (moving.root / moving.names[2]).write_bytes(b"no video")
    code, _, err = run_command("retrieve", *options)
    assert code == 1
    assert moving.names[2] in err
    (moving.root / moving.names[5]).unlink()
    code, _, err = run_command("retrieve", *options)
    assert code == 1
    assert moving.names[5] in err
    code, out, err = run_command("retrieve", *options, "--on-error", "skip", "--results-file", "r.json")
    assert (code, err) == (0, "")
    assert all(f"skipped {moving.root / moving.names[number]}" in out for number in (2, 5))
    assert "2 texts were left out" in out
    row = rows_of(tmp_path / "r.json")["dense"]
    assert (row["videos"], row["texts"], row["skipped"]) == (6, 6, 2)


def test_kept_features_are_used_again_and_only_for_the_same_model_and_video(
    run_command, moving, options, tmp_path, monkeypatch
):
    written = []
    original = FeatureStore.write
    monkeypatch.setattr(FeatureStore, "write", lambda self, *rest: written.append(rest[0]) or original(self, *rest))
    run = ("retrieve", *options, "--features", "kept", "--results-file", "r.json")
    assert run_command(*run)[0] == 0
    before = rows_of(tmp_path / "r.json")
    assert written == list(range(8))
    assert run_command(*run)[0] == 0
    assert len(written) == 8
    assert rows_of(tmp_path / "r.json") == before
    assert run_command(*run, *DROP)[0] == 0
    assert len(written) == 16
    os.utime(moving.root / moving.names[7], (1, 1))
    assert run_command(*run)[0] == 0
    assert written[16:] == [6, 7]  # the whole batch, because the numbers of one may depend on those beside it
    assert {path.suffix for path in (tmp_path / "kept").rglob("*") if path.is_file()} == {".safetensors", ".json"}


@pytest.mark.parametrize(("where", "after"), [("features", 5), ("matching", 3)])
def test_a_run_that_was_killed_ends_as_if_nothing_had_happened(
    run_command, options, tmp_path, monkeypatch, stop, where, after
):
    run = ("retrieve", *options, *DROP, "--compare-dense")
    assert run_command(*run, "--results-file", "whole.json", "--per-query", "whole-q.json")[0] == 0
    kept, method = (FeatureStore, "write") if where == "features" else (PartialValues, "add")
    original, calls = getattr(kept, method), []

    def killing(self, *rest):
        if len(calls) == after:
            raise stop
        calls.append(rest)
        original(self, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(kept, method, killing)
        with pytest.raises(stop):
            run_command(*run, "--results-file", "r.json", "--per-query", "q.json")
    assert not (tmp_path / "r.json").exists()
    monkeypatch.setattr(kept, method, lambda self, *rest: calls.append(rest) or original(self, *rest))
    code, _, err = run_command(*run, "--resume", "--results-file", "r.json", "--per-query", "q.json")
    assert (code, err) == (0, "")
    assert rows_of(tmp_path / "r.json") == rows_of(tmp_path / "whole.json")
    assert (tmp_path / "q.json").read_text() == (tmp_path / "whole-q.json").read_text()
    # whole batches of three are encoded again, and no video is matched again
    assert len(calls) == {"features": 5 + 16 - 3, "matching": 16}[where]
    assert not list(tmp_path.glob("r.json.*"))


def test_what_was_matched_of_a_video_that_has_changed_is_not_gone_on_with(
    run_command, moving, options, tmp_path, monkeypatch, stop
):
    run = ("retrieve", *options, "--results-file", "r.json")
    original, calls = PartialValues.add, []

    def killing(self, *rest):
        if len(calls) == 3:
            raise stop
        calls.append(rest)
        original(self, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(PartialValues, "add", killing)
        with pytest.raises(stop):
            run_command(*run)
    (moving.root / moving.names[0]).write_bytes((moving.root / moving.names[7]).read_bytes())
    code, _, err = run_command(*run, "--resume")
    assert code == 1
    assert "belong to another run: videos was" in err
    assert run_command(*run, "--no-resume")[0] == 0


def test_several_captions_paragraphs_and_several_videos_of_a_caption(run_command, moving, options, tmp_path):
    several = [{"video": name, "caption": [caption, "What is it?"]} for name, caption in zip(
        moving.names, moving.captions, strict=True)]  # fmt: skip
    shared = [
        {"video": moving.names[place::2], "caption": f"At the {side}"} for place, side in enumerate(("left", "right"))
    ]
    for name, entries, expected in (("several", several, (8, 16)), ("shared", shared, (8, 2))):
        options[0] = moving.write(f"{name}.json", entries)
        assert run_command("retrieve", *options, "--results-file", "r.json")[0] == 0
        row = rows_of(tmp_path / "r.json")["dense"]
        assert (row["videos"], row["texts"]) == expected
        assert row["mean_r1"] == (row["t2v_r1"] + row["v2t_r1"]) / 2
    options[0] = moving.write("several.json", several)
    code, _, err = run_command(
        "retrieve", *options, "--dataset", "didemo", "--text-length", 16, "--frames", 4, "--results-file", "r.json"
    )
    assert (code, err) == (0, "")
    assert rows_of(tmp_path / "r.json")["dense"]["texts"] == 8


def test_no_candidates_are_refused_before_a_video_is_read(run_command, options, monkeypatch):
    monkeypatch.setattr("repshift.analysis.video.encoding.Encoding.run", None)
    code, _, err = run_command("retrieve", *options, "--candidates", "0")
    assert code == 1
    assert "0 candidates cannot be looked at" in err


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["-m", "tiny_vit"], "umt_b_retrieval"),
        (["--dataset", "msvd-qa"], "repshift answer"),
        (["--dataset", "msrvvt"], "msrvtt"),
        (["--methods", "fewer_frmes"], "fewer_frames"),
        (["--methods", "fewer_frames"], "--drop"),
        (["--text-length", "64"], "--text-length"),
        (["--results-file", "r.json", "--per-query", "r.json"], "--per-query"),
        (["--on-error", "pass"], "--on-error"),
        (["--against", "norm"], "--against"),
        (["--amp", "--amp-dtype", "int8"], "--amp-dtype"),
        (["--model-kwargs", "img_size=32 frames=4 patch_size=8 vocabulary=10"], "--vocab"),
        (["--model-kwargs", "img_size=32 frames=4 patch_size=8 class_token=1"], "[CLS] is number 2 of"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(run_command, options, changed, named):
    if changed[0] == "-m":
        at = options.index("--model-kwargs")
        del options[at : at + 2]
    if changed[0] == "--model-kwargs":
        options[options.index("--model-kwargs") + 1] = changed[1]
        changed = []
    code, _, err = run_command("retrieve", *options, *changed)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert named in err


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(run_command, options, tmp_path):
    run = ["retrieve", *map(str, options), *DROP, "--compare-dense"]
    assert run_command(*run, "--results-file", "one.json", "--per-query", "one-q.json")[0] == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free_port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "repshift", *run, "--results-file", "two.json", "--per-query", "two-q.json"],
            cwd=tmp_path,
            env={
                **os.environ, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [process.wait(200) for process in started] == [0, 0]
    assert rows_of(tmp_path / "two.json") == rows_of(tmp_path / "one.json")
    one, two = (json.loads((tmp_path / f"{name}-q.json").read_text())["results"] for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_is_gone_on_with(run_command, options, tmp_path):
    run = ["retrieve", *map(str, options), *DROP, "--compare-dense"]
    assert run_command(*run, "--results-file", "whole.json")[0] == 0
    again = [*run, "--results-file", "r.json", "--resume"]
    process = subprocess.Popen([sys.executable, "-m", "repshift", *again], cwd=tmp_path)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("r.json.features/*/*.safetensors")) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run_command(*again)[0] == 0
    assert rows_of(tmp_path / "r.json") == rows_of(tmp_path / "whole.json")
