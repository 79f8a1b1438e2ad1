"""Commands as processes of their own, killed at random moments: what is repeated ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from repshift.analysis import cli

MEASURED = ("samples_per_sec", "dense_samples_per_sec")
# few digits, so that the zoo trains in no time
SCRIPT = """
import signal
from pathlib import Path
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # who runs the tests may ignore it, and then so would the command
from repshift.analysis import cli
from repshift.analysis.samples import canvases
from repshift.analysis.zoo import training
whole = canvases.read_digits(Path(canvases.__file__).parent / "cluttered_mnist")
few = canvases.Digits(whole.images[:40], whole.labels[:40])
training.training_digits = lambda place: few
training.evaluation_canvases = lambda: canvases.draw_canvases(canvases.ClutteredDigits(few, seed=7))
if __name__ == "__main__":
    cli.main()
"""
EPOCHS = ("--epochs", "3", "--cooldown-epochs", "1", "--ema")

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")


class Command:
    """A command in a process of its own; a forked one could not train, since torch's threads do not survive that."""

    def __init__(self, arguments, folder):
        with (folder / "printed.txt").open("w") as printed:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *map(str, arguments)], cwd=folder, stdout=printed, stderr=printed
            )

    @property
    def pid(self):
        return self.process.pid

    @property
    def exitcode(self):
        return self.process.poll()

    def join(self, seconds):
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path):
    """Start a command in a process of its own, which ends with the test."""
    started = []

    def start(*arguments):
        started.append(Command(arguments, tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def children(pid):
    """List the processes of Python that a process has started."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            program = (path.parent / "cmdline").read_bytes().partition(b"\0")[0].decode()
        except OSError:
            continue
        if int(parent) == pid and state != "Z" and program == sys.executable:
            found.add(int(path.parent.name))
    return found


def wait_for_workers(pid, seconds):
    """Wait until a process has workers: not what libraries start for a moment when they are imported."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        before = children(pid)
        time.sleep(0.02)
        if workers := before & children(pid):
            return workers
    raise AssertionError("no workers")


@pytest.fixture
def train_and_validation(write_pictures, tmp_path):
    """Two folders of 23 canvases of all classes."""
    write_pictures(tmp_path / "parts" / "train", 3, range(17, 40))
    write_pictures(tmp_path / "parts" / "validation", 4, range(17, 40))
    return tmp_path / "parts"


@pytest.fixture
def command(request, train_and_validation):
    """The arguments of a command, and those that resume it."""
    common = ("-m", "tiny_resnet", "--pretrained", "--device", "cpu")
    batches = ("--batch-size", "2", "--workers", "1")
    return {
        "eval": (
            (
                "eval",
                "cluttered-mnist",
                "--num-samples",
                "120",
                *common,
                *batches,
                "--drop",
                "12@0",
                "--compare-dense",
                "--results-file",
                "out/r.json",
            ),
            ("--resume",),
        ),
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
    ("command", "kills"),
    [
        pytest.param(name, kills, marks=pytest.mark.slow)
        for name, kills in {"eval": 1, "finetune": 1, "zoo train": 1}.items()
    ],
    indirect=["command"],
)
def test_a_command_that_is_killed_ends_as_if_it_had_not_been(start, command, kills, tmp_path):
    arguments, again = command
    began = time.monotonic()
    process = start(*arguments)
    process.join(120)
    took = time.monotonic() - began
    assert process.exitcode == 0, (tmp_path / "printed.txt").read_text()
    whole = results(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")

    moments = random.Random(0)
    for _ in range(kills):
        process = start(*arguments, *again)
        process.join(moments.uniform(took / 3, took))  # the first third is Python's own beginning
        process.kill()
    process = start(*arguments, *again)
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "printed.txt").read_text()
    assert results(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [("eval", signal.SIGHUP, 129), pytest.param("finetune", signal.SIGTERM, 143, marks=pytest.mark.slow)],
    indirect=["command"],
)
def test_a_signal_ends_a_command_with_its_workers_and_keeps_its_state(start, command, number, code, tmp_path):
    arguments, again = command
    process = start(*arguments)
    workers = wait_for_workers(process.pid, seconds=60)
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
