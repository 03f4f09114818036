"""Generated secrets."""

from __future__ import annotations

import stat

import pytest

from workbench.core import credentials
from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace


def test_a_secret_is_generated_once(workspace: Workspace) -> None:
    first = credentials.ensure_secret(workspace, "token")
    assert len(first) > 40
    assert credentials.ensure_secret(workspace, "token") == first
    assert credentials.ensure_secret(workspace, "other") != first


def test_files_and_folder_are_private(workspace: Workspace) -> None:
    credentials.ensure_secret(workspace, "token")
    path = credentials.secret_path(workspace, "token")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(workspace.secrets.stat().st_mode) == 0o700
    assert credentials.exposed_secrets(workspace) == []
    path.chmod(0o644)
    assert credentials.exposed_secrets(workspace) == [path]


def test_whitespace_around_a_secret_is_ignored(workspace: Workspace) -> None:
    credentials.ensure_secret(workspace, "token")
    path = credentials.secret_path(workspace, "token")
    path.write_text("by-hand\n")
    assert credentials.read_secret(path) == "by-hand"


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_a_missing_or_empty_secret_is_an_error(workspace: Workspace, content: str | None) -> None:
    path = workspace.root / "token"
    if content is not None:
        path.parent.mkdir(parents=True)
        path.write_text(content)
    with pytest.raises(ServiceError, match="token"):
        credentials.read_secret(path)
