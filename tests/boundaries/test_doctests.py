"""The examples in docstrings run; pytest's own --doctest-modules would import the folders under other names."""

import contextlib
import doctest
import importlib
import inspect
import io
from pathlib import Path

import pytest

import repshift
from repshift.analysis.heatmap import maps
from repshift.analysis.output import overlays
from repshift.analysis.subjects import macs, recipes
from repshift.pruners import LinePruner, PositionPruner, TokenPruner

ROOT = Path(__file__).parents[2]
FOLDERS = {"repshift": "repshift", "backbones": "repshift.backbones", "analysis": "repshift.analysis"}
OPTIONAL = ("accelerate", "flash_attn", "mamba_ssm", "triton")


def modules_with_examples():
    return [
        ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts))
        for folder, package in FOLDERS.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
        if ">>>" in path.read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_give_what_they_say(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if str(error.name).partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"needs {error.name}")
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed, report.getvalue()


@pytest.mark.parametrize(
    "named",
    [
        repshift.ShiftTracker,
        repshift.ShiftTracker.prune,
        repshift.load_model,
        repshift.repeated_blocks,
        repshift.Schedule,
        repshift.Schedule.of,
        repshift.Schedule.kept,
        *(repshift.DISTANCES.get(name) for name in repshift.DISTANCES.names()),
        repshift.SCORES.get("norm"),
        TokenPruner,
        LinePruner,
        PositionPruner,
        macs.count_macs,
        maps.heatmap_array,
        overlays.show_map_on_image,
        recipes.apply,
    ],
    ids=lambda named: named.__qualname__,
)
def test_what_people_use_first_has_an_example(named):
    assert ">>> " in inspect.getdoc(named)


def test_an_example_that_is_wrong_is_found():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    with contextlib.redirect_stdout(io.StringIO()):
        assert doctest.DocTestRunner().run(wrong).failed == 1
