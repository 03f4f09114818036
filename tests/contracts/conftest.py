"""What tests of one server share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers import Servers
from workbench import labeling, services
from workbench.core.workspace import Workspace
from workbench.labeling.server import LabelStudio


@pytest.fixture(scope="module")
def server(servers: Servers) -> LabelStudio:
    """Label Studio, as its administrator."""
    admin = services.label_studio_admin(servers.workspace)
    return labeling.connect(admin.url, admin.token)


@pytest.fixture(scope="module")
def attached(servers: Servers) -> Iterator[Workspace]:
    """This process, with FiftyOne attached to the session's mongod."""
    before = dict(os.environ)
    os.environ.update(servers.environment)
    yield servers.workspace
    os.environ.clear()
    os.environ.update(before)


def exported_tasks(server: LabelStudio, project: int) -> list[dict[str, Any]]:
    """Every task of a project with its annotations and predictions."""
    query = {"exportType": "JSON", "download_all_tasks": "true"}
    path = f"/api/projects/{project}/export"
    tasks: list[dict[str, Any]] = server._client.request("GET", path, params=query).json()
    return tasks
