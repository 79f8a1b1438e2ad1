"""Commands as processes of their own, killed at random moments: what is repeated ends as if nothing had happened."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest

from repshift.analysis import cli
from repshift.analysis.samples.canvases import ClutteredDigits, draw_canvases
from repshift.analysis.zoo import training

MEASURED = ("samples_per_sec", "dense_samples_per_sec")
FORK = multiprocessing.get_context("fork")  # all is imported already
FEW = ("--study", "score", "--blocks", "0", "--batch-size", "10")
EPOCHS = ("--epochs", "3", "--cooldown-epochs", "1", "--ema")

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")


def in_child(arguments, folder):
    os.chdir(folder)
    sys.argv = ["repshift", *map(str, arguments)]
    with Path("printed.txt").open("w") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
        sys.stdout = sys.stderr = printed
        try:
            cli.main()
        except Exception:
            traceback.print_exc(file=printed)
            raise


@pytest.fixture
def start(tmp_path):
    """Start a command in a process of its own, which ends with the test."""
    started = []

    def start(*arguments):
        process = FORK.Process(target=in_child, args=(arguments, tmp_path))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def children(pid):
    """List the processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.fixture
def train_and_validation(write_pictures, tmp_path):
    """Two folders of 23 canvases of all classes."""
    write_pictures(tmp_path / "parts" / "train", 3, range(17, 40))
    write_pictures(tmp_path / "parts" / "validation", 4, range(17, 40))
    return tmp_path / "parts"


@pytest.fixture
def command(request, folder, train_and_validation, few_digits, monkeypatch):
    """The arguments of a command, and those that resume it."""
    monkeypatch.setattr(training, "training_digits", lambda place: few_digits)
    monkeypatch.setattr(training, "evaluation_canvases", lambda: draw_canvases(ClutteredDigits(few_digits, seed=7)))
    common = ("-m", "tiny_resnet", "--pretrained", "--device", "cpu")
    batches = ("--batch-size", "2", "--workers", "1")
    return {
        "eval": (
            ("eval", folder, *common, *batches, "--drop", "12@0", "--compare-dense", "--results-file", "out/r.json"),
            ("--resume",),
        ),
        "ablate": (("ablate", folder, *common, *FEW, "--output", "out"), ()),
        "statistics": (("statistics", *common, "--num-samples", "4", "--curve-samples", "0", "--output", "out"), ()),
        "finetune": (
            (
                "finetune",
                *common,
                *batches,
                "--drop",
                "10@0",
                "--data",
                train_and_validation,
                *EPOCHS,
                "--output",
                "out",
            ),
            (),
        ),
        "zoo train": (
            ("zoo", "train", "tiny_vit", "--digits", ".", "--epochs", "3", "--device", "cpu", "--output", "out"),
            (),
        ),
    }[request.param]


def results(folder):
    """Read what a command has left, but for what is measured anew in every run and what holds the time of writing."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".tar" or path.is_dir() or path.parent.name.startswith("state-"):
            continue
        found[path.relative_to(folder).as_posix()] = path.read_bytes()
    if "r.json" in found:
        rows = json.loads(found["r.json"])["results"]
        found["r.json"] = [{key: row[key] for key in row if key not in MEASURED} for row in rows]
    return found


@pytest.mark.parametrize(
    ("command", "seed"),
    [
        ("eval", 0),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("ablate", "statistics", "finetune", "zoo train")),
    ],
    indirect=["command"],
)
def test_a_command_that_is_killed_ends_as_if_it_had_not_been(start, command, seed, tmp_path):
    arguments, again = command
    began = time.monotonic()
    process = start(*arguments)
    process.join(120)
    took = time.monotonic() - began
    assert process.exitcode == 0, (tmp_path / "printed.txt").read_text()
    whole = results(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")

    moments = random.Random(seed)
    for _ in range(3):
        process = start(*arguments, *again)
        process.join(moments.uniform(0, took))
        process.kill()
        process.join()
    process = start(*arguments, *again)
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "printed.txt").read_text()
    assert results(tmp_path / "out") == whole


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("command", ["eval", "finetune"], indirect=True)
def test_a_signal_ends_a_command_with_its_workers_and_keeps_its_state(start, command, number, code, tmp_path):
    arguments, again = command
    process, until = start(*arguments), time.monotonic() + 60
    while not (workers := children(process.pid)) and time.monotonic() < until:
        time.sleep(0.001)
    assert workers
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    assert "again" in (tmp_path / "printed.txt").read_text()
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    process = start(*arguments, *again)
    process.join(120)
    assert process.exitcode == 0


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    set_before = []
    monkeypatch.setattr(signal, "signal", lambda *given: set_before.append(given))
    with cli.unwinding_by_signals() as ended:
        assert ended(7) == 7
    assert not set_before
