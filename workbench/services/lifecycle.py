"""Start, recognise, wait for and stop the servers of a workspace.

A server counts as ours only when the kernel says so: the remembered process lives (pid *and* start
time), that process or a child of it holds the port, and the port answers. A recycled pid, or
another workspace's server on the same port, is therefore never mistaken for it.

Every process of a server carries ``WORKBENCH_SERVICE=<folder>`` in its environment. That finds
what a ``kill -9`` left behind: a worker whose parent died, or a server whose start was never
written down.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

import psutil
from filelock import FileLock, Timeout

from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace, write_atomic
from workbench.services import probes

StateName = Literal["running", "stopped", "external", "broken"]


@dataclass(frozen=True)
class ServiceStatus:
    """One server as it was found a moment ago.

    Attributes:
        state: ``running``: started here and answering. ``external``: named by an environment
            variable, answering. ``stopped``: nothing is running. ``broken``: something is there
            but does not answer, or an external server is away.
        url: Where clients connect; None when nothing was ever started.
        credentials: The file that holds the password or token, never the secret itself.
        detail: One sentence for people.
    """

    name: str
    state: StateName
    url: str | None = None
    pid: int | None = None
    credentials: Path | None = None
    log: Path | None = None
    detail: str = ""

    @property
    def usable(self) -> bool:
        return self.state in ("running", "external")

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        for name in ("credentials", "log"):
            body[name] = None if body[name] is None else str(body[name])
        return body


@dataclass(frozen=True)
class ProcessInfo:
    """Facts of the last start. ``born`` tells the process from a later one with the same pid."""

    pid: int
    born: float
    port: int


def service_folder(workspace: Workspace, name: str) -> Path:
    return workspace.services / name


def read_process_info(workspace: Workspace, name: str) -> ProcessInfo | None:
    """What the last start wrote; None when there was none or the file is damaged."""
    try:
        body = json.loads((service_folder(workspace, name) / "state.json").read_bytes())
        return ProcessInfo(int(body["pid"]), float(body["born"]), int(body["port"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_process_info(workspace: Workspace, name: str, facts: ProcessInfo) -> None:
    path = service_folder(workspace, name) / "state.json"
    write_atomic(path, json.dumps(asdict(facts), indent=1).encode())


# ---- Servers that this workbench starts itself: launch, recognise, wait for, stop.
#
# A server counts as ours only when the kernel says so: the remembered process lives (pid *and* birth
# time), that process or a child of it holds the port, and the port answers. A recycled pid, or
# another workbench's server on the same port, is therefore never mistaken for it.
#
# Every process of a server carries ``WORKBENCH_SERVICE=<folder>`` in its environment. That finds
# what a ``kill -9`` left behind: a worker whose parent died, or a server whose start was never
# written down.


SERVICE_VARIABLE = "WORKBENCH_SERVICE"
MessageCallback = Callable[[str], None]

_POLL_SECONDS = 0.1
_STOP_SECONDS = 15.0
_PORT_SECONDS = 3.0  # a killed process may hold its port for a moment yet
_MAX_LOG_BYTES = 16 * 2**20
# All that every server takes over from its caller. The rest (PYTHONPATH, DATABASE_NAME, where
# another server is…) would change what it does from one terminal to the next.
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
# Held so that children are reaped when they end and no warning is printed when they do not.
_children: dict[int, subprocess.Popen[bytes]] = {}


class Server(ABC):
    """How one kind of server is prepared, launched and asked whether it is well."""

    name: ClassVar[str]
    patience: ClassVar[float]
    """Seconds a start may take before it counts as failed."""
    inherits: ClassVar[tuple[str, ...]] = ()
    """Patterns of further variables that this server takes over from its caller."""

    @abstractmethod
    def command(self, workspace: Workspace, port: int) -> list[str]: ...

    @abstractmethod
    def url(self, port: int) -> str: ...

    @abstractmethod
    def prepare(self, workspace: Workspace, say: MessageCallback) -> None:
        """Make what has to exist before the first start; called under the server's lock."""

    @abstractmethod
    def answers(self, port: int) -> bool:
        """Whether a server of this kind gives a real answer on ``port``."""

    def variables(self, workspace: Workspace, port: int) -> dict[str, str]:
        """Environment variables added for the server's process."""
        return {}

    def credentials(self, workspace: Workspace) -> Path | None:
        return None


def observe_server(server: Server, workspace: Workspace) -> ServiceStatus:
    """Look, without changing anything. Takes tens of milliseconds."""
    facts = read_process_info(workspace, server.name)
    log = _log_path(workspace, server.name)
    if facts is None:
        return ServiceStatus(server.name, "stopped", detail="never started here")
    url, credentials = server.url(facts.port), server.credentials(workspace)
    process = _living_process(facts)
    if process is None:
        return ServiceStatus(server.name, "stopped", url, None, credentials, log, "not running")
    if not server.answers(facts.port):
        detail = "the process lives but does not answer; `workbench up` restarts it"
        return ServiceStatus(server.name, "broken", url, facts.pid, credentials, log, detail)
    if not _holds_port(process, facts.port):
        detail = f"port {facts.port} is answered by a server that is not ours"
        return ServiceStatus(server.name, "broken", url, facts.pid, credentials, log, detail)
    detail = "started by this workbench"
    return ServiceStatus(server.name, "running", url, facts.pid, credentials, log, detail)


