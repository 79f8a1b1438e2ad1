import os
import re
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from repshift.backbones.scan.benchmark import Timing, make_operands, tabulate, time_scans

TIMINGS = [
    Timing("reference", "forward", (40.0, 10.0, 20.0)),
    Timing("blocked", "forward", (5.0, 3.0, 4.0)),
    Timing("reference", "reverse", (9.0,)),
    Timing("blocked", "reverse", (6.0,)),
]


def cells(table):
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table)
    rows = [re.split("[│┃]", line)[1:-1] for line in captured.get().splitlines()]
    return [[cell.strip() for cell in row] for row in rows if row]


def test_a_row_is_the_median_its_quartiles_and_the_ratio_to_the_reference_in_the_same_direction():
    assert cells(tabulate(TIMINGS)) == [
        ["implementation", "direction", "ms", "quartiles", "times as fast"],
        ["reference", "forward", "20.00", "15.00 to 30.00", "1.0"],
        ["blocked", "forward", "4.00", "3.50 to 4.50", "5.0"],
        ["reference", "reverse", "9.00", "9.00 to 9.00", "1.0"],
        ["blocked", "reverse", "6.00", "6.00 to 6.00", "1.5"],
    ]


def test_operands_have_their_channels_side_by_side_as_in_a_model():
    operands = make_operands(2, 6, 5, 4, "cpu")
    assert {name: tuple(value.shape) for name, value in operands.items()} == {
        "u": (2, 6, 5),
        "delta": (2, 6, 5),
        "A": (6, 4),
        "B": (2, 4, 5),
        "C": (2, 4, 5),
        "D": (6,),
    }
    assert [operands[name].stride(1) for name in ("u", "delta", "B", "C")] == [1, 1, 1, 1]


def test_each_implementation_is_timed_in_both_directions_as_often_as_there_are_rounds():
    timings, missing = time_scans(make_operands(1, 3, 4, 2, "cpu"), ("reference", "blocked"), rounds=3, threads=1)
    assert [(timing.implementation, timing.direction) for timing in timings] == [
        ("reference", "forward"),
        ("reference", "reverse"),
        ("blocked", "forward"),
        ("blocked", "reverse"),
    ]
    assert all(len(timing.milliseconds) == 3 and min(timing.milliseconds) > 0 for timing in timings)
    assert missing == []


def test_an_implementation_that_does_not_run_here_is_left_out_and_the_reason_is_given():
    timings, missing = time_scans(make_operands(1, 3, 4, 2, "cpu"), ("reference", "mamba_ssm"), rounds=1, threads=1)
    assert {timing.implementation for timing in timings} == {"reference"}
    assert len(missing) == 1
    assert "cannot run as 'mamba_ssm'" in missing[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="times kernels for GPUs too")
def test_the_command_prints_the_ratio_to_the_reference(tmp_path):
    options = {"batch": 1, "channels": 4, "length": 5, "states": 2, "threads": 1, "rounds": 2}
    command = [sys.executable, "-m", "repshift.backbones.scan.benchmark"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"COLUMNS": "100"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "times as fast" in done.stdout
    assert re.search(r"reference +│ forward +│.*│ +1\.0 │", done.stdout)
    assert len(re.findall(r"blocked +│ (?:forward|reverse) +│.*│ +\d+\.\d │", done.stdout)) == 2
