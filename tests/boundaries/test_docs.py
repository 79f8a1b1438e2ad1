"""What the pages, the notebooks and the docstrings promise to their readers."""

import ast
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import repshift

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SITE_PACKAGES = ("sphinx", "furo", "myst_nb", "latex2mathml")


# --- notebooks --------------------------------------------------------------------------------------------------


def cells_of(notebook):
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(notebook):
    run = [cell for cell in cells_of(notebook) if cell["cell_type"] == "code"]
    assert run
    assert not [cell["id"] for cell in run if cell["outputs"] or cell["execution_count"] is not None]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_its_title(notebook):
    first = cells_of(notebook)[0]
    assert first["cell_type"] == "markdown"
    assert re.match(r"# \w", "".join(first["source"]))


def test_the_index_shows_every_notebook():
    shown = re.findall(r"^notebooks/(\w+)$", (DOCS / "index.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert shown == [notebook.stem for notebook in NOTEBOOKS]


# --- pages ------------------------------------------------------------------------------------------------------


def links_of(text):
    """List the targets of links and pictures outside of code, without those on the web."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]


def test_links_are_found_outside_of_code_only():
    text = "[a](b.md#c) ![d](e.png)\n```\n[f](g.md)\n```\n`[h](i.md)` [j](https://k.org) [l](#m)"
    assert links_of(text) == ["b.md#c", "e.png", "#m"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_links_of_a_page_lead_to_files(page):
    targets = [target.partition("#")[0] for target in links_of(page.read_text(encoding="utf-8"))]
    assert not [target for target in targets if target and not (page.parent / target).exists()]


def test_the_links_of_the_notebooks_lead_to_files():
    missing = [
        f"{notebook.name}: {target}"
        for notebook in NOTEBOOKS
        for cell in cells_of(notebook)
        if cell["cell_type"] == "markdown"
        for target in links_of("".join(cell["source"]))
        if not (notebook.parent / target.partition("#")[0]).exists()
    ]
    assert not missing


def commands_in(text):
    """List the ``repshift COMMAND`` of the shell blocks, with the long options that each is given."""
    blocks = re.findall(r"```(?:sh|console)?\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    called = [re.match(r"(?:\$ |.* -m )?repshift (\w+)(.*?)(?:\s#.*)?$", line) for line in lines]
    return [(call[1], re.findall(r"\s(--[\w-]+)", call[2])) for call in called if call]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_commands_on_a_page_exist_with_their_options(page):
    from typer.main import get_command

    from repshift.analysis.cli import app

    known = get_command(app).commands
    wrong = []
    for name, options in commands_in(page.read_text(encoding="utf-8")):
        if name not in known:
            wrong.append(name)
        elif name != "zoo":
            taken = {flag for parameter in known[name].params for flag in (*parameter.opts, *parameter.secondary_opts)}
            wrong += [f"{name} {option}" for option in options if option not in taken]
    assert not wrong


def test_commands_and_options_are_found_in_shell_blocks():
    text = "```sh\nrepshift eval x --drop 1@0   # --not-this\ntorchrun --nproc 2 -m repshift bench --model a\n```"
    assert commands_in(text) == [("eval", ["--drop"]), ("bench", ["--model"])]


# --- docstrings -------------------------------------------------------------------------------------------------


def functions_of(path):
    """Yield the public functions of a file with their docstrings; a method's goes on with that of its class."""

    def walk(body, around):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from walk(node.body, ast.get_docstring(node) or "")
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield node, f"{ast.get_docstring(node) or ''}\n{around}"

    yield from walk(ast.parse(path.read_text(encoding="utf-8")).body, "")


FILES = sorted([*(ROOT / "repshift").rglob("*.py"), *(ROOT / "backbones").rglob("*.py")])


def of_every_function(complaint):
    return [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
        for path in FILES
        for function, docstring in functions_of(path)
        if complaint(function, docstring)
    ]


def parameters_of(function):
    return [argument for argument in (*function.args.args, *function.args.kwonlyargs) if argument.arg != "self"]


def test_functions_that_take_tensors_say_their_shape():
    def is_silent(function, docstring):
        takes = any(
            argument.annotation and "Tensor" in ast.unparse(argument.annotation) for argument in parameters_of(function)
        )
        return takes and "``(" not in docstring and "shape" not in docstring

    assert not of_every_function(is_silent)


def test_functions_that_raise_say_what_and_when():
    elsewhere = ("Raises:", "raises", "errors as", "see :class:")

    def is_silent(function, docstring):
        raises = any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(function))
        return raises and not any(words in docstring for words in elsewhere)

    assert not of_every_function(is_silent)


def test_functions_that_list_arguments_list_all():
    def is_incomplete(function, docstring):
        own = docstring.partition("\n    Args:")[2] or docstring
        listed = "Args:" in docstring and "Args:" in (ast.get_docstring(function) or "")
        return listed and any(
            f"{argument.arg}:" not in own for argument in parameters_of(function) if argument.arg != "cls"
        )

    assert not of_every_function(is_incomplete)


@pytest.mark.parametrize("name", [name for name in repshift.__all__ if callable(getattr(repshift, name))])
def test_a_public_name_documents_all_its_parameters(name):
    named = getattr(repshift, name)
    docstring = inspect.getdoc(named)
    assert docstring
    if not issubclass(type(named), type) or not issubclass(named, Exception):
        parameters = inspect.signature(named).parameters
        assert not [parameter for parameter in parameters if f"{parameter}:" not in docstring]


# --- the site ---------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    """The site that docs/build.sh has just built, if there is one (``REPSHIFT_SITE``), or one without notebooks run."""
    if built := os.environ.get("REPSHIFT_SITE"):
        return Path(built)
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("_build"))
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", tmp_path / "doctrees", tmp_path / "docs", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return tmp_path / "site"


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in SITE_PACKAGES), reason="needs pip install -e .[docs]"
)
def test_the_site_is_built_without_warnings_and_loads_nothing_from_elsewhere(site):
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    loaded = re.compile(
        r"""<(?:script|img|iframe)[^>]*\ssrc="(https?:)?//|<link[^>]*rel="stylesheet"[^>]*href="(https?:)?//"""
    )
    assert not [page.name for page, text in pages.items() if loaded.search(text)]
    assert "<math" in pages[site / "method.html"]
