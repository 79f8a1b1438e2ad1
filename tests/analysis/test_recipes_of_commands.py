"""Every command that prunes takes a recipe from a file and from a model's folder, and says it in its results."""

import json
import re
from pathlib import Path

import pytest

from repshift import Recipe, ShiftTracker, load_model, save_model
from repshift.analysis.output.results import read_results

RECIPE = Recipe("0.5@0,2", "attn", "l1", True)
OPTIONS = ("--drop", "0.5@0,2", "--operation", "attn", "--distance", "l1", "--residual")
TIMED = ("samples_per_sec", "step_time", "macs_per_sec", "speedup", "efficiency")  # not the same in every run


class Commands:
    """Runs each command in its shortest form; what it leaves is compared without what it timed."""

    def __init__(self, run, photos, image):
        self.run, self.photos, self.image = run, photos, image

    def __call__(self, name, *arguments):
        """Return exit code, standard output and standard error."""
        return self.run(name, *getattr(self, f"_{name}")(), *arguments)

    def outcome(self, name, *arguments):
        """Return what a command finds."""
        code, _, err = self(name, *arguments)
        assert (code, err.strip()) == (0, ""), err
        if name == "heatmap":
            return Path("out.png").read_bytes()
        if name == "report":
            text = Path("out.html").read_text(encoding="utf-8")
            found = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
            return found["explorer"], [fact for fact in found["facts"] if fact[0] != "Weights"]
        rows = [dict(row) for row in read_results(Path("out.json")).rows]
        return [{key: value for key, value in row.items() if not key.startswith(TIMED)} for row in rows]

    def _eval(self):
        return (self.photos, "-j", 0, "-b", 23, "--results-file", "out.json")

    def _bench(self):
        quick = ("--num-bench-iter", 2, "--num-warm-iter", 1, "--threads", 1, "--no-memory", "-b", 1)
        return (*quick, "--methods", "shift", "--results-file", "out.json")

    def _fidelity(self):
        return (self.photos, "-b", 23, "--methods", "shift", "--results-file", "out.json")

    def _heatmap(self):
        return ("--image", self.image, "--kept", "--output", "out.png")

    def _report(self):
        return ("--images", self.image, "--output", "out.html")


@pytest.fixture
def commands(run_command, folder, make_image):
    """Run the commands that prune."""
    return Commands(run_command, folder, make_image("a.png"))


@pytest.fixture
def file(tmp_path):
    """The recipe in a file."""
    RECIPE.save(tmp_path / "mine.json")
    return "mine.json"


@pytest.fixture
def saved(tmp_path):
    """The pruned model in a folder, and options that say the same."""
    model = load_model("tiny_vit", pretrained=True)
    save_model(ShiftTracker(model).prune(RECIPE), tmp_path / "saved", "tiny_vit")
    return "./saved"


NAMES = ["eval", "bench", "fidelity", "heatmap", "report"]
MODEL = ("-m", "tiny_vit")


def weights(name):
    return () if name == "bench" else ("--pretrained",)


def without(rows, *keys):
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_what_the_options_say(commands, file, name):
    by_options = commands.outcome(name, *MODEL, *weights(name), *OPTIONS)
    assert commands.outcome(name, *MODEL, *weights(name), "--recipe", file) == by_options
    plain = commands.outcome(name, *MODEL, *weights(name), *OPTIONS[:2])
    assert plain != by_options


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "beside",
    [OPTIONS[:2], ("--drop_r", "[0.5,0,0,0,0,0]"), OPTIONS[2:4], OPTIONS[4:6], OPTIONS[6:], ("--pruner", "lines")],
)
def test_an_option_beside_a_file_is_one_clear_error_and_writes_nothing(commands, file, tmp_path, name, beside):
    before = sorted(tmp_path.iterdir())
    code, out, err = commands(name, *MODEL, "--recipe", file, *beside)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert f"Got {beside[0].replace('_', '-')} beside --recipe mine.json" in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [None, "0.5@0", "[]", "{}", '{"schedule": "0.5@0", "score": "nrm"}'])
def test_a_file_that_is_no_recipe_is_one_clear_error_and_writes_nothing(commands, tmp_path, name, content):
    if content is not None:
        (tmp_path / "bad.json").write_text(content)
    before = sorted(tmp_path.iterdir())
    code, out, err = commands(name, *MODEL, "--recipe", "bad.json")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith("error: ")
    assert "bad.json" in err
    assert sorted(tmp_path.iterdir()) == before


