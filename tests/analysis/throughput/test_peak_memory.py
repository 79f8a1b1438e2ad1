import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from repshift import Recipe
from repshift.analysis.subjects.memory import MemoryExhaustedError
from repshift.analysis.throughput.peak_memory import held_bytes, peak_on_cpu
from repshift.analysis.throughput.setup import Setup
from repshift.errors import DataError

MIB = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")


def test_weights_buffers_and_images_are_held():
    setup = Setup("tiny_resnet")
    model = setup.load()
    tensors = model.state_dict().values()  # parameters and buffers alike
    expected = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert held_bytes(model, setup.images(model, 2)) == expected + 2 * 3 * 64 * 64 * 4


@linux
@pytest.mark.slow
def test_the_peak_is_that_of_the_widest_moment_of_a_vit_and_the_same_each_time():
    setup, batch, tokens, width = Setup("tiny_vit"), 64, 257, 48
    peaks = [peak_on_cpu(setup, None, batch, 1) for _ in range(2)]
    model = setup.load()
    activations = [peak - held_bytes(model, setup.images(model, batch)) for peak in peaks]
    # within the MLP: what entered the block, the stream, its norm, and four widths before and behind the activation
    by_hand = batch * tokens * width * 4 * (1 + 1 + 1 + 4 + 4)
    assert activations[0] == pytest.approx(by_hand, rel=0.15)
    assert activations[0] == pytest.approx(activations[1], abs=0.5 * MIB)


@linux
@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_said_by_the_process_that_measures():
    with pytest.raises(MemoryExhaustedError, match=r"A batch of 100000000000 does not fit"):
        peak_on_cpu(Setup("tiny_vit"), None, 10**11, 1)


@linux
@pytest.mark.slow
def test_a_process_that_fails_is_one_clear_error():
    with pytest.raises(DataError, match=r"measures the memory of dense at batch 1 ended with .*cudnn"):
        peak_on_cpu(Setup("tiny_vit", attention="cudnn"), None, 1, 1)


@linux
@pytest.mark.slow
def test_the_process_prints_bytes_and_nothing_else():
    request = {"setup": asdict(Setup("tiny_vim")), "recipe": Recipe("0.5@0").to_dict(), "batch_size": 1, "threads": 1}
    request["frames"] = None
    command = [sys.executable, "-m", "repshift.analysis.throughput.peak_memory"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > held_bytes(Setup("tiny_vim").load(), torch.zeros(1, 3, 64, 64))


def test_a_system_that_does_not_tell_has_no_peak(monkeypatch, tmp_path):
    monkeypatch.setattr("repshift.analysis.throughput.peak_memory.PROCESS", tmp_path)
    assert peak_on_cpu(Setup("tiny_vit"), None, 1, 1) is None
