import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from repshift import DataError
from repshift.analysis.output.results import read_results
from repshift.analysis.samples.processes import Processes, usual_workers

DROP = "12@0"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def command(folder, results, *options):
    model = ["-m", "tiny_resnet", "--pretrained", "--drop", DROP, "--compare-dense", "-j", "0", "--device", "cpu"]
    return [sys.executable, "-m", "repshift", "eval", folder, *model, "--results-file", results, *options]


def start(processes, *arguments, **environment):
    """Start processes as a launcher does."""
    port = free_port()
    started = []
    for rank in range(processes):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
        settings = {**ranks, "MASTER_PORT": port, "OMP_NUM_THREADS": 1, **environment}
        started.append(
            subprocess.Popen(
                list(map(str, command(*arguments))),
                env={**os.environ, **{name: str(value) for name, value in settings.items()}},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finish(started):
    """Wait for processes; returns exit code, standard output and standard error of each."""
    try:
        said = [process.communicate(timeout=120) for process in started]
        return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]
    finally:
        for process in started:
            process.kill()


@pytest.fixture(scope="session")
def found(same):
    """Read the only row of a results file, without what is measured anew in every run."""

    def read(path):
        (row,) = read_results(path).rows
        return same(row)

    return read


def evaluated(results):
    """Count the batches that an unfinished run has kept."""
    files = results.with_name(f"{results.name}.partial").rglob("*.jsonl")
    return sum(line.startswith("[") for file in files for line in file.read_text().splitlines())


@pytest.fixture(scope="module")
def alone(few_pictures, tmp_path_factory, found):
    """What one process finds."""
    results = tmp_path_factory.mktemp("alone") / "r.json"
    ((code, out, _),) = finish(start(1, few_pictures, results))
    assert (code, " * Acc@1" in out) == (0, True)
    return found(results)


@pytest.fixture(scope="module")
def few_pictures(write_pictures, tmp_path_factory):
    """23 canvases, ten classes."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), 5, range(17, 40))


# --- one process ------------------------------------------------------------------------------------------------


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = Processes.join()
    assert (processes.rank, processes.count, processes.first, processes.failing) == (0, 1, True, False)
    assert processes.exchange("value") == ["value"]


def test_an_incomplete_launch_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DataError, match=r"RANK, MASTER_ADDR, MASTER_PORT is not set.*torchrun"):
        Processes.join()


@pytest.mark.parametrize(
    ("name", "value"),
    [("RANK", "x"), ("RANK", "2"), ("LOCAL_WORLD_SIZE", "0"), ("MASTER_PORT", ""), ("MASTER_PORT", "65536")],
)
def test_a_launchers_number_that_is_none_is_named(monkeypatch, name, value):
    launched = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"} | {name: value}
    for variable, told in launched.items():
        monkeypatch.setenv(variable, told)
    with pytest.raises(DataError, match=f"{name} is "):
        usual_workers(True) if name == "LOCAL_WORLD_SIZE" else Processes.join()


def test_an_error_in_the_only_process_is_raised_as_it_is():
    processes = Processes()
    with pytest.raises(ZeroDivisionError), processes.together():
        raise ZeroDivisionError


def test_the_device_is_a_gpu_only_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Processes().device(None).type == "cpu"
    with pytest.raises(DataError, match="no CUDA device for --device cuda"):
        Processes().device("cuda:0")


def test_more_processes_than_gpus_are_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DataError, match="process 1 wants number 1"):
        Processes(rank=1, count=2, local_rank=1).device("cuda")


# --- several ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "batch_size"), [(3, 5)])
def test_several_processes_find_what_one_finds(few_pictures, alone, tmp_path, processes, batch_size, found):
    results = tmp_path / "r.json"
    ended = finish(start(processes, few_pictures, results, "-b", batch_size))
    assert [code for code, *_ in ended] == [0] * processes
    assert found(results) == alone
    assert alone["samples"] == 23
    assert [" * Acc@1" in out for _, out, _ in ended] == [True, *[False] * (processes - 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.slow
def test_torchrun_starts_several_processes(few_pictures, alone, tmp_path, found):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    launched = [*launcher, *map(str, command(few_pictures, tmp_path / "r.json", "-b", 4)[2:])]
    ended = subprocess.run(launched, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=120)
    assert ended.returncode == 0
    assert found(tmp_path / "r.json") == alone
    assert read_results(tmp_path / "r.json").environment["processes"] == 2


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_ends_all_with_one_error(few_pictures, tmp_path):
    copy = tmp_path / "pictures"
    for path in few_pictures.rglob("*.png"):
        (copy / path.parent.name).mkdir(parents=True, exist_ok=True)
        (copy / path.parent.name / path.name).write_bytes(path.read_bytes())
    broken = sorted(copy.rglob("*.png"))[1]  # the second process's first one
    broken.write_text("no picture")
    ended = finish(start(2, copy, tmp_path / "r.json", "-b", 2))
    assert [code for code, *_ in ended] == [1, 1]
    assert [str(broken) in err for *_, err in ended] == [True, False]
    assert sum(err.count("error: ") for *_, err in ended) == 1
    assert not (tmp_path / "r.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(3, 1)])
def test_a_killed_run_resumes_to_the_same_result_with_any_number_of_processes(
    few_pictures, alone, tmp_path, first, then, found
):
    results = tmp_path / "r.json"
    started = start(first, few_pictures, results, "-b", 1)
    deadline = time.monotonic() + 100
    while evaluated(results) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in started:
        process.send_signal(signal.SIGKILL)
    assert [code for code, *_ in finish(started)] == [-signal.SIGKILL] * first
    assert not results.exists()
    kept = evaluated(results)
    assert 3 <= kept < 23
    ended = finish(start(then, few_pictures, results, "-b", 4, "--resume"))
    assert [code for code, *_ in ended] == [0] * then
    assert found(results) == alone
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_an_error(few_pictures, tmp_path):
    results = tmp_path / "r.json"
    started = start(2, few_pictures, results, "-b", 1)
    deadline = time.monotonic() + 100
    while evaluated(results) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    started[1].kill()
    (code, _, err), _ = finish(started)
    assert code == 1
    assert "Another process ended" in err
    assert not Path(results).exists()