def start_server(server: Server, workspace: Workspace, say: MessageCallback) -> ServiceStatus:
    """Bring the server up, or find it up. Two callers at once start one server.

    Raises:
        ServiceError: It did not come up; the end of its log is in the message.
    """
    state = observe_server(server, workspace)
    if state.state == "running":
        return state
    with _server_lock(server, workspace):
        state = observe_server(server, workspace)
        if state.state == "broken":
            state = _wait_for_interrupted_start(server, workspace)
        if state.state == "running":
            return state
        _terminate(find_service_processes(workspace, server.name))
        began = time.monotonic()
        server.prepare(workspace, say)
        say(f"{server.name}: starting")
        state = _launch_with_retries(server, workspace)
        say(f"{server.name}: up at {state.url} after {time.monotonic() - began:.1f} s")
        return state


def stop_server(server: Server, workspace: Workspace) -> bool:
    """Stop all of the server's processes; whether there were any."""
    if not service_folder(workspace, server.name).is_dir():
        return False
    with _server_lock(server, workspace):
        processes = find_service_processes(workspace, server.name)
        _terminate(processes)
        return bool(processes)


def find_service_processes(workspace: Workspace, name: str) -> list[psutil.Process]:
    """Every living process that was started for this folder, whoever started it."""
    mark = str(service_folder(workspace, name))
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                process.environ().get(SERVICE_VARIABLE) == mark
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


@contextlib.contextmanager
def _server_lock(server: Server, workspace: Workspace) -> Iterator[None]:
    folder = service_folder(workspace, server.name)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=server.patience + _STOP_SECONDS):
            yield
    except Timeout as error:
        raise ServiceError(
            f"Another command has been starting or stopping {server.name} for too long",
            where=folder / "lock",
            hint="See which `workbench` commands are running, end them, and try again",
        ) from error


def _living_process(facts: ProcessInfo) -> psutil.Process | None:
    child = _children.get(facts.pid)
    if child is not None:
        child.poll()
    try:
        process = psutil.Process(facts.pid)
        same = abs(process.create_time() - facts.born) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _holds_port(process: psutil.Process, port: int) -> bool:
    def listens(candidate: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return any(
                link.status == psutil.CONN_LISTEN and link.laddr.port == port
                for link in candidate.net_connections(kind="tcp")
            )
        return False

    with contextlib.suppress(psutil.Error):
        return listens(process) or any(listens(c) for c in process.children(recursive=True))
    return False


def _wait_for_interrupted_start(server: Server, workspace: Workspace) -> ServiceStatus:
    """A command killed while it waited leaves a server that may only need more time."""
    facts = read_process_info(workspace, server.name)
    age = time.time() - facts.born if facts else server.patience
    deadline = time.monotonic() + max(3.0, server.patience - age)
    state = observe_server(server, workspace)
    while state.state == "broken" and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        state = observe_server(server, workspace)
    return state


def _launch_with_retries(server: Server, workspace: Workspace) -> ServiceStatus:
    """Launch; when somebody else takes the port in between, launch again on another one."""
    facts = read_process_info(workspace, server.name)
    port = probes.choose_port(facts.port if facts else None, patience=_PORT_SECONDS)
    for _ in range(3):
        _launch(server, workspace, port)
        state = _wait_until_running(server, workspace)
        if state.state == "running":
            return state
        _terminate(find_service_processes(workspace, server.name))
        if probes.is_port_free(port):
            break  # the port was not the reason, so another one would not help
        port = probes.choose_port()
    log = _log_path(workspace, server.name)
    raise ServiceError(
        f"{server.name} did not come up ({state.detail}). It said last:\n{_log_tail(log)}",
        where=log,
        hint="Run `workbench doctor`; its log says more",
    )


def _launch(server: Server, workspace: Workspace, port: int) -> None:
    folder = service_folder(workspace, server.name)
    log = _log_path(workspace, server.name)
    if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    wanted = (*_INHERITED_VARIABLES, *server.inherits)
    inherited = {n: v for n, v in os.environ.items() if any(fnmatchcase(n, one) for one in wanted)}
    variables = {**inherited, **server.variables(workspace, port), SERVICE_VARIABLE: str(folder)}
    with log.open("ab") as out:
        child = subprocess.Popen(
            server.command(workspace, port),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=variables,
            # Its own session: Ctrl-C in the terminal is meant for the command, not for servers.
            start_new_session=True,
        )
    _children[child.pid] = child
    born = psutil.Process(child.pid).create_time()
    write_process_info(workspace, server.name, ProcessInfo(child.pid, born, port))


def _wait_until_running(server: Server, workspace: Workspace) -> ServiceStatus:
    deadline = time.monotonic() + server.patience
    state = observe_server(server, workspace)
    while state.state == "broken" and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        state = observe_server(server, workspace)
    return state


def _terminate(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in _wait_for_exit(processes, _STOP_SECONDS):
        with contextlib.suppress(psutil.Error):
            process.kill()
    _wait_for_exit(processes, _STOP_SECONDS)


def _wait_for_exit(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for processes to end and return those that did not. A zombie has ended: its parent may
    be a long-lived notebook that never reaps it."""

    def lives(process: psutil.Process) -> bool:
        child = _children.get(process.pid)
        if child is not None:
            child.poll()
        with contextlib.suppress(psutil.Error):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    deadline = time.monotonic() + seconds
    remaining = [process for process in processes if lives(process)]
    while remaining and time.monotonic() < deadline:
        time.sleep(0.05)
        remaining = [process for process in remaining if lives(process)]
    return remaining


def _log_path(workspace: Workspace, name: str) -> Path:
    return service_folder(workspace, name) / "server.log"


def _log_tail(log: Path, lines: int = 6) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 8192))
            text = stream.read().decode(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(line for line in text.splitlines() if line.strip()).rsplit("\n", lines)[-1]
