"""Frames in a bucket: tasks and exports name the object, and nothing signed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import pytest

from tests.labeling.conftest import Sample, make_sample
from tests.servers import Servers
from workbench import labeling, services
from workbench.errors import ParameterError, ServiceError
from workbench.labeling import LabelStudio, media
from workbench.records.base import digest_of
from workbench.workspace import Workspace


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


class _Bucket(BaseHTTPRequestHandler):
    """As much of S3 as Label Studio asks before it attaches a bucket: is there anything."""

    def do_GET(self) -> None:
        listing = b"<ListBucketResult><KeyCount>1</KeyCount></ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(listing)))
        self.end_headers()
        self.wfile.write(listing)

    def log_message(self, *_: object) -> None:
        """Nothing: pytest shows what matters."""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket's address, and credentials for it in the environment."""
    store = ThreadingHTTPServer(("127.0.0.1", 0), _Bucket)
    threading.Thread(target=store.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server_address[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-a-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    yield "s3://drives/front"
    store.shutdown()
    store.server_close()


def test_the_embedded_server_signs_a_frame_late_and_exports_no_signature(
    bucket: str, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Workspace(tmp_path / ".workbench")
    try:
        services.up(place, ("label-studio",))
        admin = services.label_studio_admin(place)
        server = labeling.connect(admin.url, admin.token)
        sample = make_sample(place, "in-a-bucket", 1)
        frame = sample.frames[0]
        monkeypatch.setenv(media.VARIABLE, bucket)
        batch = sample.batch()
        sent = labeling.send(place, server, batch)
        named = f"{bucket}/{frame.id[:2]}/{frame.id}.png"
        assert server.export(sent.project)[0]["data"]["image"] == named

        task = server.frames(sent.project, digest_of(batch))[frame.id]
        headers = {"Authorization": f"Token {admin.token}"}
        shown = httpx.get(f"{admin.url}/api/tasks/{task}", headers=headers).json()["data"]["image"]
        answer = httpx.get(urljoin(admin.url, shown), headers=headers)
        assert answer.is_redirect
        signed = urlsplit(answer.headers["location"])
        assert signed.path == f"/drives/front/{frame.id[:2]}/{frame.id}.png"
        asked = parse_qs(signed.query)
        assert asked["X-Amz-Credential"][0].startswith("of-a-test/") and asked["X-Amz-Signature"]

        # Not after it was signed either, in no form that leaves the server.
        assert "X-Amz" not in json.dumps(server.export(sent.project))
        server.annotate(task, [])
        labels = labeling.collect(place, server, batch)
        kept = sample.store.payload(labels, "annotations.jsonl").read_text()
        assert "X-Amz" not in kept and frame.id in kept
    finally:
        services.down(place)
