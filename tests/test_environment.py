"""The lock, environment.yml, pyproject.toml and the installed packages agree."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from workbench.services.doctor import mismatched_packages

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-label-studio.lock")


def pins(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith(("#", " "))]
    return {canonicalize_name(pin.name): pin for pin in found}


def version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", pin
    return specifier.version


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [one for group in project["optional-dependencies"].values() for one in group]
    return [Requirement(line) for line in (*project["dependencies"], *extras)]


def test_every_declared_dependency_is_locked_within_its_bounds() -> None:
    locked = pins("requirements.lock")
    for wanted in declared():
        pin = locked.get(canonicalize_name(wanted.name))
        assert pin is not None, f"{wanted} is not in the lock: run `make lock`"
        assert wanted.specifier.contains(version(pin), prereleases=True), f"{wanted} against {pin}"


def test_label_studio_is_locked_within_its_bounds() -> None:
    asked = [
        Requirement(line)
        for line in (ROOT / "requirements-label-studio.in").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    locked = pins("requirements-label-studio.lock")
    assert asked
    for wanted in asked:
        assert wanted.specifier.contains(version(locked[canonicalize_name(wanted.name)]))


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_no_machine_specific_entries(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links|^/|@ /", text, re.M)
    for pin in pins(name).values():
        assert pin.url is None
        assert "+" not in version(pin), f"{pin} names a local build"


def test_the_lock_brings_no_accelerator_libraries() -> None:
    """PyPI's torch needs gigabytes of CUDA libraries; install that build only with a GPU."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if line.startswith(("nvidia-", "cuda-", "triton"))]


def test_importlib_metadata_stays_below_8() -> None:
    below = SpecifierSet("<8")
    assert below.contains(version(pins("requirements.lock")["importlib-metadata"]))


def test_conda_installs_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    assert pip == ["-r requirements.lock", "-e ."]
    python = next(p for p in environment["dependencies"] if str(p).startswith("python="))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(project["requires-python"]).contains(python.removeprefix("python="))


def test_installed_packages_match_the_lock() -> None:
    assert mismatched_packages(ROOT / "requirements.lock") == []


def test_mlflow_then_fiftyone_import() -> None:
    """With importlib-metadata 9 the second import fails with KeyError: 'author'."""
    code = "import mlflow, fiftyone; print(mlflow.__version__, fiftyone.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        # No server may be started or contacted by an import alone.
        env={
            "PATH": "",
            "HOME": "/nonexistent",
            "FIFTYONE_DATABASE_VALIDATION": "false",
            "FIFTYONE_DO_NOT_TRACK": "true",
            "FIFTYONE_DATABASE_URI": "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=10",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) == 2
