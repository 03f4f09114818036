"""Frames in a bucket: tasks and exports name the object, and nothing signed."""

from __future__ import annotations

import pytest

from tests.labeling.conftest import Sample, make_sample
from tests.servers import Servers
from workbench import labeling, services
from workbench.errors import ParameterError, ServiceError
from workbench.labeling import LabelStudio, media
from workbench.workspace import Workspace


@pytest.fixture(scope="module")
def server(servers: Servers) -> LabelStudio:
    admin = services.label_studio_admin(servers.place)
    return labeling.connect(admin.url, admin.token)


@pytest.fixture
def fresh(servers: Servers, request: pytest.FixtureRequest) -> Sample:
    return make_sample(servers.place, request.node.name[:40], 1)


def test_an_address_names_the_object(fresh: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = fresh.frames[0]
    monkeypatch.setenv(media.VARIABLE, "gs://drives/front/")
    found = media.address(Workspace(fresh.place.root / "elsewhere"), frame)
    assert found == f"gs://drives/front/{frame.id[:2]}/{frame.id}.png"


@pytest.mark.parametrize("url", ["ftp://x/y", "s3://", "s3://b/f?X-Amz-Signature=1"])
def test_what_cannot_be_signed_late_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(media.VARIABLE, url)
    with pytest.raises(ParameterError, match="cannot serve frames"):
        media.remote()


def test_a_bucket_that_the_server_may_not_read_is_told_before_anything_is_sent(
    fresh: Sample, server: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(media.VARIABLE, "s3://drives/front")
    with pytest.raises(ServiceError, match="cannot show images from drives") as error:
        labeling.send(fresh.place, server, fresh.batch())
    assert "credentials of its own" in str(error.value.hint)
    monkeypatch.delenv(media.VARIABLE)
    # The same batch, once its frames can be seen: each task once.
    sent = labeling.send(fresh.place, server, fresh.batch())
    assert sent.sent == 1 and len(server.export(sent.project)) == 1
