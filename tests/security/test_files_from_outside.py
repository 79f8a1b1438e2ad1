"""No file from outside runs code or leads out of its folder; SECURITY.md lists the ways in, each with its test here."""

import ast
import json
import os
import pickle
import re
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

import repshift
from repshift import CheckpointError, DataError, RecipeError, RepshiftError, load_model, save_model


class Code:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def trap(tmp_path):
    """An object that leaves a file if it is unpickled, which is looked for in the end."""
    yield Code(tmp_path / "ran")
    assert not (tmp_path / "ran").exists(), "code from a file was run"


@pytest.fixture
def photos(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "0.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "safetensors", "tar"])
@pytest.mark.parametrize("wrap", [lambda code: code, lambda code: {"model": {"a": torch.ones(1)}, "args": code}])
def test_checkpoints(tmp_path, trap, ending, wrap):
    torch.save(wrap(trap), tmp_path / f"weights.{ending}")
    with pytest.raises(CheckpointError):
        load_model("tiny_vit", checkpoint=tmp_path / f"weights.{ending}")


def test_checkpoints_in_the_old_form_of_torch(tmp_path, trap):
    (tmp_path / "weights.pt").write_bytes(pickle.dumps({"a": trap}))
    with pytest.raises(CheckpointError):
        load_model("tiny_vit", checkpoint=tmp_path / "weights.pt")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model_best.safetensors", "model.safetensors"])
def test_weights_in_a_models_folder(tmp_path, trap, file):
    save_model(load_model("tiny_vit"), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({"a": trap}, tmp_path / "model" / file)
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pth"])
def test_folders_in_the_form_of_timm(tmp_path, trap, pretrained, file):
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"num_classes": 1000}}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"a": trap}, folder / file)
    if pretrained:
        with pytest.raises(CheckpointError):
            load_model(f"local-dir:{folder}", pretrained=True)
    else:
        load_model(f"local-dir:{folder}")


@pytest.mark.parametrize(
    "option", ["checkpoint_path", "checkpoint", "pretrained_cfg_overlay", "pretrained", "cache_dir"]
)
def test_a_description_names_no_weights_elsewhere(tmp_path, trap, option):
    torch.save({"a": trap}, tmp_path / "evil.pth")
    save_model(load_model("resnet18", num_classes=2), tmp_path / "model", num_classes=2)
    description = tmp_path / "model" / "repshift.json"
    said = json.loads(description.read_text())
    said["options"][option] = str(tmp_path / "evil.pth")
    description.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=rf"options {option}, which lead to other files"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    "name", ["local-dir:{other}", "{other}", "../other/", "file:{other}", "/etc/passwd", "../../x"]
)
def test_a_description_names_no_other_folder(tmp_path, monkeypatch, name):
    save_model(load_model("tiny_vit"), tmp_path / "model")
    save_model(load_model("tiny_vit"), tmp_path / "other")
    monkeypatch.chdir(tmp_path / "model")
    said = {"model": name.format(other=tmp_path / "other"), "options": {}, "recipe": None}
    (tmp_path / "model" / "repshift.json").write_text(json.dumps(said))
    with pytest.raises(RepshiftError):
        load_model(tmp_path / "model")


RECIPES = [
    {"schedule": "0.2@0", "pruner": "os:system"},
    {"schedule": "0.2@0", "pruner": {"name": "repshift.pruners:TokenPruner"}},
    {"schedule": "0.2@0", "score": "builtins:eval"},
    {"schedule": "__import__('os').system('x')"},
    {"schedule": "0.2@0", "distance": "torch:load"},
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_name_what_is_registered_and_import_nothing(tmp_path, recipe):
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": recipe}))
    with pytest.raises(RecipeError):
        repshift.Recipe.load(tmp_path / "recipe.json")


@pytest.mark.parametrize("value", ["__import__('os').system('touch ran')", "open('ran','w')", "[].__class__"])
def test_settings_of_models_are_literals_or_text(tmp_path, monkeypatch, value):
    from repshift.analysis.subjects.models import model_options

    monkeypatch.chdir(tmp_path)
    assert model_options(None, [f"a={value.replace(' ', '')}"]) == {"a": value.replace(" ", "")}
    assert list(tmp_path.iterdir()) == []


def test_lists_beside_large_tar_files_are_not_unpickled(tmp_path, photos, trap, monkeypatch):
    from repshift.analysis.samples.data import open_samples

    with tarfile.open(tmp_path / "photos.tar", "w") as file:
        file.add(photos, "photos")
    for name in ("_photos_tarinfos.pickle", "_photos.tar_tarinfos.pickle"):
        (tmp_path / name).write_bytes(pickle.dumps(trap))
    monkeypatch.setattr(os.path, "getsize", lambda path: 11 * 2**30)  # from 10 GiB on timm keeps such a list
    samples = open_samples(load_model("tiny_vit", num_classes=2), tmp_path / "photos.tar")
    assert len(samples) == 2


def test_members_of_tar_files_are_read_and_never_written(tmp_path, photos, monkeypatch):
    from repshift.analysis.samples.data import open_samples

    with tarfile.open(tmp_path / "photos.tar", "w") as file:
        for number, name in enumerate(["../../outside/0.png", "/tmp/absolute/1.png", "photos/2.png"]):
            info = file.gettarinfo(str(photos / "ant" / "0.png"), name)
            info.name = name
            with (photos / "ant" / "0.png").open("rb") as content:
                file.addfile(info, content)
            assert number < 3
    before = sorted(tmp_path.rglob("*"))
    samples = open_samples(load_model("tiny_vit"), tmp_path / "photos.tar", labelled=False)
    for index in range(len(samples)):
        samples.read(index)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/absolute").exists()


@pytest.mark.parametrize("data", ["", "pipe:touch ran"])
def test_shards_are_files_and_no_commands(tmp_path, monkeypatch, data):
    from repshift.analysis.samples.streams import open_stream

    monkeypatch.chdir(tmp_path)
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": {}}}))
    with pytest.raises(DataError, match="needs the folder of its shards"):
        open_stream(load_model("tiny_vit"), data, dataset="wds/photos", split="train")
    assert not (tmp_path / "ran").exists()


STATES = ["random_states_0.pkl", "optimizer.bin", "model.safetensors", "pytorch_model.bin", "progress.json"]


@pytest.mark.parametrize("file", STATES)
def test_states_of_a_fine_tuning_run(tmp_path, photos, trap, file):
    pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState

    from repshift.analysis.finetuning.settings import TrainingSettings
    from repshift.analysis.finetuning.training import finetune

    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "data" / split).symlink_to(photos, target_is_directory=True)
    chosen = {"model": "tiny_resnet", "num_classes": 2, "epochs": 1, "cooldown_epochs": 0, "batch_size": 2}
    settings = TrainingSettings(**chosen, data=str(tmp_path / "data"), recipe=repshift.Recipe("1@0"), no_aug=True)

    def run():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        finetune(settings, tmp_path / "out", workers=0, device="cpu")

    run()
    state = tmp_path / "out" / "state-1"
    assert state.is_dir()
    (state / file).write_bytes(pickle.dumps(trap))
    if file == "pytorch_model.bin":
        (state / "model.safetensors").unlink()
    with suppress(RepshiftError):
        run()


