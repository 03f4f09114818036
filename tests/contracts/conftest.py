"""What tests of one server share."""

from __future__ import annotations

import pytest

from tests.servers import Servers
from workbench import labeling, services
from workbench.labeling.server import LabelStudio


@pytest.fixture(scope="module")
def server(servers: Servers) -> LabelStudio:
    """Label Studio, as its administrator."""
    admin = services.label_studio_admin(servers.place)
    return labeling.connect(admin.url, admin.token)
