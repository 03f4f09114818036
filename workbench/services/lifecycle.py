"""Start, recognise, wait for and stop the servers of a workspace.

A server belongs to this workspace only if the operating system confirms it: the stored process is
alive (same pid *and* start time), that process or a child of it holds the port, and the port
answers. A reused pid, or another workspace's server on the same port, is never mistaken for it.

Every process of a server has ``WORKBENCH_SERVICE=<folder>`` and ``WORKBENCH_SERVICE_OWNER=<id>`` in
its environment. This finds what a ``kill -9`` left behind: a worker whose parent died, or a server
whose start was never stored. The id is the workspace's, see `workspace_id`: a workspace that was
moved keeps its servers, and a copy has none.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar, Literal

import psutil
from filelock import FileLock, Timeout

from workbench.core.errors import ServiceError
from workbench.core.types import Json
from workbench.core.workspace import Workspace, atomic_replace, write_atomic
from workbench.services import probes

__all__ = ["ServiceStatus"]

SERVICE_VARIABLE = "WORKBENCH_SERVICE"
OWNER_VARIABLE = "WORKBENCH_SERVICE_OWNER"
MessageCallback = Callable[[str], None]
ServiceState = Literal["running", "stopped", "external", "broken"]

_POLL_S = 0.1
_STOP_TIMEOUT_S = 15.0
_PORT_TIMEOUT_S = 3.0  # a killed process may hold its port for a moment
_INTERRUPTED_START_S = 3.0
_MAX_LOG_BYTES = 16 * 2**20
_LOG_END_BYTES = 2**18  # holds a whole start of mongod with its backtrace
_LOG_TAIL_LINES = 6
# Variables that every server inherits. Others (PYTHONPATH, DATABASE_NAME, addresses of other
# servers, …) would make its behaviour depend on the terminal that it was started from.
_INHERITED_VARIABLES = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "TMPDIR",
    "TZ",
    "USER",
)
# Kept so that finished children are reaped, and no warning is printed about running ones.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class ServiceStatus:
    """State of one server.

    Attributes:
        state: ``running``: started here and answering. ``external``: named by an environment
            variable and answering. ``stopped``: not running. ``broken``: running without
            answering, or an external server that cannot be reached.
        url: Where clients connect; None if it was never started.
        credentials: The file that holds the password or token.
        detail: Explanation in one sentence.
    """

    name: str
    state: ServiceState
    url: str | None = None
    pid: int | None = None
    credentials: Path | None = None
    log: Path | None = None
    detail: str = ""

    @property
    def usable(self) -> bool:
        """Whether clients can use the server."""
        return self.state in ("running", "external")

    def to_json(self) -> Json:
        """The status as ``--json`` prints it."""
        body = asdict(self)
        for name in ("credentials", "log"):
            body[name] = None if body[name] is None else str(body[name])
        return body


@dataclass(frozen=True)
class ProcessInfo:
    """What is stored of the last start.

    Attributes:
        born: Start time of process ``pid``.
        owner: Id of the workspace that started it; empty in files from before it was stored.
    """

    pid: int
    born: float
    port: int
    owner: str = ""


class Server(ABC):
    """How one kind of server is prepared, launched and checked."""

    name: ClassVar[str]
    start_timeout_s: ClassVar[float]
    inherited: ClassVar[tuple[str, ...]] = ()
    """Patterns of further environment variables that the server inherits."""

    @abstractmethod
    def command(self, workspace: Workspace, port: int) -> list[str]: ...

    def url(self, workspace: Workspace, port: int) -> str:
        """The address for clients, without a password."""
        return f"http://{probes.LOOPBACK}:{port}"

    @abstractmethod
    def prepare(self, workspace: Workspace, progress: MessageCallback) -> None:
        """Create what has to exist before the first start; called under the server's lock."""

    @abstractmethod
    def answers(self, workspace: Workspace, port: int) -> bool:
        """Whether a server of this kind answers correctly at its address."""

    def listens(self, process: psutil.Process, workspace: Workspace, port: int) -> bool:
        """Whether ``process`` itself holds the address."""
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for connection in process.net_connections(kind="tcp")
        )

    def variables(self, workspace: Workspace, port: int) -> dict[str, str]:
        """Environment variables of the server's process, beside the inherited ones."""
        return {}

    def credentials(self, workspace: Workspace) -> Path | None:
        """The file that holds the password or token, if there is one."""
        return None

    def explain_failure(self, workspace: Workspace, log: str) -> tuple[str, str] | None:
        """Why the last start failed and what to do, if the end of the log shows it."""
        return None


