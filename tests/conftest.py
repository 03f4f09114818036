"""Fixtures of all tests: an empty workspace, its store, and real drives where available."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

from tests.servers import Servers, servers
from tests.tiny_run import TinyRun, tiny_run
from workbench.core.workspace import Workspace
from workbench.records.store import Store

__all__ = ["Servers", "TinyRun", "servers", "tiny_run"]  # fixtures that pytest finds here

# A property does not fail because the machine is busy.
hypothesis.settings.register_profile("workbench", deadline=None)
hypothesis.settings.load_profile("workbench")

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty workspace that everything run by the test finds through the environment."""
    root = tmp_path / ".workbench"
    monkeypatch.setenv("WORKBENCH_HOME", str(root))
    return Workspace(root)


@pytest.fixture
def store(workspace: Workspace) -> Store:
    return Store(workspace)


@pytest.fixture
def shared_data() -> Path:
    """Real recordings that are never part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real drives in {SHARED_DATA}")
    return SHARED_DATA


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process for the tests of a module, and one for all that need the servers."""
    for item in items:
        shared = {"servers", "tiny_run"} & set(getattr(item, "fixturenames", ()))
        item.add_marker(pytest.mark.xdist_group("servers" if shared else str(item.path)))
