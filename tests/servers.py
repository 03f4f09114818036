"""Real servers for the contract tests: one set per session, in a workspace of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from workbench import services
from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace
from workbench.services.servers import label_studio_environment

# Ends the servers when the test session does, even if that is killed: its end of the pipe closes.
_WATCHDOG = """
import sys
from pathlib import Path
from workbench import services
from workbench.core.workspace import Workspace
sys.stdin.read()
services.down(Workspace(Path(sys.argv[1])))
"""


@dataclass(frozen=True)
class Servers:
    """All three servers, running.

    Attributes:
        environment: Variables for a step's process.
        mlflow: Address of MLflow, with its password.
    """

    workspace: Workspace
    environment: dict[str, str]
    mlflow: str


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    try:
        label_studio_environment()
    except ServiceError as error:
        pytest.skip(str(error))
    workspace = Workspace(tmp_path_factory.mktemp("servers") / ".workbench")
    watchdog = subprocess.Popen(
        [sys.executable, "-c", _WATCHDOG, str(workspace.root)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        services.up(workspace)
        mlflow = services.tracking_address(workspace)
        yield Servers(workspace, services.environment(workspace), mlflow)
    finally:
        watchdog.communicate(timeout=60)
