import ast
import subprocess
import sys
from pathlib import Path

import pytest

import repshift
from repshift import BACKBONES, MODELS

ROOT = Path(__file__).parents[2]
OPTIONAL = ("flash_attn", "mamba_ssm", "timm", "matplotlib", "typer", "rich", "safetensors")


def run_fresh(script, folder):
    """Run a script in a new process, away from the repository."""
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- what importing costs ---------------------------------------------------------------------------------------


LOADED = "print(*{name.partition('.')[0] for name in sys.modules})"


def test_importing_the_engine_imports_no_optional_package(tmp_path):
    loaded = set(run_fresh(f"import sys; from repshift import *; {LOADED}", tmp_path).split())
    assert "torch" in loaded
    assert not loaded & {*OPTIONAL, "torchvision", "PIL"}


@pytest.mark.parametrize("module", ["repshift", "repshift.analysis.cli"])
def test_torch_is_imported_when_it_is_needed(tmp_path, module):
    loaded = set(run_fresh(f"import sys, {module}; {LOADED}", tmp_path).split())
    assert not loaded & {"torch", "numpy"}


def test_the_package_has_its_names_and_its_modules():
    listed = (ROOT / "repshift" / "__init__.pyi").read_text()
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(listed).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    assert sorted(repshift.__all__) == sorted(names)
    assert all(getattr(repshift, name) is not None for name in names)
    assert repshift.pruners.PRUNERS is repshift.PRUNERS
    with pytest.raises(AttributeError, match="has no attribute 'ShiftTraker'"):
        _ = repshift.ShiftTraker


USE = """
import sys
import torch
from torch import nn

class Blocked:
    names = ()
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is blocked")

blocker = Blocked()
sys.meta_path.insert(0, blocker)

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)
    def forward(self, x):
        return x + self.mlp(self.norm(x))

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(Block(), Block())
    def forward(self, images):
        return self.blocks(self.embed(images).flatten(2).transpose(1, 2)).mean(1)

def use():
    import repshift
    from repshift.layouts import TokenSequence
    from repshift.sites import Operation, Site, Structure

    class Backbone:
        def matches(self, model):
            return isinstance(model, Mine)
        def structure(self, model):
            sites = tuple(
                Site(name, {"mlp": Operation(f"{name}.norm", (f"{name}.mlp",))}) for name in ("blocks.0", "blocks.1")
            )
            return Structure(sites, TokenSequence(), "embed", lambda size: (size[0] // 4, size[1] // 4), 16)

    model, images = Mine(), torch.rand(2, 3, 16, 16)
    with repshift.ShiftTracker(model, "blocks.*.mlp") as tracker:
        model(images)
    assert tracker.maps["blocks.1.mlp"].shape == (2, 4, 4)
    repshift.BACKBONES.register("mine", Backbone())
    pruned = repshift.ShiftTracker(model).prune({0: 0.5})
    with repshift.ShiftTracker(pruned) as tracker:
        assert pruned(images).shape == (2, 8)
    assert tracker.kept["blocks.0"].shape == (2, 8)

def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "repshift"]:
        del sys.modules[name]
"""


def test_the_engine_tracks_and_prunes_with_each_optional_package_blocked(tmp_path):
    script = f"{USE}\nfor name in {OPTIONAL}:\n    blocker.names = (name,)\n    use()\n    forget()\n    print(name)"
    assert run_fresh(script, tmp_path).split() == list(OPTIONAL)


def test_the_engine_tracks_and_prunes_with_all_optional_packages_blocked(tmp_path):
    script = f"{USE}\nblocker.names = {OPTIONAL}\nuse()\nprint(*(name in sys.modules for name in blocker.names))"
    assert run_fresh(script, tmp_path).split() == ["False"] * len(OPTIONAL)


@pytest.mark.parametrize("registry", [BACKBONES, MODELS], ids=lambda registry: registry.kind)
def test_every_lazy_name_leads_to_an_object(registry):
    assert registry.names()
    assert all(registry.get(name) is not None for name in registry.names())


# --- the arrows between the packages ----------------------------------------------------------------------------


def imports_of(path, package):
    """List ``(line, module, inside a function)`` of all imports of a file, names in ``from`` imports included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, node in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (start, node.module or "") if part)
            found += [(node.lineno, f"{module}.{alias.name}", node in inside) for alias in node.names]
    return found


def breaches(folder, package, forbidden, exempt=()):
    return [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name not in exempt
        for line, module, _ in imports_of(path, package)
        if any(f"{module}.".startswith(f"{name}.") for name in forbidden)
    ]


def test_the_walk_over_imports_sees_every_kind(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\ndef h():\n    import i\n")
    assert [(module, inside) for _, module, inside in imports_of(path, "p.q")] == [
        ("a.b", False),
        ("c.d", False),
        ("p.q.e", False),
        ("p.f.g", False),
        ("i", True),
    ]


def test_the_engine_imports_neither_backbones_nor_analysis():
    exempt = ("__main__.py", "loading.py")
    assert not breaches("repshift", "repshift", ("repshift.backbones", "repshift.analysis"), exempt)


def test_the_loader_imports_backbones_only_when_it_needs_them():
    imported = imports_of(ROOT / "repshift" / "loading.py", "repshift")
    assert not [module for _, module, _ in imported if module.startswith("repshift.analysis")]
    assert all(inside for _, module, inside in imported if module.startswith("repshift.backbones"))


def test_the_engine_imports_optional_packages_inside_functions_only():
    outside = [
        (path.name, module)
        for path in sorted((ROOT / "repshift").rglob("*.py"))
        for _, module, inside in imports_of(path, "repshift")
        if not inside and module.partition(".")[0] not in {"torch", "repshift", *sys.stdlib_module_names}
    ]
    assert outside == [("__init__.py", "lazy_loader")]


def test_backbones_do_not_import_analysis():
    assert not breaches("backbones", "repshift.backbones", ("repshift.analysis", "analysis"))


def test_analysis_names_backbones_only_through_the_engine():
    assert not breaches("analysis", "repshift.analysis", ("repshift.backbones", "backbones"))


def rooms_that_each_room_names():
    named = {}
    for path in sorted((ROOT / "analysis").rglob("*.py")):
        room, *inside = path.relative_to(ROOT / "analysis").with_suffix("").parts
        for _, module, _ in imports_of(path, ".".join(("repshift.analysis", room)) if inside else "repshift.analysis"):
            package, _, rest = module.partition("repshift.analysis.")
            other = rest.partition(".")[0]
            if not package and other and other != room:
                named.setdefault(room, set()).add(other)
    return named


def test_what_several_commands_use_names_no_command():
    shared = {"subjects", "samples", "output"}
    assert not {
        room: others - shared
        for room, others in rooms_that_each_room_names().items()
        if room in shared and others - shared
    }


def test_no_circle_runs_through_the_rooms_of_analysis():
    open_rooms = rooms_that_each_room_names()
    assert {"evaluation", "report", "samples"} <= set(open_rooms)
    while open_rooms:
        ends = [room for room, others in open_rooms.items() if not others & set(open_rooms)]
        assert ends, f"a circle among {sorted(open_rooms)}"
        for room in ends:
            del open_rooms[room]
