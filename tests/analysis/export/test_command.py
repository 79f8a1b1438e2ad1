import json
import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from repshift import Recipe, ShiftTracker, load_model
from repshift.analysis.export import writing
from repshift.exporting import Batches, largest_difference
from repshift.programs import FORMATS, SAID


@pytest.fixture
def run(run_command):
    return partial(run_command, "export", "-m", "tiny_resnet", "--pretrained")


@pytest.fixture
def images():
    return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def quick(monkeypatch):
    """A format that takes no time, and how far its programs are off."""

    def set_off(off):
        def write(model, images, batches, path, said):
            path.write_bytes(os.urandom(8))
            return ()

        monkeypatch.setitem(FORMATS, "pt2", replace(FORMATS["pt2"], write=write, load=lambda path: lambda images: None))
        monkeypatch.setattr(writing, "largest_difference", off)

    return set_off


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_pruned_model_is_written_checked_and_described(run, images, tmp_path):
    code, out, err = run("--drop", "12@0")
    assert (code, err) == (0, "")
    assert files(tmp_path) == ["model.pt2", "model.pt2.json"]
    said = json.loads((tmp_path / "model.pt2.json").read_text())
    assert said["input_size"] == [3, 64, 64]
    assert (said["num_classes"], said["batch"], said["format"], said["dtype"]) == (10, "1:", "pt2", "float32")
    assert said["mean"] == [pytest.approx(0.084)] * 3
    assert said["largest_difference"] < 1e-5
    assert said["versions"]["torch"] == torch.__version__
    pruned = ShiftTracker(load_model("tiny_resnet", pretrained=True)).prune(Recipe.from_dict(said["recipe"]))
    assert "checked at batch 1 and 3: it differs from the model by" in out
    lines = out.strip().splitlines()[-2:]
    names = {"images": images}
    with torch.no_grad():
        exec("\n".join(lines), names)  # what is printed is what runs
        torch.testing.assert_close(names["answers"], pruned(images), rtol=1e-4, atol=1e-4)
    extra = {SAID: ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra[SAID])["recipe"] == said["recipe"]


