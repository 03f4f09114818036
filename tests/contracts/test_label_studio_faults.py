"""Faults between this process and a real Label Studio: nothing lost, nothing duplicated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.contracts.conftest import exported_tasks
from tests.labeling.conftest import Sample, make_sample
from tests.labeling.faulty import Fault, FaultyProxy
from tests.servers import Servers
from workbench import labeling, services
from workbench.core.errors import DataError, ParameterError, ServiceError, Waiting
from workbench.labeling import LabelStudio, client, sender, sync
from workbench.labeling.regions import DrawnObject, to_regions
from workbench.records import dataset
from workbench.records.base import Ref, digest_of
from workbench.records.frames import Box, Label
from workbench.records.types import LabelSet


@pytest.fixture(scope="module")
def direct(servers: Servers) -> LabelStudio:
    admin = services.label_studio_admin(servers.workspace)
    return labeling.connect(admin.url, admin.token)


@pytest.fixture
def proxy(direct: LabelStudio) -> Iterator[FaultyProxy]:
    with FaultyProxy(direct.url) as proxy_server:
        yield proxy_server


@pytest.fixture
def server(servers: Servers, proxy: FaultyProxy) -> LabelStudio:
    """The same server, reached through the proxy."""
    return labeling.connect(proxy.url, services.label_studio_admin(servers.workspace).token)


@pytest.fixture
def fresh(servers: Servers, request: pytest.FixtureRequest) -> Sample:
    return make_sample(servers.workspace, request.node.name[:40], 4)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_IMPORT_WAITS_S", (0.3, 0.3, 0.3, 0.5, 1.0, 1.0))
    monkeypatch.setattr(sender, "_ANSWERED_WAITS_S", (0.1,))
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.1)


def once_each(direct: LabelStudio, sample: Sample, project: int) -> bool:
    frames = sorted(task["data"]["frame"] for task in exported_tasks(direct, project))
    return frames == sorted(frame.id for frame in sample.frames)


def answer_all(direct: LabelStudio, sample: Sample, batch: Ref, project: int) -> dict[str, int]:
    """Everybody's boxes on every frame; the tasks by frame."""
    tasks = direct.task_by_frame(project, digest_of(batch))
    for frame in sample.frames:
        box = DrawnObject("r", "car", Box(x=3, y=4, w=50.5, h=60.25))
        direct.annotate(tasks[frame.id], to_regions(box, frame.width, frame.height))
    return tasks


def test_an_import_with_a_lost_response_is_not_repeated(
    fresh: Sample, server: LabelStudio, proxy: FaultyProxy, direct: LabelStudio
) -> None:
    proxy.fail("POST", "/import", Fault(lose_answer=True))
    sent = labeling.send(fresh.workspace, server, fresh.batch())
    assert sent.sent == 4 and once_each(direct, fresh, sent.project)
    assert sum("/import" in call for call in proxy.writes) == 1