def observe_server(server: Server, workspace: Workspace) -> ServiceStatus:
    """The state of a server; changes nothing and takes tens of milliseconds."""
    info = read_process_info(workspace, server.name)
    log = _log_path(workspace, server.name)
    if info is None:
        return ServiceStatus(server.name, "stopped", detail="never started here")
    url, credentials = server.url(workspace, info.port), server.credentials(workspace)
    process = _living_process(info)
    if process is not None and not _is_own(process, workspace, server.name):
        process = None
    if process is None:
        return ServiceStatus(server.name, "stopped", url, None, credentials, log, "not running")
    state: ServiceState
    if _was_moved(process, workspace, server.name):
        state, detail = (
            "broken",
            "started before the workspace was moved; `workbench up` restarts it",
        )
    elif _folder_is_gone(process):
        state, detail = (
            "broken",
            "its folder was deleted and made again while it ran; `workbench up` restarts it",
        )
    elif not server.answers(workspace, info.port):
        state, detail = "broken", "running but not answering; `workbench up` restarts it"
    elif not _holds_address(server, process, workspace, info.port):
        state, detail = "broken", f"{url} is used by another server"
    else:
        state, detail = "running", "started by this workbench"
    return ServiceStatus(server.name, state, url, info.pid, credentials, log, detail)


def is_listening(server: Server, workspace: Workspace) -> bool:
    """Whether this workspace's server holds its address, answering in time or not."""
    info = read_process_info(workspace, server.name)
    process = _living_process(info) if info else None
    return (
        info is not None
        and process is not None
        and _is_own(process, workspace, server.name)
        and _holds_address(server, process, workspace, info.port)
    )


def start_server(server: Server, workspace: Workspace, progress: MessageCallback) -> ServiceStatus:
    """Start the server unless it is running. Two concurrent calls start one server.

    Raises:
        ServiceError: It did not start; the message contains the end of its log.
    """
    status = observe_server(server, workspace)
    if status.state == "running":
        return status
    with _server_lock(server, workspace):
        status = observe_server(server, workspace)
        if status.state == "broken":
            # A command that was killed while it waited leaves a server that is still starting.
            info = read_process_info(workspace, server.name)
            process = _living_process(info) if info else None
            if process is None or not (
                _was_moved(process, workspace, server.name) or _folder_is_gone(process)
            ):
                age = time.time() - info.born if info else server.start_timeout_s
                remaining = max(_INTERRUPTED_START_S, server.start_timeout_s - age)
                status = _wait_until_running(server, workspace, remaining)
        if status.state == "running":
            return status
        _terminate(find_service_processes(workspace, server.name))
        began = time.monotonic()
        _separate_from_copies(service_folder(workspace, server.name))
        server.prepare(workspace, progress)
        progress(f"{server.name}: starting")
        status = _launch_with_retries(server, workspace)
        progress(f"{server.name}: up at {status.url} after {time.monotonic() - began:.1f} s")
        return status


def _separate_from_copies(folder: Path) -> None:
    """Give a server files of its own where a copy of the workspace shares them (``cp -al``).

    Two servers that write to one database destroy it.
    """
    for path in folder.rglob("*"):
        if path.name == "lock" or path.is_symlink() or not path.is_file():
            continue  # the lock is held
        if path.stat().st_nlink > 1:
            with atomic_replace(path, mode=stat.S_IMODE(path.stat().st_mode)) as temporary:
                shutil.copyfile(path, temporary)


def stop_server(server: Server, workspace: Workspace) -> bool:
    """Stop all processes of the server.

    Returns:
        Whether there were any.
    """
    if not service_folder(workspace, server.name).is_dir():
        return False
    with _server_lock(server, workspace):
        processes = find_service_processes(workspace, server.name)
        _terminate(processes)
        return bool(processes)


def find_service_processes(workspace: Workspace, name: str) -> list[psutil.Process]:
    """Every living process of the server ``name`` of this workspace, found by its environment."""
    return [
        process
        for process in psutil.process_iter()
        if _is_own(process, workspace, name, orphans=True)
    ]


