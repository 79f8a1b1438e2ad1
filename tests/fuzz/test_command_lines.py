"""Whatever a command line says, the command does it, or ends with an error of ours or of usage, and no traceback."""

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image

from repshift import Recipe
from repshift.analysis import cli

NUMBERS = ["-7", "0", "1", "2", "3", "nan", "inf", "1e400", "99999999999999999999", "x", "", "0.5", "2.5", "-0"]
BLOCKS = ["0", "2", "0,2", "0,0", "-1", "99", "x", "", "0,,1", "1,0", "0,1,2,3,4,5,6"]
DROPS = ["0.2@0", "2@0", "0.5@0::2", "nan@0", "0.2", "0.2@99", "1@0;1@0", "", "[0.2,0,0]", "999@0", "x", "0.999@0"]
WORDS = ["x", "", "top", "bottom", "l2", "cosine", "mlp", "stage", "norm", "random", "cls_attention", "oracle_free"]
FILES = [
    "junk",
    "image.png",
    "cut.png",
    "deep.json",
    "list.json",
    "recipe.json",
    "results.json",
    "nothing",
    "data",
    "-",
]
MODELS = [
    "tiny_vit",
    "tiny_resnet",
    "tiny_vim",
    "nothing",
    "",
    "data",
    "./data",
    "junk",
    "tiny_vit,tiny_vim",
    "resnet18.x",
]
OUT = ["out", "out/deep", "image.png", "junk/inside", "data", ".", "out/x.png", "out/x.json", "out/x.csv", "out/x.html"]
MODEL = {"-m": MODELS, "--checkpoint": FILES, "--pretrained": None, "--use-ema": None}
PRUNING = {
    "--drop": DROPS,
    "--drop-r": DROPS,
    "--recipe": FILES,
    "--operation": WORDS,
    "--distance": WORDS,
    "--pruner": ["tokens", "sequence", "lines", "positions", "x", ""],
    "--residual": None,
}
DATA = {
    "--dataset": ["", "torch/x", "hfds/x", "x"],
    "--split": ["", "x", "validation", "../validation"],
    "--num-samples": NUMBERS,
    "-b": NUMBERS,
    "-j": ["0", "-1", "x", "99999999"],
    "--device": ["cpu", "cuda", "cpu:7", "meta", "x", ""],
    "--seed": NUMBERS,
}
SIZES = {"--img-size": ["32", "64", "0", "-3", "x", "99999999"], "--input-size": ["3", "0"]}
QUICK = "--num-samples 2 -b 2 -j 0"
COMMANDS = {
    "heatmap": (
        "-m tiny_vit --image image.png --output out/x.png",
        MODEL
        | PRUNING
        | SIZES
        | {"--image": FILES, "--blocks": BLOCKS, "--sites": ["blocks.*", "x", "", "[", "norm"]}
        | {"--scale": ["image", "block", "all", "x"], "--output": OUT, "--score": WORDS}
        | dict.fromkeys(("--attention", "--overlay", "--kept")),
    ),
    "bench": (
        "-m tiny_resnet --drop 1@0 -b 1 --num-bench-iter 1 --num-warm-iter 1 --no-memory --img-size 64 "
        "--methods dense,shift",
        MODEL
        | PRUNING
        | {"--threads": NUMBERS, "--methods": ["dense", "shift,random", "x", "", ","]}
        | {"-b": ["1", "2,1", "0", "x", "", "99999999999999"], "--precision": ["float32", "bfloat16", "x"]}
        | {
            "--attention": ["sdpa", "eager", "math", "x"],
            "--img-size": SIZES["--img-size"],
            "--device": DATA["--device"],
        }
        | {"--results-file": OUT, "--results-format": ["csv", "json", "md", "x"], "--num-warm-iter": ["0", "-1", "x"]},
    ),
    "ablate": (
        f"data -m tiny_vit {QUICK} --study distance --blocks 0 --output out",
        MODEL
        | DATA
        | {"--study": ["all", "half", "score,x", "", "residual"], "--blocks": BLOCKS, "--count": NUMBERS}
        | {"--output": OUT},
    ),
    "statistics": (
        f"data -m tiny_vit {QUICK} --curve-samples 0 --output out",
        MODEL
        | DATA
        | {"--blocks": BLOCKS, "--curve-samples": ["0", "-1", "x"], "--masks": ["data", "black", "junk", "x"]}
        | {"--class-map": FILES, "--output": OUT},
    ),
    "eval": (
        f"data -m tiny_vit {QUICK}",
        MODEL
        | PRUNING
        | DATA
        | SIZES
        | {"--score": WORDS, "--keep": WORDS, "--num-classes": NUMBERS, "--mean": ["0", "x"]}
        | {"--crop-pct": NUMBERS, "--crop-mode": WORDS, "--interpolation": ["bicubic", "nearest", "x", ""]}
        | {"--model-kwargs": ["img_size=0", "x", "depth=-1", "depth=2", "a=b", "=", "num_classes=10", "drop_rate=nan"]}
        | {"--valid-labels": FILES, "--real-labels": FILES, "--class-map": FILES, "--results-file": OUT}
        | {"--on-error": ["skip", "x"], "--amp-dtype": ["bfloat16", "x"], "--model-dtype": ["bfloat16", "x"]}
        | dict.fromkeys(("--amp", "--compare-dense", "--retry", "--resume", "--no-resume", "--channels-last")),
    ),
    "report": (
        "image.png -m tiny_vit --output out/x.html",
        MODEL
        | PRUNING
        | {"--images": FILES, "--num-images": NUMBERS, "--classes": FILES, "--score": WORDS, "--keep": WORDS}
        | {"--device": DATA["--device"], "--output": OUT},
    ),
    "curves": (
        "results.json --output out/x.png",
        {"-b": NUMBERS, "--output": OUT} | dict.fromkeys((*FILES, "--help")),
    ),
    "finetune": (
        "-m tiny_resnet --data training --drop 1@0 --epochs 1 --cooldown-epochs 0 -b 2 -j 0 --output out",
        MODEL
        | PRUNING
        | {name: DATA[name] for name in ("--dataset", "-b", "-j", "--device", "--seed")}
        | dict.fromkeys(
            (
                "--lr",
                "--min-lr",
                "--warmup-lr",
                "--weight-decay",
                "--clip-grad",
                "--smoothing",
                "--mixup",
                "--cutmix",
                "--hflip",
                "--color-jitter",
                "--reprob",
                "--model-ema-decay",
                "--warmup-epochs",
                "--grad-accum-steps",
            ),
            NUMBERS,
        )
        | {"--epochs": ["0", "-1", "x", "1"], "--opt": ["adamw", "sgd", "x", ""], "--aa": ["rand-m9", "x", ""]}
        | {"--num-classes": NUMBERS, "--data": ["data", "junk", "nothing"], "--output": OUT, "--no-aug": None},
    ),
    "zoo train": (
        "tiny_vit --digits data --output out",
        {"--digits": FILES, "--epochs": NUMBERS, "--seed": NUMBERS, "--device": DATA["--device"], "--output": OUT},
    ),
}