def test_an_import_that_arrives_after_its_timeout_is_waited_for(
    fresh: Sample,
    server: LabelStudio,
    proxy: FaultyProxy,
    direct: LabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workbench.labeling.server.BULK_TIMEOUT_S", 0.5)
    proxy.fail("POST", "/import", Fault(delay_s=1.5))
    sent = labeling.send(fresh.workspace, server, fresh.batch())
    assert once_each(direct, fresh, sent.project)
    assert sum("/import" in call for call in proxy.writes) == 1


def test_an_import_that_arrives_too_late_leaves_no_duplicates(
    fresh: Sample,
    server: LabelStudio,
    proxy: FaultyProxy,
    direct: LabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Later than anyone waits: the next command takes away the copies that nobody worked on."""
    monkeypatch.setattr("workbench.labeling.server.BULK_TIMEOUT_S", 0.5)
    monkeypatch.setattr(sender, "_IMPORT_WAITS_S", (0.1,))
    proxy.fail("POST", "/import", Fault(delay_s=4.0))
    batch = fresh.batch()
    sent = labeling.send(fresh.workspace, server, batch)
    worked_on = direct.task_by_frame(sent.project, digest_of(batch))[fresh.frames[1].id]
    direct.annotate(worked_on, [])
    deadline = time.monotonic() + 20
    while len(exported_tasks(direct, sent.project)) < 8 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(exported_tasks(direct, sent.project)) == 8
    assert labeling.send(fresh.workspace, server, batch).sent == 0
    assert once_each(direct, fresh, sent.project)
    assert direct.task_by_frame(sent.project, digest_of(batch))[fresh.frames[1].id] == worked_on


@pytest.mark.parametrize("status", [500, 429, 502, 503])
def test_temporary_server_errors_are_retried(
    fresh: Sample, server: LabelStudio, proxy: FaultyProxy, direct: LabelStudio, status: int
) -> None:
    busy = Fault(status=status, headers={"Retry-After": "1"} if status == 429 else {})
    for method, part in (("GET", "/api/tasks"), ("GET", "/api/projects"), ("POST", "/import")):
        proxy.fail(method, part, busy)
    sent = labeling.send(fresh.workspace, server, fresh.batch())
    assert once_each(direct, fresh, sent.project)


def test_permanent_server_errors_are_reported_and_the_next_send_completes(
    fresh: Sample, server: LabelStudio, proxy: FaultyProxy, direct: LabelStudio
) -> None:
    proxy.fail("POST", "/import", Fault(status=500), times=3)
    batch = fresh.batch()
    with pytest.raises(ServiceError, match="answered 500: injected"):
        labeling.send(fresh.workspace, server, batch)
    sent = labeling.send(fresh.workspace, server, batch)
    assert sent.sent == 4 and once_each(direct, fresh, sent.project)


def test_killed_after_the_import_and_before_the_index_entry(
    fresh: Sample, proxy: FaultyProxy, direct: LabelStudio
) -> None:
    batch = fresh.batch()
    children: list[subprocess.Popen[str]] = []
    proxy.fail("POST", "/import", Fault(lose_answer=True, then=killer(children)))
    children.append(start(fresh, proxy, "send", batch))
    assert children[0].wait(60) == -signal.SIGKILL
    entry = sync.read_entry(fresh.workspace, batch)
    assert entry is not None and not entry.complete
    result = finish(start(fresh, proxy, "send", batch))
    assert (result["sent"], result["already"]) == (0, 4)
    assert once_each(direct, fresh, entry.project)


def test_a_second_send_and_a_second_collect_write_nothing(
    fresh: Sample, server: LabelStudio, proxy: FaultyProxy, direct: LabelStudio
) -> None:
    batch = fresh.batch()
    sent = labeling.send(fresh.workspace, server, batch)
    answer_all(direct, fresh, batch, sent.project)
    labels = labeling.collect(fresh.workspace, server, batch)
    proxy.calls.clear()
    begun = time.perf_counter()
    assert labeling.send(fresh.workspace, server, batch).sent == 0
    assert labeling.collect(fresh.workspace, server, batch) == labels
    assert labeling.collect(fresh.workspace, server, batch, refresh=True) == labels
    assert time.perf_counter() - begun < 6
    assert proxy.writes == []


def test_missing_images_are_named_before_anything_is_sent(
    fresh: Sample, server: LabelStudio, proxy: FaultyProxy
) -> None:
    image = dataset.media_path(fresh.workspace, fresh.frames[2])
    image.rename(image.with_suffix(".moved"))
    with pytest.raises(DataError, match=r"image of frame .* is missing") as error:
        labeling.send(fresh.workspace, server, fresh.batch())
    assert str(image) in str(error.value) and "doctor --records" in str(error.value.hint)
    assert not any("/import" in call for call in proxy.writes)
    image.with_suffix(".moved").rename(image)
    assert labeling.send(fresh.workspace, server, fresh.batch()).sent == 4


def test_an_expired_access_token_is_renewed(
    servers: Servers, direct: LabelStudio, proxy: FaultyProxy, fresh: Sample
) -> None:
    pat = personal_token(servers, direct, "ivy@example.org")
    user = labeling.connect(proxy.url, pat)
    proxy.fail("GET", "/api/users", Fault(status=401))
    assert "ivy@example.org" in user.users().values()
    assert sum("token/refresh" in call for call in proxy.writes) == 2


def test_a_revoked_personal_token_is_an_error(
    servers: Servers, direct: LabelStudio, proxy: FaultyProxy
) -> None:
    pat = personal_token(servers, direct, "max@example.org")
    user = labeling.connect(proxy.url, pat)
    proxy.fail("GET", "/api/users", Fault(status=401))
    proxy.fail("POST", "token/refresh", Fault(status=401))
    with pytest.raises(ServiceError, match="rejects the token"):
        user.users()


def test_killed_during_collect(
    fresh: Sample, server: LabelStudio, proxy: FaultyProxy, direct: LabelStudio
) -> None:
    batch = fresh.batch()
    sent = labeling.send(fresh.workspace, server, batch)
    answer_all(direct, fresh, batch, sent.project)
    children: list[subprocess.Popen[str]] = []
    proxy.fail("GET", "/download", Fault(lose_answer=True, then=killer(children)))
    children.append(start(fresh, proxy, "collect", batch))
    assert children[0].wait(60) == -signal.SIGKILL
    result = finish(start(fresh, proxy, "collect", batch))
    assert result["boxes"] == 4


def test_two_processes_collect_at_once(
    fresh: Sample, server: LabelStudio, proxy: FaultyProxy, direct: LabelStudio
) -> None:
    batch = fresh.batch()
    sent = labeling.send(fresh.workspace, server, batch)
    answer_all(direct, fresh, batch, sent.project)
    both = [start(fresh, proxy, "collect", batch, "--merge") for _ in range(2)]
    first, second = (finish(one) for one in both)
    assert first["labels"] == second["labels"] and first["dataset"] == second["dataset"]
    labelsets = [
        ref for ref in fresh.store.refs("label") if fresh.store.get(ref, LabelSet).batch == batch
    ]
    assert labelsets == [first["labels"]]


def test_a_task_that_a_labeler_deleted_waits_for_a_decision(
    fresh: Sample, server: LabelStudio, direct: LabelStudio
) -> None:
    batch = fresh.batch()
    sent = labeling.send(fresh.workspace, server, batch)
    tasks = answer_all(direct, fresh, batch, sent.project)
    gone = fresh.frames[0].id
    direct.delete_tasks([tasks[gone]])
    with pytest.raises(Waiting, match="deleted from the project: 1") as waiting:
        labeling.collect(fresh.workspace, server, batch)
    assert "--without-deleted" in str(waiting.value.hint)
    assert labeling.batch_status(fresh.workspace, server, batch).deleted == (gone,)

    without = labeling.collect(fresh.workspace, server, batch, without_deleted=True)
    record = fresh.store.get(without, LabelSet)
    assert (record.deleted, record.labels) == ((gone,), 3)
    assert labeling.send(fresh.workspace, server, batch).sent == 1
    with pytest.raises(Waiting, match="3 of 4"):
        labeling.collect(fresh.workspace, server, batch, refresh=True)


def test_emptied_and_deleted_answers_take_effect(
    fresh: Sample, server: LabelStudio, direct: LabelStudio
) -> None:
    batch = fresh.batch()
    sent = labeling.send(fresh.workspace, server, batch)
    answer_all(direct, fresh, batch, sent.project)
    first = labeling.collect(fresh.workspace, server, batch)
    annotations = {
        task["data"]["frame"]: task["annotations"][0]["id"]
        for task in exported_tasks(direct, sent.project)
    }
    emptied, withdrawn = fresh.frames[1].id, fresh.frames[2].id
    sdk = direct._sdk
    sdk.annotations.update(annotations[emptied], result=[])
    again = labeling.collect(fresh.workspace, server, batch, refresh=True)
    assert again != first
    rows = dataset.read_json_lines(fresh.store.payload(again, "labels.jsonl"), Label)
    assert emptied not in {row.frame for row in rows} and len(rows) == 3
    merged = labeling.merge(fresh.store, fresh.dataset, again)
    assert merged.labels_by_frame[emptied] == ()
    assert labeling.merge(fresh.store, fresh.dataset, first).labels_by_frame[emptied]

    sdk.annotations.delete(annotations[withdrawn])
    with pytest.raises(Waiting, match="3 of 4 frames labeled"):
        labeling.collect(fresh.workspace, server, batch, refresh=True)
    # What was collected before stays a record.
    assert labeling.collect(fresh.workspace, server, batch) == again


def test_a_slow_server_is_waited_for(
    fresh: Sample, server: LabelStudio, proxy: FaultyProxy, direct: LabelStudio
) -> None:
    proxy.fail("GET", "/api/", Fault(delay_s=0.4), times=20)
    batch = fresh.batch()
    sent = labeling.send(fresh.workspace, server, batch)
    answer_all(direct, fresh, batch, sent.project)
    assert labeling.collect(fresh.workspace, server, batch)


def test_a_deleted_project_with_answers_is_an_error(
    fresh: Sample, server: LabelStudio, direct: LabelStudio
) -> None:
    batch = fresh.batch()
    sent = labeling.send(fresh.workspace, server, batch)
    answer_all(direct, fresh, batch, sent.project)
    direct._sdk.projects.delete(sent.project)
    with pytest.raises(ParameterError, match="project was deleted") as error:
        labeling.collect(fresh.workspace, server, batch)
    assert "not collected are lost" in str(error.value.hint)
    again = labeling.send(fresh.workspace, server, batch)
    assert again.sent == 4 and again.project != sent.project
    answer_all(direct, fresh, batch, again.project)
    assert labeling.collect(fresh.workspace, server, batch)


def test_a_forward_proxy_is_used_for_remote_servers(
    servers: Servers, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    token = services.label_studio_admin(servers.workspace).token
    elsewhere = labeling.connect("http://labels.example.invalid", token)
    assert "@" in elsewhere.whoami()
    assert ("GET", "/api/current-user/whoami") in [
        (m, p.split("?")[0].rstrip("/")) for m, p in proxy.calls
    ]


def test_tls_is_checked_against_the_certificates_of_the_environment(
    servers: Servers, direct: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = certify(tmp_path)
    token = services.label_studio_admin(servers.workspace).token
    monkeypatch.setattr(client, "_RETRIES", 0)
    with FaultyProxy(direct.url, tls=(certificate, key)) as secure:
        with pytest.raises(ServiceError, match="does not respond: ConnectError"):
            labeling.connect(secure.url, token)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert "@" in labeling.connect(secure.url, token).whoami()


def test_a_server_that_restarts_midway_is_waited_for(
    servers: Servers, fresh: Sample, proxy: FaultyProxy, direct: LabelStudio
) -> None:
    """Down when the send wants to import; up again, with all it held, while it tries."""
    batch = fresh.batch()
    server = labeling.connect(proxy.url, services.label_studio_admin(servers.workspace).token)
    down = threading.Event()

    def restart() -> None:
        services.down(servers.workspace, ("label-studio",))
        down.set()
        services.up(servers.workspace, ("label-studio",))

    again = threading.Thread(target=restart)
    proxy.fail(
        "POST", "/import", Fault(lose_answer=True, then=lambda: (again.start(), down.wait()))
    )
    try:
        try:
            sent = labeling.send(servers.workspace, server, batch)
        except ServiceError:  # it took longer than anyone waits
            again.join()
            sent = labeling.send(servers.workspace, server, batch)
    finally:
        again.join()
    assert services.label_studio_admin(servers.workspace).url == direct.url
    assert once_each(direct, fresh, sent.project)


def test_another_server_than_label_studio_is_an_error(tmp_path: Path) -> None:
    with FaultyProxy("http://127.0.0.1:9") as nobody, pytest.raises(ServiceError) as error:
        labeling.connect(nobody.url, "0" * 40)
    assert "502" in str(error.value)


def personal_token(servers: Servers, direct: LabelStudio, email: str) -> str:
    path = servers.workspace.secrets / f"{email}-token"
    direct.as_user(email, "correct horse 7", token_file=path)
    return path.read_text()


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine that nobody else vouches for, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    proxy_server = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(proxy_server.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, secret


def killer(children: list[subprocess.Popen[str]]) -> Callable[[], None]:
    """Ends the first child, which is only there once the fault has been set."""

    def kill() -> None:
        children[0].kill()

    return kill


def start(sample: Sample, proxy: FaultyProxy, *arguments: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, at the server behind the proxy."""
    admin = services.label_studio_admin(sample.workspace)
    environment = {
        **os.environ,
        "WORKBENCH_HOME": str(sample.workspace.root),
        "LABEL_STUDIO_URL": proxy.url,
        "LABEL_STUDIO_TOKEN": admin.token,
    }
    command = [sys.executable, "-m", "workbench", "label", *arguments, "--json"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str]) -> dict[str, object]:
    out, _ = child.communicate(timeout=90)
    assert child.returncode == 0
    answer: dict[str, object] = json.loads(out)
    return answer
