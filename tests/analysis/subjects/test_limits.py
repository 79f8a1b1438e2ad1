import os

import pytest

from repshift import DataError, UnknownNameError
from repshift.analysis.subjects import limits
from repshift.analysis.subjects.devices import choose_device

PROCESSORS = os.cpu_count()


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30, True, 1.5, "1", None])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(DataError, match=r"is out of range\. Give a seed from 0 to 4294967295"):
        limits.check_seed(seed)
    limits.check_seed(0)
    limits.check_seed(2**32 - 1)


@pytest.mark.parametrize("workers", [-1, 100_000])
def test_workers_that_the_machine_has_no_use_for_are_refused(workers):
    with pytest.raises(DataError, match="--workers"):
        limits.check_workers(workers)
    limits.check_workers(0)
    limits.check_workers(8 * PROCESSORS)


@pytest.mark.parametrize("threads", [0, -1, PROCESSORS + 1, 9_999_999])
def test_threads_are_bounded_by_the_processors(threads):
    with pytest.raises(DataError, match=rf"{threads} threads cannot run on the {PROCESSORS} processors"):
        limits.check_threads(threads)
    limits.check_threads(None)
    limits.check_threads(PROCESSORS)


@pytest.mark.parametrize("number", [0, -3, 10**12])
def test_sizes_that_memory_cannot_hold_are_refused(number):
    with pytest.raises(DataError, match="--batch-size"):
        limits.check_batch(number)
    with pytest.raises(DataError, match="--img-size"):
        limits.check_side(number)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [([0, 0], "Block 0 is named twice"), ([True], "no block True"), ([0.5], "no block 0.5")],
)
def test_blocks_are_numbers_and_named_once(blocks, message):
    with pytest.raises(UnknownNameError, match=message):
        limits.check_blocks(blocks)
    assert limits.check_blocks([2, 0]) == [2, 0]


@pytest.mark.parametrize("device", ["", "cpu:7", "meta", "x"])
def test_devices_that_are_none_are_refused(device):
    with pytest.raises(DataError, match="device"):
        choose_device(device)


COMMANDS = {
    "eval": "eval cluttered-mnist -m tiny_vit",
    "ablate": "ablate",
    "statistics": "statistics -m tiny_vit",
    "finetune": "finetune -m tiny_vit --data cluttered-mnist --drop 1@0",
    "zoo": "zoo train tiny_vit",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("seed", ["-1", "99999999999999999999"])
def test_every_command_refuses_the_same_seeds(run_command, command, seed):
    code, _, err = run_command(*COMMANDS[command].split(), "--seed", seed)
    assert (code, err.count("\n")) == (1, 1)
    assert f"error: The seed {seed} is out of range" in err


@pytest.mark.parametrize(
    "words",
    [
        "bench -m tiny_vit --threads 9999999",
        "bench -m tiny_vit -b 99999999999999",
        "bench -m tiny_vit --img-size 99999999",
        "ablate --blocks 0,0",
        "ablate --blocks 0,-1",
        "statistics -m tiny_vit --blocks 1,1",
        "heatmap -m tiny_vit --image a.png --blocks 2,2",
        "eval cluttered-mnist -m tiny_vit -j 100000",
        "ablate -j 100000",
        "eval cluttered-mnist -m tiny_vit --crop-pct nan",
        "eval cluttered-mnist -m tiny_vit --mean nan nan nan",
        "eval cluttered-mnist -m tiny_vit --std 0 0 0",
        "finetune -m tiny_vit --data cluttered-mnist --drop 1@0 --lr inf",
        "finetune -m tiny_vit --data cluttered-mnist --drop 1@0 --weight-decay nan",
        "finetune -m tiny_vit --data cluttered-mnist --drop 1@0 --color-jitter -1",
    ],
)
def test_numbers_that_mean_nothing_are_one_line(run_command, make_image, words):
    make_image("a.png", 64, 64)
    code, _, err = run_command(*words.split())
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: ")


def test_curves_refuse_a_batch_that_is_none(run_command):
    code, _, err = run_command("curves", "results.json", "-b", "-7")
    assert code == 2
    assert "Invalid value for '--batch-size'" in err


def test_masks_that_mark_nothing_are_refused(run_command, write_pictures, tmp_path):
    from PIL import Image

    write_pictures(tmp_path / "data", 5, range(17, 19))
    for image in (tmp_path / "data").rglob("*.png"):
        mask = tmp_path / "masks" / image.relative_to(tmp_path / "data")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (64, 64)).save(mask)
    words = "statistics -m tiny_vit data --masks masks --num-samples 2 --curve-samples 0 --blocks 0"
    code, _, err = run_command(*words.split())
    assert code == 1
    assert "None of the 2 masks says where an object is" in err
