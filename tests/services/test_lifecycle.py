"""Start and stop servers, with a small server that fails on demand."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace
from workbench.services import lifecycle, probes
from workbench.services.lifecycle import (
    MessageCallback,
    ProcessInfo,
    Server,
    read_process_info,
    write_process_info,
)

WEB = """
import http.server, sys
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""
# The process that was started only waits for a worker, which holds the port, as MLflow's does.
PARENT = f"""
import subprocess, sys
sys.exit(subprocess.call([sys.executable, "-c", {WEB!r}, sys.argv[1]]))
"""
BROKEN = "print('reading settings'); print('the configuration is wrong'); raise SystemExit(3)"


class SmallServer(Server):
    name = "small"
    start_timeout_s = 20.0

    def __init__(self, program: str = WEB) -> None:
        self.program = program

    def prepare(self, workspace: Workspace, progress: MessageCallback) -> None:
        return None

    def command(self, workspace: Workspace, port: int) -> list[str]:
        return [sys.executable, "-c", self.program, str(port)]

    def url(self, workspace: Workspace, port: int) -> str:
        return f"http://127.0.0.1:{port}"

    def answers(self, workspace: Workspace, port: int) -> bool:
        return probes.http_ok(self.url(workspace, port), timeout_s=2.0)


def ignore(_: str) -> None:
    return None


@pytest.fixture
def workspace(workspace: Workspace) -> Iterator[Workspace]:
    yield workspace
    lifecycle.stop_server(SmallServer(), workspace)


def test_start_observe_stop(workspace: Workspace) -> None:
    assert lifecycle.observe_server(SmallServer(), workspace).state == "stopped"
    messages: list[str] = []
    first = lifecycle.start_server(SmallServer(), workspace, messages.append)
    assert first.state == "running"
    assert len(messages) == 2
    assert lifecycle.start_server(SmallServer(), workspace, messages.append) == first
    assert len(messages) == 2
    assert lifecycle.stop_server(SmallServer(), workspace)
    after = lifecycle.observe_server(SmallServer(), workspace)
    assert (after.state, after.url, after.pid) == ("stopped", first.url, None)
    assert not lifecycle.stop_server(SmallServer(), workspace)


def test_a_server_keeps_its_port_unless_it_is_taken(workspace: Workspace) -> None:
    first = lifecycle.start_server(SmallServer(), workspace, ignore)
    lifecycle.stop_server(SmallServer(), workspace)
    again = lifecycle.start_server(SmallServer(), workspace, ignore)
    assert again.url == first.url
    lifecycle.stop_server(SmallServer(), workspace)
    facts = read_process_info(workspace, "small")
    assert facts is not None
    with socket.create_server(("127.0.0.1", facts.port)):
        elsewhere = lifecycle.start_server(SmallServer(), workspace, ignore)
    assert elsewhere.url != first.url


def test_a_failed_start_is_an_error_with_the_end_of_the_log(workspace: Workspace) -> None:
    with pytest.raises(
        ServiceError, match="reading settings\nthe configuration is wrong"
    ) as caught:
        lifecycle.start_server(SmallServer(BROKEN), workspace, ignore)
    assert str(workspace.services / "small" / "server.log") in str(caught.value)


def test_an_orphaned_worker_is_terminated_before_the_next_start(workspace: Workspace) -> None:
    first = lifecycle.start_server(SmallServer(PARENT), workspace, ignore)
    (worker,) = psutil.Process(first.pid).children()
    psutil.Process(first.pid).kill()
    again = lifecycle.start_server(SmallServer(PARENT), workspace, ignore)
    assert again.url == first.url
    _, alive = psutil.wait_procs([worker], timeout=10)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_a_server_whose_start_was_not_stored_is_found(workspace: Workspace) -> None:
    first = lifecycle.start_server(SmallServer(), workspace, ignore)
    assert first.pid is not None
    (workspace.services / "small" / "state.json").unlink()
    assert [p.pid for p in lifecycle.find_service_processes(workspace, "small")] == [first.pid]
    again = lifecycle.start_server(SmallServer(), workspace, ignore)
    assert again.pid != first.pid
    assert [p.pid for p in lifecycle.find_service_processes(workspace, "small")] == [again.pid]