def test_states_of_the_zoo(tmp_path, trap):
    from repshift.analysis.samples.canvases import Digits
    from repshift.analysis.zoo.training import Trainer, ZooSettings

    torch.save({"model": trap}, tmp_path / "tiny_vit.training.pt")
    digits = Digits(torch.zeros(10, 28, 28, dtype=torch.uint8), torch.arange(10))
    with pytest.raises(CheckpointError):
        Trainer("tiny_vit", digits, tmp_path, ZooSettings(epochs=1, batch=10)).train(lambda *done: None)


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!--<script>"])
def test_names_on_the_page_are_text(name):
    from repshift.analysis.report.writing import make_page

    page = make_page(name, {"heading": name, "images": [{"name": name}]})
    assert name not in page
    assert page.count("<script") == 2
    assert "default-src 'none'" in page


# Calls that could run what a file says, and the only files that make them; each has a test above or beside it
GATES = {
    r"torch\.load\(": {"backbones/checkpoints.py", "analysis/zoo/state.py"},
    r"\bpickle\.loads?\(": {"repshift/testing/compilation.py"},  # of what it has pickled itself
    r"literal_eval\(": {"analysis/subjects/models.py"},
    r"subprocess\.": {"analysis/throughput/peak_memory.py"},  # a list of arguments, no shell
    r"import_module\(": {"repshift/registry.py", "repshift/__init__.py", "repshift/kernels.py"},  # of names in code
    r"\bav\.open\(": {
        "analysis/video/decoding.py",
        "analysis/heatmap/strips.py",  # writes into memory
        "analysis/video/digit_files.py",  # writes
    },
    r"load_state\(": {"analysis/finetuning/checkpoints.py"},
    r"(?<![\w.])(eval|exec|compile|__import__)\(": set(),
    r"os\.(system|popen|exec|spawn)|shell=True|yaml\.|marshal|shelve|np\.load|allow_pickle|extractall": set(),
    r"weights_only=False|trust_remote_code": set(),
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function": set(),
}


@pytest.mark.parametrize("pattern", GATES)
def test_the_gates_are_all_known(pattern):
    root = Path(__file__).parents[2]
    found = set()
    for folder in ("repshift", "backbones", "analysis"):
        for path in (root / folder).rglob("*"):
            if path.suffix in (".js", ".html") and "innerHTML" not in pattern:
                continue
            if path.suffix == ".py" and "innerHTML" in pattern:
                continue
            if path.suffix in (".py", ".js", ".html"):
                text = path.read_text(encoding="utf-8")
                code = _without_docstrings(text) if path.suffix == ".py" else text
                if re.search(pattern, code):
                    found.add(str(path.relative_to(root)))
    assert found == GATES[pattern]


def _without_docstrings(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
    return ast.unparse(tree)


def test_weights_only_is_said_wherever_torch_unpickles():
    root = Path(__file__).parents[2]
    for name in GATES[r"torch\.load\("]:
        for call in ast.walk(ast.parse((root / name).read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(call)


def test_every_entry_of_the_list_has_its_test():
    root = Path(__file__).parents[2]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (root / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    for file, test in named:
        assert f"def {test}(" in (root / file).read_text(encoding="utf-8"), f"{file}::{test}"