def pictures(folder, numbers, value=None):
    for number in numbers:
        place = folder / str(number)
        place.mkdir(parents=True)
        noise = np.random.RandomState(number).randint(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise if value is None else np.full_like(noise, value)).save(place / "1.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with small data and with files of every kind."""
    folder = tmp_path_factory.mktemp("fuzz")
    pictures(folder / "data" / "validation", range(10))
    pictures(folder / "black" / "validation", range(10), 0)
    for split in ("train", "validation"):
        pictures(folder / "training" / split, range(10))
    shutil.copy(folder / "data" / "validation" / "3" / "1.png", folder / "image.png")
    (folder / "cut.png").write_bytes((folder / "image.png").read_bytes()[:200])
    (folder / "deep.json").write_text("[" * 10_000)
    (folder / "list.json").write_text("[1, null, {}]")
    Recipe("2@0").save(folder / "recipe.json")
    rows = [{"model": "tiny_vit", "method": "dense", "top1": 50.0, "gmacs": 1.0, "samples": 2, "img_size": 64}]
    results = {"repshift_results": 1, "kind": "eval", "environment": {}, "results": rows}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def run(place, words, within):
    """Run a command line as :func:`repshift.analysis.cli.main` does; returns its exit code and what it said."""
    said, before, threads = io.StringIO(), Path.cwd(), torch.get_num_threads()
    shutil.rmtree(place / "out", ignore_errors=True)
    try:
        os.chdir(place)
        with (
            within(90),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "argv", ["repshift", *words])
            patch.setenv("HF_HUB_OFFLINE", "1")
            try:
                cli.main()
            except SystemExit as ended:
                return ended.code or 0, said.getvalue()
        return 0, said.getvalue()
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


def check(place, words, within):
    kept = {path: path.read_bytes() for path in place.iterdir() if path.is_file() and path.name != "junk"}
    code, said = run(place, words, within)
    event(f"{words[0]}: {code}")
    assert code in (0, 1, 2), (code, said)
    assert "Traceback" not in said
    assert code == 0 or re.search(r"error|Usage|must", said, re.IGNORECASE), said
    assert (code == 0) <= bool(said.strip())
    changed = [path.name for path, content in kept.items() if not path.exists() or path.read_bytes() != content]
    assert not changed or set(changed) & set(words), changed  # what was not named is left alone


@pytest.mark.parametrize("command", COMMANDS)
@settings(settings.get_profile("commands"))
@given(data=st.data())
def test_options_of(command, data, place, within):
    base, options = COMMANDS[command]
    words = [*command.split(), *base.split()]
    for option in data.draw(st.lists(st.sampled_from(sorted(options)), max_size=2, unique=True)):
        values = options[option]
        # now and then what nobody thought of
        likely = st.sampled_from(values or [""])
        drawn = data.draw(st.one_of(likely, likely, likely, st.text("0123456789.,@x-", max_size=5)))
        value = [] if values is None else [drawn]
        repeated = {"--input-size": 3, "--mean": 3, "--std": 3}.get(option, 1)
        words += [option, *itertools.chain.from_iterable([value] * repeated)]
    (place / "junk").unlink(missing_ok=True)
    (place / "junk").write_bytes(data.draw(st.binary(max_size=60)))
    check(place, words, within)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
COLUMNS = ["model", "method", "schedule", "top1", "dense_top1", "gmacs", "samples", "img_size", "batch_size", "recipe"]


@given(
    st.sampled_from([["curves", "junk", "--output", "out/x.png"], ["report", "junk.json", "--output", "out/x.html"]]),
    st.sampled_from(["eval", "bench", "ablate", "x"]),
    st.lists(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=6), max_size=2) | VALUES,
)
def test_damaged_results(place, within, words, command, rows):
    text = json.dumps({"repshift_results": 1, "kind": command, "environment": {}, "results": rows})
    for name in ("junk", "junk.json"):
        (place / name).write_text(text)
    try:
        check(place, words, within)
    finally:
        (place / "junk.json").unlink()


@given(st.sampled_from(["heatmap", "report"]), st.integers(0, 400), st.binary(min_size=1, max_size=20))
def test_damaged_images(place, within, command, start, damage):
    content = (place / "image.png").read_bytes()
    damaged = place / "damaged.png"
    damaged.write_bytes(content[:start] + damage + content[start + len(damage) :])
    option = "--image" if command == "heatmap" else "--images"
    try:
        check(
            place,
            [
                command,
                "-m",
                "tiny_vit",
                option,
                "damaged.png",
                "--output",
                f"out/x.{'png' if option == '--image' else 'html'}",
            ],
            within,
        )
    finally:
        damaged.unlink()