@dataclass(frozen=True)
class _Identity:
    """Id of a workspace, and those that it had before it was copied or moved to another disk."""

    id: str
    previous: tuple[str, ...] = ()


def workspace_id(workspace: Workspace) -> str:
    """The id under which this workspace starts servers; made at its first start.

    It is random, and stored with the inode of its folder. A renamed workspace has the same inode
    and keeps its id. A copy has another inode: it gets an id of its own, and so never uses or
    stops the servers of the workspace that it was copied from.
    """
    identity = _read_identity(workspace)
    if identity is not None:
        return identity.id
    workspace.services.mkdir(parents=True, exist_ok=True)
    with FileLock(workspace.services / "workspace.lock"):
        identity = _read_identity(workspace)
        if identity is None:
            identity = _Identity(secrets.token_hex(16), _ids_in_file(workspace))
            where = workspace.services.stat()
            body = {**asdict(identity), "device": where.st_dev, "inode": where.st_ino}
            write_atomic(_identity_path(workspace), json.dumps(body, indent=1).encode())
    return identity.id


def _read_identity(workspace: Workspace) -> _Identity | None:
    """The stored identity; None without one, or if it is another workspace's."""
    try:
        body = json.loads(_identity_path(workspace).read_bytes())
        where = workspace.services.stat()
        if (body["device"], body["inode"]) != (where.st_dev, where.st_ino):
            return None
        return _Identity(str(body["id"]), tuple(map(str, body["previous"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _ids_in_file(workspace: Workspace) -> tuple[str, ...]:
    try:
        body = json.loads(_identity_path(workspace).read_bytes())
        return (str(body["id"]), *map(str, body["previous"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _identity_path(workspace: Workspace) -> Path:
    return workspace.services / "workspace.json"


def _is_own(
    process: psutil.Process, workspace: Workspace, name: str, *, orphans: bool = False
) -> bool:
    """Whether a living process is the server ``name`` of this workspace.

    Args:
        orphans: Count servers, too, that this workspace started where it does not exist any more.
    """
    folder = service_folder(workspace, name)
    with contextlib.suppress(psutil.Error, OSError):
        variables = process.environ()
        started_in, owner = variables.get(SERVICE_VARIABLE), variables.get(OWNER_VARIABLE)
        if started_in is None or Path(started_in).name != name or _is_zombie(process):
            return False
        if owner is None:  # started before workspaces had ids
            return started_in == str(folder)
        identity = _read_identity(workspace)
        if identity is not None and owner == identity.id:
            return True
        known = _ids_in_file(workspace)
        return (
            orphans and (owner in known or started_in == str(folder)) and _folder_is_gone(process)
        )
    return False


def _folder_is_gone(process: psutil.Process) -> bool:
    """Whether the folder that a server was started in was deleted; False where unknown."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/cwd").stat().st_nlink == 0
    return False


def _was_moved(process: psutil.Process, workspace: Workspace, name: str) -> bool:
    """Whether the workspace was elsewhere when this server of it was started."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get(SERVICE_VARIABLE) != str(service_folder(workspace, name))
    return False


def service_folder(workspace: Workspace, name: str) -> Path:
    """Where the server ``name`` keeps its data, log and state."""
    return workspace.services / name


def read_process_info(workspace: Workspace, name: str) -> ProcessInfo | None:
    """What the last start stored; None without one, if the file is damaged, or if it was copied
    from another workspace.
    """
    try:
        body = json.loads((service_folder(workspace, name) / "state.json").read_bytes())
        owner = str(body.get("owner", ""))
        identity = _read_identity(workspace)
        if owner and (identity is None or owner != identity.id):
            return None
        return ProcessInfo(int(body["pid"]), float(body["born"]), int(body["port"]), owner)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_process_info(workspace: Workspace, name: str, info: ProcessInfo) -> None:
    """Store a start."""
    path = service_folder(workspace, name) / "state.json"
    write_atomic(path, json.dumps(asdict(info), indent=1).encode())


@contextlib.contextmanager
def _server_lock(server: Server, workspace: Workspace) -> Iterator[None]:
    folder = service_folder(workspace, server.name)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=server.start_timeout_s + _STOP_TIMEOUT_S):
            yield
    except Timeout as error:
        raise ServiceError(
            f"another command has been starting or stopping {server.name} for too long",
            where=folder / "lock",
            hint="End the other `workbench` commands and try again",
        ) from error


def _launch_with_retries(server: Server, workspace: Workspace) -> ServiceStatus:
    """Launch on the previous port; if another program takes the port, launch on another one."""
    info = read_process_info(workspace, server.name)
    port = probes.choose_port(info.port if info else None, timeout_s=_PORT_TIMEOUT_S)
    for _ in range(3):
        _launch(server, workspace, port)
        status = _wait_until_running(server, workspace, server.start_timeout_s)
        if status.state == "running":
            return status
        _terminate(find_service_processes(workspace, server.name))
        if probes.is_port_free(port):
            break  # the port was not the reason
        port = probes.choose_port()
    log = _log_path(workspace, server.name)
    lines = _log_end(log)
    explanation = server.explain_failure(workspace, "\n".join(lines))
    if explanation is not None:
        reason, hint = explanation
        raise ServiceError(f"{server.name} did not start: {reason}", where=log, hint=hint)
    tail = "\n".join(lines[-_LOG_TAIL_LINES:]) or "(no log)"
    raise ServiceError(
        f"{server.name} did not start ({status.detail}). The end of its log:\n{tail}",
        where=log,
        hint="Run `workbench doctor`, or read the whole log",
    )


def _launch(server: Server, workspace: Workspace, port: int) -> None:
    folder = service_folder(workspace, server.name)
    log = _log_path(workspace, server.name)
    if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    patterns = (*_INHERITED_VARIABLES, *server.inherited)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    owner = workspace_id(workspace)
    own = {
        **server.variables(workspace, port),
        SERVICE_VARIABLE: str(folder),
        OWNER_VARIABLE: owner,
    }
    with log.open("ab") as out:
        child = subprocess.Popen(
            server.command(workspace, port),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**inherited, **own},
            # A session of its own: Ctrl-C in the terminal must not stop the servers.
            start_new_session=True,
        )
    _children[child.pid] = child
    born = psutil.Process(child.pid).create_time()
    write_process_info(workspace, server.name, ProcessInfo(child.pid, born, port, owner))


def _wait_until_running(server: Server, workspace: Workspace, timeout_s: float) -> ServiceStatus:
    deadline = time.monotonic() + timeout_s
    status = observe_server(server, workspace)
    while status.state == "broken" and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        status = observe_server(server, workspace)
    return status


def _living_process(info: ProcessInfo) -> psutil.Process | None:
    _reap(info.pid)
    try:
        process = psutil.Process(info.pid)
        same = abs(process.create_time() - info.born) < 1.0
        return process if same and not _is_zombie(process) else None
    except psutil.Error:
        return None


def _holds_address(
    server: Server, process: psutil.Process, workspace: Workspace, port: int
) -> bool:
    def listens(candidate: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return server.listens(candidate, workspace, port)
        return False

    with contextlib.suppress(psutil.Error):
        return listens(process) or any(listens(c) for c in process.children(recursive=True))
    return False


def _terminate(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in _wait_for_exit(processes):
        with contextlib.suppress(psutil.Error):
            process.kill()
    _wait_for_exit(processes)


def _wait_for_exit(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Wait for processes to end and return those that did not.

    A zombie has ended: its parent may be a notebook that never reaps it.
    """

    def lives(process: psutil.Process) -> bool:
        _reap(process.pid)
        with contextlib.suppress(psutil.Error):
            return process.is_running() and not _is_zombie(process)
        return False

    deadline = time.monotonic() + _STOP_TIMEOUT_S
    remaining = [process for process in processes if lives(process)]
    while remaining and time.monotonic() < deadline:
        time.sleep(0.05)
        remaining = [process for process in remaining if lives(process)]
    return remaining


def _reap(pid: int) -> None:
    child = _children.get(pid)
    if child is not None:
        child.poll()


def _is_zombie(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_ZOMBIE)


def _log_path(workspace: Workspace, name: str) -> Path:
    return service_folder(workspace, name) / "server.log"


def _log_end(log: Path) -> list[str]:
    """The last lines of a log that are not blank."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _LOG_END_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]
