"""Local and external servers; no server is started here."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import pytest

from workbench import services
from workbench.core import credentials
from workbench.core.errors import ParameterError, ServiceError
from workbench.core.workspace import Workspace
from workbench.services import lifecycle, manager
from workbench.services.lifecycle import ProcessInfo, write_process_info
from workbench.services.servers import MongodServer


@pytest.fixture(autouse=True)
def no_external_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*manager.EXTERNAL_VARIABLES.values(), "LABEL_STUDIO_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("LABEL_STUDIO_TOKEN", "LABEL_STUDIO_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_status_of_an_empty_workspace_creates_nothing(workspace: Workspace) -> None:
    states = services.status(workspace)
    assert tuple(states) == services.SERVICE_NAMES
    assert {state.state for state in states.values()} == {"stopped"}
    assert services.down(workspace) == []
    assert not workspace.root.exists()


def test_an_unknown_service_is_an_error_with_the_known_names(workspace: Workspace) -> None:
    with pytest.raises(ParameterError, match="label-studio"):
        services.status(workspace, ["labelstudio"])


def test_environment_needs_running_servers(workspace: Workspace) -> None:
    with pytest.raises(ServiceError, match="workbench up"):
        services.environment(workspace, ["mlflow"])


def test_a_tracking_uri_without_a_server_is_used_as_it_is(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    assert services.up(workspace, ["mlflow"])["mlflow"].state == "external"
    assert services.environment(workspace, ["mlflow"])["MLFLOW_TRACKING_URI"] == "databricks"


def test_a_password_in_an_address_is_masked(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", "mongodb://ann:very-secret@127.0.0.1:9/x?ssl=false")
    monkeypatch.setattr(manager, "_check_mongod", lambda url: "")
    state = services.status(workspace, ["mongod"])["mongod"]
    assert state.url == "mongodb://ann:***@127.0.0.1:9/x?ssl=false"
    handed_on = services.environment(workspace, ["mongod"])["FIFTYONE_DATABASE_URI"]
    assert "very-secret" in handed_on


def test_a_local_address_in_the_environment_is_not_external(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_process_info(workspace, "mlflow", ProcessInfo(pid=1, born=0.0, port=23456))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:23456")
    assert services.status(workspace, ["mlflow"])["mlflow"].state == "stopped"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert services.status(workspace, ["mlflow"])["mlflow"].state == "broken"


def test_an_external_label_studio_needs_a_token(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "https://labels.example.org/")
    with pytest.raises(ServiceError, match="LABEL_STUDIO_TOKEN"):
        services.label_studio_admin(workspace)
    secret = workspace.root / "token"
    secret.parent.mkdir(parents=True)
    secret.write_text("from-a-file\n")
    monkeypatch.setenv("LABEL_STUDIO_TOKEN_FILE", str(secret))
    found = services.label_studio_admin(workspace)
    assert (found.url, found.token) == ("https://labels.example.org", "from-a-file")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "from-a-variable")
    assert services.label_studio_admin(workspace).token == "from-a-variable"


@pytest.mark.parametrize("name", services.SERVICE_NAMES)
def test_a_copy_does_not_use_addresses_that_its_original_handed_on(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In a terminal of the original's JupyterLab, ``WORKBENCH_HOME=COPY workbench up``."""
    server = manager._SERVERS[name]
    owner = lifecycle.workspace_id(workspace)
    write_process_info(workspace, name, ProcessInfo(1, 0.0, 23456, owner))
    running = lifecycle.ServiceStatus(name, "running", server.url(workspace, 23456))
    with monkeypatch.context() as patched:
        patched.setattr(manager, "status", lambda *_: {name: running})
        credentials.ensure_secret(workspace, "mlflow-password")
        given = services.environment(workspace, [name], passwords=True, inherited=True)
    copy = Workspace(tmp_path / "copy")
    shutil.copytree(workspace.root, copy.root)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    assert services.status(copy, [name])[name].state == "stopped"
    assert services.status(workspace, [name])[name].state == "stopped"
    assert not manager.is_external(name)
    # An address that a person sets counts, and it is said to be external.
    monkeypatch.delenv(manager.LOCAL_VARIABLE)
    assert services.status(copy, [name])[name].state == "broken"
    assert manager.is_external(name)


def test_the_token_is_not_given_to_another_program_on_the_port(workspace: Workspace) -> None:
    credentials.ensure_secret(workspace, "label-studio-token")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for pid in (os.getpid(), 1):  # the port's owner, as if the process id were used again
            born = psutil.Process(pid).create_time()
            write_process_info(workspace, "label-studio", ProcessInfo(pid, born, port))
            with pytest.raises(ServiceError, match=r"is stopped.*workbench up"):
                services.label_studio_admin(workspace)


def test_admin_credentials_need_a_first_start(workspace: Workspace) -> None:
    with pytest.raises(ServiceError, match="workbench up"):
        services.label_studio_admin(workspace)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("WiredTiger.turtle", b"damaged" * 99),
        ("WiredTiger.wt", b"cut"),
        ("_mdb_catalog.wt", b"cut"),
    ],
)
def test_damaged_data_of_mongod_has_a_reason_and_a_remedy(
    workspace: Workspace, file: str, content: bytes
) -> None:
    services.up(workspace, ["mongod"])
    services.down(workspace, ["mongod"])
    data = workspace.services / "mongod" / "data"
    (data / file).write_bytes(content)
    try:
        with pytest.raises(ServiceError) as caught:
            services.up(workspace, ["mongod"])
        message = str(caught.value)
        assert f"its data is damaged ({'' if 'turtle' in file else '__desc_read'}" in message
        assert file in message
        assert f"--dbpath {data} --repair" in message
        assert '"attr"' not in message  # no line of a JSON log
        data.rename(f"{data}.damaged")  # as the message says
        assert services.up(workspace, ["mongod"])["mongod"].usable
    finally:
        services.down(workspace, ["mongod"])


@pytest.mark.parametrize("name", ["a", "/".join(["a" * 12] * 12), "a:b", "a,b"])
def test_a_planted_folder_for_the_socket_of_mongod_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="wb-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        workspace = Workspace(Path(folder, name))
        server = MongodServer()
        server.prepare(workspace, lambda _: None)
        address = unquote(urlsplit(server.url(workspace, 1)).netloc)
        assert len(address) <= 103
        assert not {":", ","} & set(address)
        place = Path(address).parent
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        place.chmod(0o755)
        server.prepare(workspace, lambda _: None)
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        place.rename(place.with_name("elsewhere"))
        place.symlink_to("elsewhere")
        with pytest.raises(ServiceError, match="is a link"):
            server.prepare(workspace, lambda _: None)
