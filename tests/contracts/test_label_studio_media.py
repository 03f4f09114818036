"""Images in a bucket: tasks and exports contain the object's address without a signature."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import pytest

from tests.buckets import ACCOUNT, BUCKET, FOLDER, HOSTS, OBJECT, USER, Buckets, buckets
from tests.contracts.conftest import exported_tasks
from tests.labeling.conftest import Sample, make_sample
from tests.servers import Servers
from workbench import labeling, services
from workbench.core.errors import ParameterError, ServiceError
from workbench.core.workspace import Workspace
from workbench.labeling import LabelStudio, projects
from workbench.records.base import digest_of


@pytest.fixture
def fresh(servers: Servers, request: pytest.FixtureRequest) -> Sample:
    return make_sample(servers.workspace, request.node.name[-40:].strip("[]"), 1)


def test_an_address_names_the_object(fresh: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = fresh.frames[0]
    monkeypatch.setenv(projects.MEDIA_URL_VARIABLE, "gs://drives/front/")
    address = projects.image_address(Workspace(fresh.workspace.root / "elsewhere"), frame)
    assert address == f"gs://drives/front/{frame.id[:2]}/{frame.id}.png"


@pytest.mark.parametrize("url", ["ftp://x/y", "s3://", "s3://b/f?X-Amz-Signature=1"])
def test_unsupported_media_urls_are_errors(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(projects.MEDIA_URL_VARIABLE, url)
    with pytest.raises(ParameterError, match="cannot serve images"):
        projects.remote_media_url()


@pytest.mark.parametrize(
    ("scheme", "needed"),
    [
        ("s3", "AWS_SECRET_ACCESS_KEY"),
        ("gs", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("azure-blob", "AZURE_BLOB_ACCOUNT_KEY"),
    ],
)
def test_an_unreadable_bucket_is_reported_before_anything_is_sent(
    scheme: str,
    needed: str,
    fresh: Sample,
    server: LabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(projects.MEDIA_URL_VARIABLE, f"{scheme}://{BUCKET}/{FOLDER}")
    with pytest.raises(ServiceError, match=f"cannot show images from {BUCKET}") as error:
        labeling.send(fresh.workspace, server, fresh.batch())
    assert needed in str(error.value.hint)
    monkeypatch.delenv(projects.MEDIA_URL_VARIABLE)
    # The same batch, once its frames can be seen: each task once.
    sent = labeling.send(fresh.workspace, server, fresh.batch())
    assert sent.sent == 1 and len(exported_tasks(server, sent.project)) == 1


@dataclass(frozen=True)
class Signing:
    """An embedded server that holds credentials for all three kinds of bucket."""

    workspace: Workspace
    server: LabelStudio
    token: str
    buckets: Buckets

    def get(self, path: str) -> httpx.Response:
        """The server's own answer; a redirect is not followed."""
        headers = {"Authorization": f"Token {self.token}"}
        return httpx.get(urljoin(self.server.url, path), headers=headers)

    def open(self, signed: str) -> httpx.Response:
        """What a labeler's browser gets at a signed address, out of the stand-in's buckets."""
        trusted = ssl.create_default_context(cafile=self.buckets.trusted)
        proxy = self.buckets.url if signed.startswith("https://") else None
        with httpx.Client(proxy=proxy, verify=trusted, trust_env=False) as browser:
            return browser.get(signed)


@pytest.fixture(scope="module")
def signing(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signing]:
    folder = tmp_path_factory.mktemp("signing")
    workspace = Workspace(folder / ".workbench")
    with buckets(folder) as stand_in, pytest.MonkeyPatch.context() as patch:
        for name, value in stand_in.environment.items():
            patch.setenv(name, value)
        # As somebody types it: the server runs in another folder than its caller.
        patch.chdir(folder)
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "service-account.json")
        try:
            services.up(workspace, ("label-studio",))
            admin = services.label_studio_admin(workspace)
            yield Signing(
                workspace, labeling.connect(admin.url, admin.token), admin.token, stand_in
            )
        finally:
            services.down(workspace)


@pytest.mark.parametrize(
    ("scheme", "host", "signature", "signer"),
    [
        ("s3", "", "X-Amz-Signature", {"X-Amz-Credential": "of-a-test/"}),
        ("gs", "storage.googleapis.com", "X-Goog-Signature", {"X-Goog-Credential": f"{USER}/"}),
        ("azure-blob", f"{ACCOUNT}.blob.core.windows.net", "sig", {"sr": "b", "sp": "r"}),
    ],
)
def test_the_embedded_server_signs_on_opening_and_exports_no_signature(
    scheme: str,
    host: str,
    signature: str,
    signer: dict[str, str],
    signing: Signing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, bucket = signing.server, f"{scheme}://{BUCKET}/{FOLDER}"
    sample = make_sample(signing.workspace, f"in-{scheme}", 1)
    frame = sample.frames[0]
    monkeypatch.setenv(projects.MEDIA_URL_VARIABLE, bucket)
    batch = sample.batch()
    sent = labeling.send(signing.workspace, server, batch)
    named = f"{bucket}/{frame.id[:2]}/{frame.id}.png"
    assert exported_tasks(server, sent.project)[0]["data"]["image"] == named
    callees = {asked for asked, _ in signing.buckets.asked}
    assert host in callees  # may it read the bucket
    # Nobody else is called: a proxy leads out of here. Google's library asks the last by itself.
    assert callees <= {"", *HOSTS, "iamcredentials.googleapis.com"}
    projects.attach_images(server, sent.project, signing.workspace)
    kind = projects.MEDIA_STORAGES[scheme]
    assert len(signing.get(f"/api/storages/{kind}?project={sent.project}").json()) == 1

    task = server.task_by_frame(sent.project, digest_of(batch))[frame.id]
    answer = signing.get(signing.get(f"/api/tasks/{task}").json()["data"]["image"])
    assert answer.is_redirect
    signed = answer.headers["location"]
    parts = urlsplit(signed)
    assert parts.netloc == (host or urlsplit(signing.buckets.url).netloc)
    assert parts.path == f"/{BUCKET}/{FOLDER}/{frame.id[:2]}/{frame.id}.png"
    asked = parse_qs(parts.query)
    assert asked[signature] and all(asked[n][0].startswith(v) for n, v in signer.items())
    assert signing.open(signed).content == OBJECT
    assert signing.open(signed.replace(frame.id, "0" * 64)).status_code == HTTPStatus.FORBIDDEN

    # Not after it was signed either, in no form that leaves the server.
    secret = (f"{signature}=", asked[signature][0])
    exported = json.dumps(exported_tasks(server, sent.project))
    server.annotate(task, [])
    labels = labeling.collect(signing.workspace, server, batch)
    annotations = sample.store.payload(labels, "annotations.jsonl").read_text()
    assert named in exported and frame.id in annotations
    assert not any(one in text for one in secret for text in (exported, annotations))


@pytest.mark.parametrize("scheme", ["gs", "azure-blob"])
def test_an_empty_folder_is_an_error(
    scheme: str, signing: Signing, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = make_sample(signing.workspace, f"nowhere-{scheme}", 1)
    monkeypatch.setenv(projects.MEDIA_URL_VARIABLE, f"{scheme}://{BUCKET}/rear")
    with pytest.raises(ServiceError, match=rf"{BUCKET}.*(No blobs found|not found)") as error:
        labeling.send(signing.workspace, signing.server, sample.batch())
    assert "at least one object below that folder" in str(error.value.hint)
