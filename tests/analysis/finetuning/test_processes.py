"""Fine-tuning by several processes."""

import json
import os
import subprocess
import sys

import pytest
import torch

from repshift import ShiftTracker, load_model

CHECKED = """
import torch
from torch import distributed
from repshift.analysis import cli
from repshift.analysis.finetuning.checkpoints import Checkpoints

original = Checkpoints.save

def save(self, progress):
    own = torch.cat([value.flatten().double() for value in self.saver.model.state_dict().values()])
    every = [torch.empty_like(own) for _ in range(2)]
    distributed.all_gather(every, own)
    assert torch.equal(*every), "the processes evaluate different models"
    original(self, progress)

Checkpoints.save = save
cli.main()
"""


@pytest.mark.slow
def test_two_processes_train_one_model_and_count_every_image_once(pictures, tmp_path, share_right):
    (tmp_path / "checked.py").write_text(CHECKED)

    def launch(*program, epochs):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += [*program, "finetune", "-m", "tiny_resnet", "--pretrained", "--drop", "10@0"]
        command += ["--data", str(pictures), "--epochs", str(epochs), "--lr", "3e-3", "-b", "6", "-j", "0"]
        command += ["--device", "cpu", "--output", str(tmp_path / "out")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    done = launch(tmp_path / "checked.py", epochs=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fine-tuned, epoch") == 1  # only one of them reports
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["processes"] == 2
    dense = load_model("tiny_resnet", pretrained=True)
    tuned = load_model("tiny_resnet", checkpoint=tmp_path / "out" / "model_best.safetensors")
    assert not torch.equal(tuned.fc.weight, dense.fc.weight)
    assert summary["accuracy"] == {
        "dense": share_right(dense, pictures),
        "pruned": share_right(ShiftTracker(dense).prune("10@0"), pictures),
        "finetuned": share_right(ShiftTracker(tuned).prune("10@0"), pictures),
    }
    refused = launch("-m", "repshift", epochs=3)
    assert refused.returncode == 1
    assert "other epochs (2, now 3)" in refused.stderr