def test_a_damaged_state_file_counts_as_missing(workspace: Workspace) -> None:
    lifecycle.start_server(SmallServer(), workspace, ignore)
    (workspace.services / "small" / "state.json").write_text('{"pid": 12')
    assert lifecycle.observe_server(SmallServer(), workspace).state == "stopped"
    assert lifecycle.start_server(SmallServer(), workspace, ignore).state == "running"


def test_a_frozen_server_is_broken_and_replaced(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(SmallServer):
        start_timeout_s = 2.0

        def answers(self, workspace: Workspace, port: int) -> bool:
            return probes.http_ok(self.url(workspace, port), timeout_s=0.3)

    first = lifecycle.start_server(Impatient(), workspace, ignore)
    psutil.Process(first.pid).suspend()
    assert lifecycle.observe_server(Impatient(), workspace).state == "broken"
    monkeypatch.setattr(lifecycle, "_STOP_TIMEOUT_S", 1.0)
    again = lifecycle.start_server(Impatient(), workspace, ignore)
    assert again.pid != first.pid
    assert again.state == "running"


def test_a_reused_pid_is_not_our_server(workspace: Workspace) -> None:
    me = psutil.Process()
    write_process_info(
        workspace, "small", ProcessInfo(os.getpid(), me.create_time() - 1000, probes.choose_port())
    )
    assert lifecycle.observe_server(SmallServer(), workspace).state == "stopped"


def test_a_server_has_its_own_session_and_a_clean_environment(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_NAME", "somebody-elses")
    state = lifecycle.start_server(SmallServer(), workspace, ignore)
    assert state.pid is not None
    assert os.getsid(state.pid) == state.pid
    assert "DATABASE_NAME" not in psutil.Process(state.pid).environ()


def test_a_large_log_is_rotated(workspace: Workspace) -> None:
    log = workspace.services / "small" / "server.log"
    log.parent.mkdir(parents=True)
    with log.open("wb") as stream:
        stream.truncate(17 * 2**20)
    lifecycle.start_server(SmallServer(), workspace, ignore)
    assert log.stat().st_size < 2**20
    assert Path(f"{log}.1").stat().st_size == 17 * 2**20


def test_a_start_whose_command_was_killed_is_awaited(workspace: Workspace) -> None:
    slow = SmallServer("import time; time.sleep(1.0)\n" + WEB)
    folder = workspace.services / "small"
    folder.mkdir(parents=True)
    lifecycle._launch(slow, workspace, probes.choose_port())  # and the command dies here
    begun = read_process_info(workspace, "small")
    assert begun is not None
    assert lifecycle.observe_server(slow, workspace).state == "broken"
    assert lifecycle.start_server(slow, workspace, ignore).pid == begun.pid


# A workspace that is copied, moved or deleted.


def _copy(workspace: Workspace, to: Path) -> Workspace:
    shutil.copytree(workspace.root, to / ".workbench")
    return Workspace(to / ".workbench")


def test_a_copied_workspace_neither_uses_nor_stops_the_servers_of_the_original(
    workspace: Workspace, tmp_path: Path
) -> None:
    first = lifecycle.start_server(SmallServer(), workspace, ignore)
    copy = _copy(workspace, tmp_path / "copy")
    try:
        assert lifecycle.observe_server(SmallServer(), copy).state == "stopped"
        assert read_process_info(copy, "small") is None
        assert lifecycle.find_service_processes(copy, "small") == []
        assert not lifecycle.stop_server(SmallServer(), copy)
        assert lifecycle.observe_server(SmallServer(), workspace) == first
        second = lifecycle.start_server(SmallServer(), copy, ignore)
        assert second.url != first.url
        assert lifecycle.workspace_id(copy) != lifecycle.workspace_id(workspace)
        lifecycle.stop_server(SmallServer(), workspace)
        assert lifecycle.observe_server(SmallServer(), copy) == second
    finally:
        lifecycle.stop_server(SmallServer(), copy)


def test_a_moved_workspace_stops_and_restarts_its_servers(
    workspace: Workspace, tmp_path: Path
) -> None:
    first = lifecycle.start_server(SmallServer(), workspace, ignore)
    (tmp_path / "new").mkdir()
    workspace.root.rename(tmp_path / "new" / ".workbench")
    moved = Workspace(tmp_path / "new" / ".workbench")
    try:
        status = lifecycle.observe_server(SmallServer(), moved)
        assert (status.state, "moved" in status.detail) == ("broken", True)
        # Another workspace at the old path does not take over the process.
        assert lifecycle.find_service_processes(workspace, "small") == []
        again = lifecycle.start_server(SmallServer(), moved, ignore)
        assert again.state == "running"
        assert first.pid is not None
        assert not psutil.pid_exists(first.pid) or again.pid != first.pid
        moved.root.rename(workspace.root)
        assert lifecycle.stop_server(SmallServer(), workspace)
        assert lifecycle.find_service_processes(workspace, "small") == []
    finally:
        lifecycle.stop_server(SmallServer(), moved)


def test_servers_of_a_workspace_moved_to_another_disk_are_stopped(
    workspace: Workspace, tmp_path: Path
) -> None:
    first = lifecycle.start_server(SmallServer(), workspace, ignore)
    copy = _copy(workspace, tmp_path / "disk")
    shutil.rmtree(workspace.root)
    assert [p.pid for p in lifecycle.find_service_processes(copy, "small")] == [first.pid]
    assert lifecycle.stop_server(SmallServer(), copy)
    assert lifecycle.find_service_processes(copy, "small") == []


def test_concurrent_first_starts_share_one_id(workspace: Workspace) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: lifecycle.workspace_id(workspace), range(32)))
    assert len(ids) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"id": 3}', '{"id": "x", "inode": []}'])
