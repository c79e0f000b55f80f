"""The wheel: built from a copy of the source, installed beside the environment, and run from a folder of its own."""

import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from medseg_se.version import __version__

ROOT = Path(__file__).parents[1]
HOMES = {"medseg_se": "medseg_se", "configs": "medseg_se/configs", "data_prep": "medseg_se/data_prep"}


def run(*arguments, **options):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=240, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Path of the built wheel; a copy of the source is built, so that no build folder appears in the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in HOMES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = ["-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "--wheel-dir", str(target), ".", cwd=source)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def content(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def outside(wheel, tmp_path_factory):
    """Return a function that runs Python in an empty folder with only the installed wheel before the environment."""
    installed, folder = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("elsewhere")
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index", "--quiet"]
    run(*pip, "--target", str(installed), str(wheel))

    def python(*arguments):
        return run(*arguments, cwd=folder, env={**os.environ, "PYTHONPATH": str(installed)})

    found = python("-c", "import medseg_se, medseg_se.configs; print(medseg_se.__file__, medseg_se.configs.__file__)").split()
    assert all(Path(path).is_relative_to(installed) for path in found)
    return python


def test_the_wheel_holds_every_module_and_recipe(content):
    for folder, home in HOMES.items():
        files = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")]
        files += [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.yaml")]
        missing = {f"{home}/{path.as_posix()}" for path in files} - content
        assert not missing, f"setup.cfg leaves out {missing}"
    assert "medseg_se/py.typed" in content
    for folder in ("assets", "vendor"):
        files = {f"medseg_se/reports/{folder}/{path.name}" for path in (ROOT / "medseg_se" / "reports" / folder).iterdir()}
        assert files
        assert files <= content
    assert "medseg_se/configs/hippocampus_unet3d_scse.yaml" in content


def test_the_wheel_holds_nothing_else(content):
    assert {name.split("/")[0] for name in content} == {"medseg_se", f"medseg_se-{__version__}.dist-info"}
    assert not [name for name in content if "tests" in Path(name).parts or name.endswith((".pyc", ".ckpt", ".nii.gz"))]


def test_the_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        information = f"medseg_se-{__version__}.dist-info"
        said = message_from_bytes(archive.read(f"{information}/METADATA"))
        entries = archive.read(f"{information}/entry_points.txt").decode()
        assert archive.read(f"{information}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert (said["Name"], said["Version"]) == ("medseg-se", __version__)
    assert (said["License-Expression"] or said["License"]) == "Apache-2.0"
    assert said.get_payload(decode=True).decode("utf-8").strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert "medseg-se = medseg_se.cli.main:main" in entries
    assert "medseg-prep = medseg_se.data_prep.main:main" in entries


def test_the_installed_package_lists_and_prints_its_recipes(outside):
    listed = [line.split()[0] for line in outside("-m", "medseg_se", "configs").splitlines()]
    experiments = sorted(path.stem for path in (ROOT / "configs" / "experiments").glob("*.yaml"))
    recipes = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    assert listed == [*recipes, *(f"experiments/{name}" for name in experiments)]
    printed = outside("-m", "medseg_se", "configs", listed[0])
    assert printed == (ROOT / "configs" / f"{listed[0]}.yaml").read_text(encoding="utf-8")


def test_the_installed_converters_list_themselves(outside):
    printed = outside("-c", "from medseg_se.data_prep.main import main; raise SystemExit(main(['--help']))")
    assert "phantom" in printed
