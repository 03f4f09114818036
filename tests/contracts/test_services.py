"""`workbench up` with the real servers."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import psutil
import pytest
import requests
from pymongo import MongoClient

from workbench import services
from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace
from workbench.services.lifecycle import read_process_info
from workbench.tracking import Tracker

SECONDS = 10


class Servers(Protocol):
    """Value of the fixture ``servers``."""

    workspace: Workspace
    environment: dict[str, str]
    mlflow: str


def kill(servers: Servers, name: str) -> int:
    """Kill the process that was started; its children keep running."""
    facts = read_process_info(servers.workspace, name)
    assert facts is not None
    process = psutil.Process(facts.pid)
    process.kill()
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    return facts.pid


def label_studio(
    servers: Servers, method: str, path: str, body: dict[str, object] | None = None
) -> requests.Response:
    admin = services.label_studio_admin(servers.workspace)
    headers = {"Authorization": f"Token {admin.token}"}
    answer = requests.request(method, admin.url + path, headers=headers, timeout=SECONDS, json=body)
    answer.raise_for_status()
    return answer


def command(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workbench", *arguments],
        env={**os.environ, "WORKBENCH_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_second_up_starts_nothing(servers: Servers) -> None:
    before = services.status(servers.workspace)
    assert {state.state for state in before.values()} == {"running"}
    assert services.up(servers.workspace) == before


def test_status_json_has_state_address_and_credentials_file(servers: Servers) -> None:
    answer = command("status", "--json", home=servers.workspace.root)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)["services"]
    assert set(found) == set(services.SERVICE_NAMES)
    for name, state in found.items():
        assert state["state"] == "running", name
        assert psutil.pid_exists(state["pid"])
        assert ("mongod.sock" if name == "mongod" else "127.0.0.1") in state["url"]
        assert Path(state["log"]).is_file()
    for name in ("label-studio", "mlflow"):
        password = Path(found[name]["credentials"])
        assert password.is_file()
        assert password.read_text() not in answer.stdout


def test_secrets_are_private_and_in_no_argument_list(servers: Servers) -> None:
    everything = [path for path in servers.workspace.secrets.rglob("*") if path.is_file()]
    files = [path for path in everything if not path.name.endswith(".pub.pem")]
    assert len(files) >= 2
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert stat.S_IMODE(servers.workspace.secrets.stat().st_mode) == 0o700
    secrets = [path.read_text() for path in files]
    for state in services.status(servers.workspace).values():
        shown = " ".join(psutil.Process(state.pid).cmdline())
        assert not any(secret in shown for secret in secrets)
    assert not any(secret in value for value in servers.environment.values() for secret in secrets)
    assert services.label_studio_admin(servers.workspace).token not in repr(
        services.label_studio_admin(servers.workspace)
    )


def test_servers_listen_on_loopback_only(servers: Servers) -> None:
    for state in services.status(servers.workspace).values():
        process = psutil.Process(state.pid)
        links = [
            link
            for member in (process, *process.children(recursive=True))
            for link in member.net_connections(kind="inet")
            if link.status == psutil.CONN_LISTEN
        ]
        expected = set() if state.name == "mongod" else {"127.0.0.1"}
        assert {link.laddr.ip for link in links} == expected, state.name


def test_mongod_listens_on_sockets_of_its_owner_only(servers: Servers) -> None:
    state = services.status(servers.workspace)["mongod"]
    connections = psutil.Process(state.pid).net_connections(kind="unix")
    sockets = {Path(one.laddr) for one in connections if one.laddr}
    assert unquote(urlsplit(state.url).netloc) in map(str, sockets)
    for path in sockets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/2.0/mlflow/runs/get?run_id=1",
        "/ajax-api/3.0/mlflow",
        "/health/../api/2.0/mlflow/experiments/get?experiment_id=0",
        "//health",
        "/health%2f..%2fversion",
        "/version",
        "/graphql",
    ],
)
def test_mlflow_asks_for_its_password(servers: Servers, path: str) -> None:
    url = services.environment(servers.workspace)["MLFLOW_TRACKING_URI"]
    for headers in (
        {},
        {"Authorization": "Basic d29ya2JlbmNoOg=="},  # an empty password
        {"Authorization": "Basic ???"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer \xff"},
        {"X-Forwarded-User": "workbench"},
    ):
        prepared = requests.Request("GET", url, headers=headers).prepare()
        prepared.url = url + path  # as it is: requests would resolve the dots
        with requests.Session() as session:
            session.trust_env = False
            answer = session.send(prepared, timeout=SECONDS)
        assert answer.status_code == 401, headers
        assert "Basic" in answer.headers["WWW-Authenticate"]  # browsers ask then


def test_mlflow_opens_with_its_password(servers: Servers) -> None:
    secret = (servers.workspace.secrets / "mlflow-password").read_text()
    url = services.environment(servers.workspace)["MLFLOW_TRACKING_URI"]
    with requests.Session() as session:
        session.trust_env = False
        page = session.get(url, auth=("workbench", secret), timeout=SECONDS)
        assert "<title>MLflow</title>" in page.text
        token = {"Authorization": f"Bearer {secret}"}
        assert session.get(f"{url}/version", headers=token, timeout=SECONDS).ok
    with pytest.raises(ServiceError, match="MLFLOW_TRACKING_PASSWORD"):
        Tracker(url, "without a login")


def test_mongod_killed_keeps_its_documents(servers: Servers) -> None:
    url = servers.environment["FIFTYONE_DATABASE_URI"]
    with MongoClient(url) as client:
        client.proof.notes.insert_one({"text": "written before the kill"})
    pid = kill(servers, "mongod")
    after = services.up(servers.workspace, ["mongod"])["mongod"]
    assert after.pid != pid
    assert after.url == url
    with MongoClient(url) as client:
        assert client.proof.notes.count_documents({"text": "written before the kill"}) == 1


def test_mlflow_killed_without_its_worker_keeps_its_runs(servers: Servers) -> None:
    url = servers.mlflow
    api = f"{url}/api/2.0/mlflow/runs"
    made = requests.post(f"{api}/create", json={"experiment_id": "0"}, timeout=SECONDS).json()
    run = made["run"]["info"]["run_id"]
    pid = kill(servers, "mlflow")
    assert services.status(servers.workspace, ["mlflow"])["mlflow"].state == "stopped"
    after = services.up(servers.workspace, ["mlflow"])["mlflow"]
    assert after.pid != pid
    assert servers.mlflow == url
    found = requests.get(f"{api}/get", params={"run_id": run}, timeout=SECONDS)
    assert found.json()["run"]["info"]["run_id"] == run


def test_label_studio_killed_keeps_its_projects_and_its_token(servers: Servers) -> None:
    made = label_studio(servers, "POST", "/api/projects", {"title": "before the kill"}).json()
    pid = kill(servers, "label-studio")
    after = services.up(servers.workspace, ["label-studio"])["label-studio"]
    assert after.pid != pid
    found = label_studio(servers, "GET", f"/api/projects/{made['id']}").json()
    assert found["title"] == "before the kill"


def test_label_studio_serves_a_frame_from_the_media_folder(servers: Servers) -> None:
    frame = servers.workspace.media / "ab" / "abcd.jpg"
    frame.parent.mkdir(parents=True, exist_ok=True)
    frame.write_bytes(b"\xff\xd8 bytes of a frame")
    project = label_studio(servers, "POST", "/api/projects", {"title": "frames"}).json()["id"]
    storage = {"project": project, "path": str(servers.workspace.media), "use_blob_urls": True}
    label_studio(servers, "POST", "/api/storages/localfiles", storage)
    found = label_studio(servers, "GET", "/data/local-files/?d=frames/ab/abcd.jpg")
    assert found.content == frame.read_bytes()


def test_two_workspaces_are_separate(servers: Servers, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "other" / ".workbench")
    try:
        mine = services.status(servers.workspace)["mongod"]
        theirs = services.up(other, ["mongod"])["mongod"]
        assert theirs.url != mine.url
        with MongoClient(theirs.url) as client:
            client.only_here.notes.insert_one({"n": 1})
        with MongoClient(mine.url) as client:
            assert "only_here" not in client.list_database_names()
    finally:
        assert services.down(other) == ["mongod"]
    assert services.status(servers.workspace)["mongod"] == mine


def test_a_server_of_another_workspace_is_not_ours(servers: Servers, tmp_path: Path) -> None:
    """State copied from another workspace, or a reused pid: running and answering, but not ours."""
    facts = read_process_info(servers.workspace, "mongod")
    assert facts is not None
    other = Workspace(tmp_path / "copied" / ".workbench")
    folder = other.services / "mongod"
    folder.mkdir(parents=True)
    stranger = psutil.Popen(["sleep", "60"])
    claim = {"pid": stranger.pid, "born": stranger.create_time(), "port": facts.port}
    (folder / "state.json").write_text(json.dumps(claim))
    assert services.status(other)["mongod"].state == "stopped"
    try:
        mine = services.status(servers.workspace)["mongod"]
        assert services.up(other, ["mongod"])["mongod"].url != mine.url
        assert services.status(servers.workspace)["mongod"] == mine
    finally:
        services.down(other)
        stranger.kill()
        stranger.wait()


def test_concurrent_commands_start_one_set(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / ".workbench")
    pids: list[int | None] = []
    together = [
        threading.Thread(
            target=lambda: pids.append(services.up(workspace, ["mongod"])["mongod"].pid)
        )
        for _ in range(3)
    ]
    try:
        for thread in together:
            thread.start()
        for thread in together:
            thread.join(60)
        assert len(pids) == 3
        assert len(set(pids)) == 1
    finally:
        services.down(workspace)
    assert services.status(workspace)["mongod"].state == "stopped"


def test_external_servers_are_used_and_none_is_started(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = services.label_studio_admin(servers.workspace)
    for name in ("FIFTYONE_DATABASE_URI", "MLFLOW_TRACKING_URI", "LABEL_STUDIO_URL"):
        monkeypatch.setenv(name, servers.environment[name])
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", admin.token)
    elsewhere = Workspace(tmp_path / ".workbench")
    states = services.up(elsewhere)
    assert {state.state for state in states.values()} == {"external"}
    assert services.label_studio_admin(elsewhere).token == admin.token
    assert not list(tmp_path.rglob("state.json"))
    assert services.down(elsewhere) == []
    assert services.status(servers.workspace)["mongod"].state == "running"
    # The same variables reach our own steps, where they name our own servers.
    assert services.status(servers.workspace)["mlflow"].state == "running"


def test_an_unreachable_external_server_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ServiceError, match="external mlflow") as caught:
        services.up(Workspace(tmp_path / ".workbench"), ["mlflow"])
    assert "MLFLOW_TRACKING_URI" in str(caught.value)