@pytest.mark.parametrize("drop", [(), ("--drop", "0.3@0")], ids=["dense", "pruned"])
def test_the_kernel_that_was_chosen_is_in_the_program(run_command, tmp_path, drop):
    code, _, err = run_command("export", "-m", "tiny_vit", "--batch", 1, "--attention", "math", *drop)
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "model.pt2.json").read_text())["attention"] == "math"
    called = {str(node.target) for node in torch.export.load(tmp_path / "model.pt2").graph.nodes}
    assert [name for name in called if "attention" in name] == ["aten._scaled_dot_product_attention_math.default"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_held_to_the_model_in_it_and_told_of_float32(run, images, tmp_path, precision):
    code, out, err = run("--drop", "12@0", "--precision", precision)
    assert (code, err) == (0, "")
    said = json.loads((tmp_path / "model.pt2.json").read_text())
    assert said["dtype"] == precision
    assert said["largest_difference"] < 0.01
    assert 1e-4 < said["difference_from_float32"] < 0.1
    assert f"images are {precision}" in out
    pruned = ShiftTracker(load_model("tiny_resnet", pretrained=True)).prune("12@0")
    given = images.to(getattr(torch, precision))
    with torch.no_grad():
        found = torch.export.load(tmp_path / "model.pt2").module()(given)
        assert found.dtype == given.dtype
        assert largest_difference(found, pruned.to(given.dtype)(given)) < 0.01


def test_a_program_that_is_wrong_is_refused_in_half_precision_too(run, tmp_path, quick):
    quick(lambda found, expected: 0.3)
    code, _, err = run("--batch", 2, "--precision", "bfloat16")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "by 0.3 of the largest answer, more than 0.25" in err
    assert files(tmp_path) == []


def test_what_was_written_is_replaced_as_a_whole(run, tmp_path, quick):
    quick(lambda found, expected: 0.0)
    assert run("--batch", 2)[0] == 0
    first = (tmp_path / "model.pt2").read_bytes()
    assert run("--batch", 2)[0] == 0
    before = (tmp_path / "model.pt2").read_bytes()
    assert first != before
    quick(lambda found, expected: 1.0)
    code, _, err = run("--batch", 2, "--drop", "12@0")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "answers otherwise than the model: by 1 of" in err
    assert (tmp_path / "model.pt2").read_bytes() == before
    assert files(tmp_path) == ["model.pt2", "model.pt2.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(run, tmp_path, quick, number):
    if number == signal.SIGINT:  # who runs the tests may ignore it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # the signal may come a moment later
    quick(lambda found, expected: (os.kill(os.getpid(), number), time.sleep(20)))
    code, out, _ = run("--batch", 2)
    assert code in (130, 128 + number)
    assert "nothing was written" in out
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "tflite"), "Unknown format 'tflite'"),
        (("--output", "model.bin"), "ends as no format does"),
        (("--format", "onnx", "--output", "model.pt2"), "ends in .onnx, got --output model.pt2"),
        (("--batch", "0"), "--batch got '0'"),
        (("--batch", "8:2"), "lies before its beginning"),
        (("--batch", "99999999999:"), "A batch of 99999999999 images cannot be"),
        (("--batch", "many"), "expected a number of images"),
        (("--drop", "12@0", "--score", "random"), "Random scores differ from run to run"),
        (("--drop", "12@77"), "drops at stage 77"),
        (("--pruner", "mnn"), "Nothing is dropped"),
        (("--format", "onnx", "--attention", "math"), "'math' would say nothing"),
        (("--attention", "math"), "has no attention that could run as 'math'"),
        (("--recipe", "math.json", "--format", "onnx"), "if a recipe has it, give --attention sdpa"),
        (("--precision", "half"), "Unknown --precision 'half'. Known: 'float32'"),
        (("--precision", "bfloat16", "--format", "onnx"), "no bfloat16 on a CPU"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_writes_nothing(run, tmp_path, arguments, message):
    Recipe("0.3@0", attention="math").save(tmp_path / "math.json")
    code, _, err = run(*arguments)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert message in err
    assert files(tmp_path) == ["math.json"]


def test_a_missing_package_says_which_extra(run, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    code, _, err = run("--format", "onnx")
    assert code == 1
    assert 'ONNX needs onnxscript, which is not installed: pip install "repshift[onnx]"' in err
    assert files(tmp_path) == []


def test_a_missing_compiler_is_one_line(run, tmp_path, monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    code, _, err = run("--format", "aoti")
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "there is no compiler" in err
    assert files(tmp_path) == []


def test_a_folder_in_its_place_is_refused_before_anything_is_built(run, tmp_path):
    (tmp_path / "model.pt2.json").mkdir()
    code, _, err = run()
    assert code == 1
    assert "it is a folder" in err


@pytest.mark.parametrize(
    ("text", "batches", "samples"),
    [
        ("8", Batches(8, 8), (8,)),
        ("1:", Batches(), (1, 3)),
        ("1:64", Batches(1, 64), (1, 3)),
        ("4:5", Batches(4, 5), (4, 5)),
        ("2:2", Batches(2, 2), (2,)),
    ],
)
def test_batches_are_read_and_tried_at_both_ends(text, batches, samples):
    assert writing.read_batches(text) == batches
    assert batches.samples == samples


def test_a_gpu_takes_so_many_images_at_once():
    assert (Batches().on("cpu").most, Batches().on("cuda:0").most, Batches(1, 8).on("cuda").most) == (None, 65535, 8)


def test_a_kernel_that_cannot_be_written_down_is_one_line(run_command, tmp_path):
    code, _, err = run_command("export", "-m", "tiny_vit", "--drop", "0.3@0", "--attention", "flex")
    if code:  # torch 2.14 cannot
        assert len(err.strip().splitlines()) == 1
        assert "cannot be exported as pt2" in err
        assert files(tmp_path) == []


def test_merging_compares_exactly_wherever_a_pruner_of_that_kind_stands():
    for name in ("mnn", "mnn1"):
        recipe, remarks = writing.compared_exactly(Recipe("0.2@0", pruner=name))
        assert recipe.pruner.exact
        assert recipe.pruner.rounds == (2 if name == "mnn" else 1)
        assert remarks
    recipe, _ = writing.compared_exactly(Recipe("0.2@0", pruner="mnn_frames"))
    assert recipe.pruner.within.exact
    for recipe in (None, Recipe("0.2@0"), Recipe("0.2@0", pruner="tome")):
        assert writing.compared_exactly(recipe) == (recipe, ())


def test_differences_are_shares_of_the_largest_and_infinite_where_there_is_no_number():
    expected = (torch.tensor([4.0, 1.0]), torch.tensor([True]))
    assert largest_difference((torch.tensor([4.0, 1.1]), torch.tensor([True])), expected) == pytest.approx(0.025)
    assert largest_difference(torch.tensor([torch.nan, 1.0]), expected) == torch.inf
    assert largest_difference(torch.zeros(3), expected) == torch.inf


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "precision", "largest"), [("onnx", "float32", 1e-5), ("aoti", "float32", 1e-5), ("onnx", "float16", 0.1)]
)
def test_other_formats_are_written_checked_and_say_what_they_are(run_command, tmp_path, form, precision, largest):
    for package in ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ():
        pytest.importorskip(package)
    place = Path(f"vit{FORMATS[form].ending}")
    code, out, err = run_command(
        "export", "-m", "tiny_vit", "--pretrained", "--drop", "0.3@0", "--format", form, "--output", place,
        "--precision", precision,
    )  # fmt: skip
    assert (code, err.strip()) == (0, "")
    said = json.loads((tmp_path / f"{place}.json").read_text())
    assert said["largest_difference"] < largest
    images = torch.randn(2, 3, 64, 64, dtype=getattr(torch, precision))
    if form == "onnx":
        images = images.numpy()
        import onnx

        held = {entry.key: entry.value for entry in onnx.load(place).metadata_props}
    else:
        held = torch._inductor.aoti_load_package(str(place)).get_metadata()
    assert json.loads(held[SAID])["recipe"] == said["recipe"]
    names = {"images": images}
    exec("\n".join(out.strip().splitlines()[-2:]), names)
    assert np.asarray(names["answers"]).size == 20


@pytest.mark.slow
def test_a_program_with_an_operator_of_ours_says_what_to_import(run_command, tmp_path):
    code, out, _ = run_command("export", "-m", "tiny_vim", "--pretrained", "--drop", "0.2@0")
    assert code == 0
    assert "import repshift.backbones.scan.operator" in out
    assert json.loads((tmp_path / "model.pt2.json").read_text())["imports"] == ["repshift.backbones.scan.operator"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("form", ["pt2", "aoti"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_models_are_exported_for_gpus_with_their_kernels(run_command, form, precision):
    kernel = "efficient" if precision == "float32" else "flash"
    asked = ("--drop", "0.3@0", "--format", form, "--precision", precision, "--attention", kernel)
    code, out, err = run_command("export", "-m", "tiny_vit", "--pretrained", "--device", "cuda", *asked)
    assert (code, err.strip()) == (0, "")
    assert "checked at batch 1 and 3" in out
