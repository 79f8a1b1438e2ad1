"""What an unfinished run has left and is not proved to be this run's is refused by name; nothing else is deleted."""

import itertools
import json
import os
import re
import shutil

import pytest

from repshift.analysis.output import partial

ROW = {"model": "tiny_resnet", "samples": 23, "skipped": 0}
ROW |= dict.fromkeys(("top1", "top1_err", "top5", "top5_err", "gmacs"), 1.0)


@pytest.fixture
def unfinished(evaluate, settings, stop, tmp_path, hurt, monkeypatch):
    """The folder of what a killed run of two batches has left."""

    def observe(model, done, *rest):
        if done >= 8:
            raise stop

    monkeypatch.chdir(tmp_path)
    with pytest.raises(stop):
        evaluate(settings(), tmp_path / "r.csv", observe=observe)
    return tmp_path / "r.csv.partial" / "0000"


@pytest.fixture
def again(run_command, folder, hurt):
    """Run the same evaluation by the command line."""

    def again(*options):
        pruned = ("--drop", "12@0", "--compare-dense", "--checkpoint", hurt)
        batches = ("--batch-size", "4", "--workers", "0")
        return run_command("eval", folder, "-m", "tiny_resnet", *pruned, *batches, "--results-file", "r.csv", *options)

    return again


def refused(told, *parts):
    code, _, err = told
    assert code == 1
    assert len(err.splitlines()) == 1, err
    assert all(re.search(part, err) for part in parts), err


DEEP = "[" * 100_000


def rows(**changes):
    return json.dumps({"rows": [ROW, {**ROW, **changes}]}).encode()


DAMAGED = {
    "no settings": ("settings.json", None),
    "settings of nothing": ("settings.json", b""),
    "settings that are a list": ("settings.json", b"[]"),
    "settings that are null": ("settings.json", b"null"),
    "settings in another encoding": ("settings.json", b'{"model": "\xff"}'),
    "settings too deep": ("settings.json", DEEP.encode()),
    "a row that is a list": ("row.json", b"[]"),
    "a row of nothing": ("row.json", b"{}"),
    "rows that are no list": ("row.json", b'{"rows": 1}'),
    "a row that is none": ("row.json", b'{"rows": [1]}'),
    "a row too deep": ("row.json", DEEP.encode()),
    "a row cut off": ("row.json", b'{"model": "tiny_res'),
    "a row of another model": ("row.json", rows(model="tiny_vit")),
    "a row of words": ("row.json", rows(top1="high")),
    "a row without what was compared": ("row.json", rows(dense_top1=1.0)),
    "records of words": ("0.jsonl", b'[[0, 1, ["a"], null]]\n'),
    "records of fractions": ("0.jsonl", b"[[0.5, 1, [1], null]]\n"),
    "records of nothing predicted": ("0.jsonl", b"[[0, 1, [], null]]\n"),
    "records of another method that are none": ("0.jsonl", b"[[0, 1, [1], null, 1]]\n"),
    "records in a mapping": ("0.jsonl", b'{"0": 1}\n'),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_records_are_refused_by_name(unfinished, again, case):
    name, content = DAMAGED[case]
    (unfinished / name).unlink() if content is None else (unfinished / name).write_bytes(content)
    refused(again("--resume"), re.escape(str(unfinished.relative_to(unfinished.parents[1]))), "--no-resume")
    assert again("--no-resume")[0] == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [*itertools.product(["settings.json", "row.json", "1.jsonl"], ["folder", "pipe"]), ("1.jsonl", "link to nothing")],
)
def test_what_is_no_file_is_refused_by_name(unfinished, again, name, kind):
    (unfinished / name).unlink(missing_ok=True)
    if kind == "folder":
        (unfinished / name / "inside").mkdir(parents=True)
    elif kind == "pipe":
        os.mkfifo(unfinished / name)
    else:
        (unfinished / name).symlink_to("nowhere")
    refused(again("--resume"), "0000")


def test_a_line_that_was_torn_is_evaluated_again(unfinished, again):
    with (unfinished / "0.jsonl").open("ab") as file:
        file.write(b"[[9, 1, [1\n\xff\xfe\n\0\0\0\n" + DEEP.encode() + b"\n")
    assert again("--resume")[0] == 0


@pytest.mark.parametrize("option", ["--resume", "--no-resume", None])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_in_the_place_of_the_records_is_refused_and_nothing_behind_it_deleted(
    unfinished, again, tmp_path, option, kind
):
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "r.csv.partial").rename(elsewhere)
    if kind == "link":
        (tmp_path / "r.csv.partial").symlink_to(elsewhere)
    else:
        (tmp_path / "r.csv.partial").write_text("mine")
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    refused(again(*filter(None, [option])), r"r\.csv\.partial is (a link|no folder)", "another --results-file")
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == before


def test_only_what_was_recorded_is_deleted(unfinished, again, tmp_path):
    (unfinished / "thesis.txt").write_text("mine")
    (unfinished.parent / "photos").mkdir()
    (unfinished.parent / "photos" / "row.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.jsonl").write_text("mine")
    (unfinished.parent / "0001").symlink_to(tmp_path / "elsewhere")
    assert again("--no-resume")[0] == 0
    assert (unfinished / "thesis.txt").read_text() == "mine"
    assert (unfinished.parent / "photos" / "row.txt").read_text() == "mine"
    assert (tmp_path / "elsewhere" / "0.jsonl").read_text() == "mine"


def test_a_deletion_that_is_stopped_leaves_what_can_be_told(unfinished, again, monkeypatch, tmp_path, stop):
    shutil.copytree(unfinished, kept := tmp_path / "kept")
    whole = sorted(path.name for path in kept.iterdir())
    for deleted in range(len(whole)):
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(kept, unfinished)
        calls, unlink = [], partial.Path.unlink

        def stopping(path, missing_ok=False, calls=calls, last=deleted, unlink=unlink):
            if path.exists():
                if len(calls) == last:
                    raise stop
                calls.append(path)
            unlink(path, missing_ok=missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(partial.Path, "unlink", stopping)
            with pytest.raises(stop):
                partial.forget_unfinished(unfinished.parent)
        left = {path.name for path in unfinished.iterdir()}
        assert "settings.json" in left or not left
    assert again("--resume")[0] == 0