def test_results_are_a_recipe_file_for_the_next_command(commands, tmp_path):
    (row,) = commands.outcome("eval", *MODEL, "--pretrained", *OPTIONS)
    (tmp_path / "out.json").rename(tmp_path / "first.json")
    (again,) = commands.outcome("eval", *MODEL, "--pretrained", "--recipe", "first.json")
    assert again == row
    timed = commands.outcome("bench", *MODEL, "--recipe", "first.json")
    assert [row["recipe"] for row in timed if row["method"] == "shift"] == [row["recipe"]]


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_pruned_by_its_own_recipe(commands, saved, name):
    expected = commands.outcome(name, *MODEL, *weights(name), *OPTIONS)
    found = commands.outcome(name, "-m", saved)
    if name in ("eval", "bench", "fidelity"):
        assert {row["model"] for row in found} == {saved}
        found, expected = without(found, "model"), without(expected, "model")
    assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_another_schedule_prunes_the_dense_model_of_a_folder(commands, saved, name):
    other = ("--drop", "0.2@1", "--distance", "cosine")
    expected, found = (
        commands.outcome(name, *MODEL, *weights(name), *other),
        commands.outcome(name, "-m", saved, *other),
    )
    if name in ("eval", "bench", "fidelity"):
        found, expected = without(found, "model"), without(expected, "model")
    assert found == expected


def test_weights_of_a_folder_are_not_called_random(commands, saved):
    for name in ("eval", "heatmap", "report"):
        assert "random" not in commands(name, "-m", saved)[1]


def test_models_that_are_folders_and_names_are_each_pruned_in_their_way(commands, saved):
    rows = commands.outcome("eval", "-m", f"{saved},tiny_resnet")
    assert [(row["method"], row["schedule"]) for row in rows] == [("shift", "0.5@0,2"), ("dense", None)]


def test_a_folder_can_be_compared_with_its_dense_model(commands, saved, run_command, tmp_path):
    (row,) = commands.outcome("eval", "-m", saved, "--compare-dense")
    assert row["dense_gmacs"] > row["gmacs"]
    code, _, err = commands("eval", "-m", f"{saved},tiny_vit", "--compare-dense")
    assert code == 1
    assert "nothing is dropped" in err


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (("ablate", "--num-samples", 6, "--study", "half", "--blocks", 0), "repshift-ablation/ablation.json"),
        (("statistics", "--num-samples", 4, "--curve-samples", 0), "repshift-statistics/statistics.json"),
    ],
)
def test_what_does_not_prune_looks_at_the_dense_model_of_a_folder(run_command, saved, tmp_path, arguments, file):
    found = []
    for model in (("-m", "tiny_vit", "--pretrained"), ("-m", saved)):
        code, out, err = run_command(*arguments, *model)
        assert (code, err.strip()) == (0, "")
        assert "weights are random" not in out
        content = json.loads((tmp_path / file).read_text())
        found.append({key: value for key, value in content.items() if key not in ("model", "environment")})
    assert found[0] == found[1]


# --- schedules and results ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_of_every_so_many_blocks_works_and_is_told_block_by_block(commands, name):
    expanded = commands.outcome(name, *MODEL, *weights(name), "--drop", "0.2@0,3")
    assert commands.outcome(name, *MODEL, *weights(name), "--drop", "0.2@0::3") == expanded
    if name in ("eval", "bench", "fidelity"):
        assert expanded[-1]["schedule"] == "0.2@0,3"


@pytest.mark.parametrize("name", ["eval", "bench"])
def test_rows_hold_the_whole_recipe_and_only_in_json(commands, tmp_path, name):
    rows = commands.outcome(name, *MODEL, *weights(name), *OPTIONS)
    whole = {**RECIPE.to_dict(), "pruner": "tokens"}
    expected = {"dense": None, "shift": whole, "oracle_free": {**whole, "score": "oracle_free"}}
    assert [row["recipe"] for row in rows] == [expected[row["method"]] for row in rows]
    assert commands(name, *MODEL, *OPTIONS, "--results-file", "out.csv")[0] == 0
    header = (tmp_path / "out.csv").read_text().splitlines()[0].split(",")
    columns = [key for key in read_results(tmp_path / "out.json").rows[0] if key != "recipe"]
    assert header[: len(columns)] == columns
    assert "recipe" not in header
    assert commands(name, *MODEL, *OPTIONS, "--results-file", "out.md")[0] == 0
    assert "recipe" not in (tmp_path / "out.md").read_text()


def test_the_points_of_an_ablation_hold_their_recipes_and_only_in_json(run_command, tmp_path):
    assert run_command("ablate", "--num-samples", 4, "--study", "distance", "--blocks", 2)[0] == 0
    rows = read_results(tmp_path / "repshift-ablation" / "ablation.json").rows
    assert rows[0]["recipe"] is None
    assert {str(row["distance"]) for row in rows[1:]} == {"l2", "l1", "cosine", "None"}
    for row in rows[1:]:
        recipe = Recipe.from_dict(row["recipe"])
        if row["setting"] == "lowres":
            assert recipe == Recipe(None, input_size=row["input_size"])
            continue
        assert (str(recipe.schedule), recipe.score, recipe.keep) == (row["drop"], row["score"], row["keep"])
        assert recipe.distance == (row["distance"] or "l2")
    header = (tmp_path / "repshift-ablation" / "ablation.csv").read_text().splitlines()[0]
    assert "recipe" not in header
