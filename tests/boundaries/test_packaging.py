import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import repshift

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]  # package -> folder


def shipped_files(folder):
    """Files of a folder that belong to the project, relative to the repository."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not any(part.startswith(".") for part in path.parts[-3:])
    }


def test_the_list_of_packages_misses_no_folder_with_code():
    listed = {FOLDERS[package] for package in PROJECT["tool"]["setuptools"]["packages"]}
    with_code = {
        Path(file).parent.as_posix()
        for folder in FOLDERS.values()
        for file in shipped_files(folder)
        if file.endswith(".py")
    }
    assert with_code == listed


def test_the_three_packages_share_one_name():
    own = {"repshift": "repshift", "repshift.backbones": "backbones", "repshift.analysis": "analysis"}
    inner = {package: folder for package, folder in FOLDERS.items() if package not in own}
    assert own.items() <= FOLDERS.items()
    assert all(
        package == ".".join(["repshift", *folder.removeprefix("repshift/").split("/")])
        for package, folder in inner.items()
    )


def test_the_package_data_miss_no_file():
    data = PROJECT["tool"]["setuptools"]["package-data"]
    matched = {
        path.relative_to(ROOT).as_posix()
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / FOLDERS[package]).glob(pattern)
    }
    files = {file for folder in FOLDERS.values() for file in shipped_files(folder) if not file.endswith(".py")}
    assert files <= matched


def test_the_versions_agree():
    assert PROJECT["project"]["version"] == repshift.__version__
    assert metadata.version("repshift") == repshift.__version__


@pytest.mark.parametrize("folder", ["analysis", "backbones"])
def test_importing_a_folder_under_its_bare_name_says_what_to_do(folder):
    done = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(rf"ImportError: import repshift\.{folder} instead; run 'pip install -e \.'", done.stderr)


def setuptools_is_recent():
    try:
        return int(metadata.version("setuptools").partition(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not setuptools_is_recent(), reason="building without a network needs setuptools 77 or later here")
def test_the_wheel_holds_all_code_and_data_and_the_licences(tmp_path):
    source = tmp_path / "source"  # a copy, because building writes into the folder
    for folder in FOLDERS.values():
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        tmp_path,
        ".",
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        package.replace(".", "/") + "/" + file.removeprefix(f"{folder}/")
        for package, folder in FOLDERS.items()
        for file in shipped_files(folder)
    }
    assert expected <= names
    assert {name.split("/")[-1] for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert {name.split("/")[0] for name in names} == {"repshift", f"repshift-{repshift.__version__}.dist-info"}