def test_a_damaged_id_is_replaced(workspace: Workspace, content: str) -> None:
    workspace.services.mkdir(parents=True)
    (workspace.services / "workspace.json").write_text(content)
    own = lifecycle.workspace_id(workspace)
    assert len(own) == 32
    assert lifecycle.workspace_id(workspace) == own


def test_a_server_whose_folder_was_restored_from_a_backup_is_restarted(
    workspace: Workspace, tmp_path: Path
) -> None:
    first = lifecycle.start_server(SmallServer(), workspace, ignore)
    folder = workspace.services / "small"
    shutil.copytree(folder, tmp_path / "backup")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)  # with state.json; the server has deleted files
    status = lifecycle.observe_server(SmallServer(), workspace)
    assert (status.state, "deleted and made again" in status.detail) == ("broken", True)
    again = lifecycle.start_server(SmallServer(), workspace, ignore)
    assert (again.state, again.pid != first.pid) == ("running", True)


def test_a_copy_made_of_links_shares_no_database(workspace: Workspace, tmp_path: Path) -> None:
    database = workspace.services / "small" / "data" / "a.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"original")
    database.chmod(0o600)
    shutil.copytree(workspace.root, tmp_path / "copy", copy_function=os.link)  # as `cp -al`
    copy = Workspace(tmp_path / "copy")
    try:
        lifecycle.start_server(SmallServer(), copy, ignore)
        own = copy.services / "small" / "data" / "a.db"
        assert own.read_bytes() == b"original"
        assert (own.stat().st_nlink, database.stat().st_nlink) == (1, 1)
        assert stat.S_IMODE(own.stat().st_mode) == 0o600
    finally:
        lifecycle.stop_server(SmallServer(), copy)
