"""Record which files and addresses a step touches, and compare them with its contract.

The kernel reports calls through seccomp, which sees native libraries and child processes. Without
seccomp Python's audit hooks stand in (coverage ``partial``): ``audit/sitecustomize.py`` runs in
every Python process of the step because ``PYTHONPATH`` leads there. Calls are observed, never
blocked: this is not a security boundary.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import site
import socket
import struct
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

import psutil

from workbench.pipeline.checking import seccomp
from workbench.pipeline.checking.receipts import Coverage
from workbench.pipeline.checking.seccomp import SystemCall
from workbench.pipeline.environment import PACKAGE_ROOT

__all__ = ()

_AccessKind = Literal["read", "write", "connect"]

_AUDIT_VARIABLE = "WORKBENCH_AUDIT_LOG"
_AUDIT_FOLDER = Path(__file__).parent / "audit"

_AT_FDCWD = -100
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_O_PATH = 0o10000000
_POLL_MS = 200
_UNIX, _INET, _INET6 = 1, 2, 10

# Which arguments of a call hold (folder handle, path); None for the working folder.
_CHANGE_CALLS: dict[str, tuple[tuple[int | None, int], ...]] = {
    "creat": ((None, 0),),
    "link": ((None, 1),),
    "linkat": ((2, 3),),
    "mkdir": ((None, 0),),
    "mkdirat": ((0, 1),),
    "rename": ((None, 0), (None, 1)),
    "renameat": ((0, 1), (2, 3)),
    "renameat2": ((0, 1), (2, 3)),
    "rmdir": ((None, 0),),
    "symlink": ((None, 1),),
    "symlinkat": ((1, 2),),
    "truncate": ((None, 0),),
    "unlink": ((None, 0),),
    "unlinkat": ((0, 1),),
}
_CREATE_CALLS = ("link", "linkat", "mkdir", "mkdirat", "symlink", "symlinkat")
_OPEN_CALLS = {"open": (None, 0, 1), "openat": (0, 1, 2), "openat2": (0, 1, 2)}
_EXEC_CALLS = {"execve": (None, 0), "execveat": (0, 1)}

_SYSTEM_FOLDERS = (
    "/bin",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/proc",
    "/sbin",
    "/sys",
    "/usr",
)
_SYSTEM_STATE = (
    "/run/nscd",
    "/var/run/nscd",
    "/run/systemd/resolve",
    "/var/cache/fontconfig",
    "/var/lib/libuuid",  # the clock behind time-based UUIDs
)
_DEVICES = ("/dev", "/proc")
_TOOL_FOLDERS = (
    ".ipython",
    ".jupyter",
    ".local/share/jupyter",
    ".cache/matplotlib",
    ".config/matplotlib",
    ".cache/fontconfig",
    ".fonts",
    ".local/share/fonts",
    ".cache/torch/kernels",
    ".triton",
    ".nv",
)
"""Settings and caches of tools below the home folder; none of them holds data."""

_CACHE_FILE = re.compile(r"/__pycache__(/|$)|\.pyc(\.\d+)?$|/\.nv/|/numba_cache/")
_TOOL_TEMPORARY = re.compile(r"/(torchinductor_|matplotlib-|pymp-|numba-)[^/]*(/|$)")
_DNS_PORT = "53"


@dataclass
class Access:
    """A path or an address that the step touched, any number of times.

    Attributes:
        target: An absolute path, or ``host:port``.
        first: Time of the first access, in seconds since the epoch; ``last`` likewise.
        is_own: Whether a watched process listens on the address.
    """

    kind: _AccessKind
    target: str
    first: float
    last: float
    is_folder: bool = False
    is_own: bool = False


@dataclass
class AccessLog:
    """Every access of one run.

    Attributes:
        coverage: How much was observed.
        created: Paths that the watched processes created.
    """

    coverage: Coverage = "none"
    accesses: dict[tuple[_AccessKind, str], Access] = field(default_factory=dict)
    created: set[str] = field(default_factory=set)

    def add(
        self,
        kind: _AccessKind,
        target: str,
        at: float,
        *,
        existed: bool = True,
        is_folder: bool = False,
        is_own: bool = False,
    ) -> None:
        """Note one access; ``existed`` is whether the path existed before it."""
        access = self.accesses.get((kind, target))
        if access is None:
            access = Access(kind, target, at, at, is_folder, is_own)
            self.accesses[(kind, target)] = access
        else:
            access.last = at
            access.is_own = access.is_own or is_own
        if kind == "write" and not existed:
            self.created.add(target)

    def add_audit_file(self, file: Path) -> None:
        """Add what the audit hooks wrote; without a file the coverage stays ``none``."""
        if not file.exists():
            return
        self.coverage = "partial"
        for line in file.read_bytes().splitlines():
            try:
                at, kind, target, existed = json.loads(line)
            except ValueError:
                continue  # the last line of a process that was killed
            self.add(kind, target, at, existed=existed)


class AccessWatch:
    """Watches one step: inside ``with``, execute it with ``launch`` and ``handles``.

    Without seccomp the step's spec also needs ``environment``.

    Args:
        folder: Where the audit hooks write, if they are needed.
        use_seccomp: False for Python's audit hooks only.
    """

    def __init__(self, folder: Path, *, use_seccomp: bool = True) -> None:
        self.log = AccessLog()
        self._by_kernel = use_seccomp and seccomp.can_watch()
        self._audit_file = folder / "audit.jsonl"
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._answer_calls, daemon=True)
        self._pids: set[int] = set()
        self._own_ports: dict[int, bool] = {}

    @property
    def handles(self) -> tuple[int, ...]:
        return (self._theirs.fileno(),)

    @property
    def environment(self) -> dict[str, str]:
        if self._by_kernel:
            return {}
        before = os.environ.get("PYTHONPATH")
        path = f"{_AUDIT_FOLDER}{os.pathsep}{before}" if before else str(_AUDIT_FOLDER)
        return {_AUDIT_VARIABLE: str(self._audit_file), "PYTHONPATH": path}

    @property
    def launch(self) -> tuple[str, ...]:
        step = ("workbench", "run-step")
        return (seccomp.__name__, str(self._theirs.fileno()), *step) if self._by_kernel else step

    def __enter__(self) -> AccessWatch:
        if self._by_kernel:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._theirs.close()
        if self._by_kernel:
            self._thread.join()
        self._ours.close()
        if self.log.coverage == "none":
            self.log.add_audit_file(self._audit_file)

    def _answer_calls(self) -> None:
        architecture = seccomp.current_architecture()
        listener = self._receive_listener()
        if listener is None or architecture is None:
            return
        self.log.coverage = "complete"
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        try:
            while True:
                ready = poll.poll(_POLL_MS)
                if any(state & select.POLLIN for _, state in ready):
                    call = seccomp.receive_call(listener, architecture)
                    if call is not None:
                        self._answer(listener, call)
                elif ready or self._stop.is_set():  # the last watched process has ended
                    return
        finally:
            os.close(listener)

    def _receive_listener(self) -> int | None:
        poll = select.poll()
        poll.register(self._ours, select.POLLIN)
        while not self._stop.is_set():
            if poll.poll(_POLL_MS):
                _message, handles, _, _ = socket.recv_fds(self._ours, 256, 1)
                return handles[0] if handles else None
        return None

    def _answer(self, listener: int, call: SystemCall) -> None:
        """Note what the call accesses, and in any case let it continue."""
        try:
            self._pids.add(call.pid)
            accesses = list(self._accesses_of(call))
            if seccomp.is_call_pending(listener, call):
                for kind, target, details in accesses:
                    self.log.add(kind, target, time.time(), **details)
        finally:
            seccomp.continue_call(listener, call)

    def _accesses_of(self, call: SystemCall) -> Iterator[tuple[_AccessKind, str, dict[str, bool]]]:
        if call.name in _OPEN_CALLS:
            yield from _opened(call)
        elif call.name in _CHANGE_CALLS:
            yield from _changed(call)
        elif call.name in _EXEC_CALLS:
            path = _argument_path(call, *_EXEC_CALLS[call.name])
            if Path(path).exists():
                yield "read", path, {}
        else:
            yield from self._connected(call)

    def _connected(self, call: SystemCall) -> Iterator[tuple[_AccessKind, str, dict[str, bool]]]:
        address = _socket_address(call)
        if len(address) < 4:
            return
        family = int.from_bytes(address[:2], "little")
        if family == _UNIX:
            path = os.fsdecode(address[2:].partition(b"\0")[0])
            if path.startswith("/") and Path(path).exists():
                yield "write", path, {}
            return
        if family == _INET:
            host = socket.inet_ntop(socket.AF_INET, address[4:8])
        elif family == _INET6 and len(address) >= 24:
            host = socket.inet_ntop(socket.AF_INET6, address[8:24])
        else:
            return
        port = struct.unpack(">H", address[2:4])[0]
        if port:
            is_own = _is_loopback(host) and self._listens(port)
            yield "connect", f"{host}:{port}", {"is_own": is_own}

    def _listens(self, port: int) -> bool:
        """Whether a watched process listens on a port of this machine, as a kernel does."""
        if not self._own_ports.get(port):
            self._own_ports[port] = any(_has_listener(pid, port) for pid in list(self._pids))
        return self._own_ports[port]


def _opened(call: SystemCall) -> Iterator[tuple[_AccessKind, str, dict[str, bool]]]:
    folder, path_at, flags_at = _OPEN_CALLS[call.name]
    flags = call.arguments[flags_at]
    if call.name == "openat2":
        flags = int.from_bytes(seccomp.read_memory(call.pid, flags, 8), "little")
    path = _argument_path(call, folder, path_at)
    if not path or flags & _O_PATH:
        return
    exists = os.path.exists(path)  # noqa: PTH110 - twice as fast, and this is every open
    if flags & _WRITE_FLAGS:
        yield "write", path, {"existed": exists}
    elif exists:
        yield "read", path, {"is_folder": os.path.isdir(path)}  # noqa: PTH112


def _changed(call: SystemCall) -> Iterator[tuple[_AccessKind, str, dict[str, bool]]]:
    """Paths that the call changes; a call that has to fail, like mkdir of a folder, has none."""
    for folder, path_at in _CHANGE_CALLS[call.name]:
        path = _argument_path(call, folder, path_at)
        existed = os.path.lexists(path)
        if path and not (existed and call.name in _CREATE_CALLS):
            yield "write", path, {"existed": existed}


def _argument_path(call: SystemCall, folder: int | None, path_at: int) -> str:
    """The absolute path that an argument names, "" when it cannot be read."""
    name = seccomp.read_path(call.pid, call.arguments[path_at])
    if not name:
        return ""
    if not name.startswith("/"):
        handle = _AT_FDCWD
        if folder is not None:
            handle = struct.unpack("=i", struct.pack("=I", call.arguments[folder] & 0xFFFFFFFF))[0]
        base = "cwd" if handle == _AT_FDCWD else f"fd/{handle}"
        try:
            name = f"{os.readlink(f'/proc/{call.pid}/{base}')}/{name}"  # noqa: PTH115
        except OSError:
            return ""
    return os.path.normpath(name)


def _socket_address(call: SystemCall) -> bytes:
    """The socket address that a call names, empty when it names none."""
    if call.name == "sendmsg":  # struct msghdr starts with the address and its length
        head = seccomp.read_memory(call.pid, call.arguments[1], 12)
        if len(head) < 12:
            return b""
        pointer, size = struct.unpack("=QI", head)
    else:
        pointer, size = call.arguments[1:3] if call.name == "connect" else call.arguments[4:6]
    return seccomp.read_memory(call.pid, pointer, min(size, 128)) if pointer and size else b""


def _has_listener(pid: int, port: int) -> bool:
    try:
        sockets = psutil.Process(pid).net_connections(kind="tcp")
    except psutil.Error:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets)


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host in ("::1", "localhost") or host.startswith("::ffff:127.")


@dataclass(frozen=True)
class CellWindow:
    """When a cell ran, in seconds since the epoch; ``end`` is infinite when it did not end."""

    cell: int
    start: float
    end: float = math.inf


@dataclass(frozen=True)
class AccessPolicy:
    """What a step may access.

    Attributes:
        reads: Files and folders that it may read, with everything below them.
        writes: Likewise for writing, which includes reading.
        hosts: ``host`` or ``host:port`` that it may connect to.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    hosts: tuple[str, ...] = ()

    def undeclared(
        self, log: AccessLog, windows: Sequence[CellWindow]
    ) -> Iterator[tuple[Access, int]]:
        """Every access that the policy does not allow, with its cell.

        Accesses before the first and after the last cell are the kernel's own and are left out.
        """
        addresses = frozenset(_resolve_hosts(self.hosts))
        for access in log.accesses.values():
            cell = _cell_at(access.first, windows) or _cell_at(access.last, windows)
            if cell is not None and not self._allows(access, log, addresses):
                yield access, cell

    def _allows(self, access: Access, log: AccessLog, addresses: frozenset[str]) -> bool:
        if access.kind == "connect":
            return _may_connect(access, addresses)
        path, real = access.target, os.path.realpath(access.target)
        readable = (*self.reads, *self.writes)
        if access.kind == "write":
            if _is_below(path, real, self.writes):
                return True
        elif access.is_folder and _is_above(path, readable):
            return True  # listed on the way to a declared path
        elif _is_below(path, real, readable) or _created_by_step(path, log):
            return True
        is_cache = _CACHE_FILE.search(path) and _is_below(path, real, self.reads)
        is_temporary = _is_below(path, real, _temporary_folders()) and (
            _created_by_step(path, log) or _TOOL_TEMPORARY.search(path)
        )
        return bool(is_cache or is_temporary)


def _may_connect(access: Access, addresses: frozenset[str]) -> bool:
    host, _, port = access.target.rpartition(":")
    if access.is_own or access.target in addresses or host in addresses:
        return True
    return port == _DNS_PORT and any(not _is_loopback(address) for address in addresses)


def software_paths() -> tuple[str, ...]:
    """What every Python program reads: interpreter, packages, system, and this package."""
    paths = {sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages()}
    paths |= {sysconfig.get_path("stdlib"), str(PACKAGE_ROOT)}
    paths |= {str(PACKAGE_ROOT / ".." / "pyproject.toml")}
    paths |= {str(Path.home() / name) for name in _TOOL_FOLDERS}
    both = {os.path.realpath(path) for path in paths} | {os.path.normpath(path) for path in paths}
    return (*_SYSTEM_FOLDERS, *_SYSTEM_STATE, *sorted(both))


def scratch_paths() -> tuple[str, ...]:
    """Where every Python program may write: devices, and caches of tools."""
    return (*_DEVICES, *_SYSTEM_STATE, *(str(Path.home() / name) for name in _TOOL_FOLDERS))


def _temporary_folders() -> tuple[str, ...]:
    """The system's folders for temporary files."""
    return (os.path.realpath(tempfile.gettempdir()), "/tmp", "/var/tmp")  # noqa: S108


def _cell_at(moment: float, windows: Sequence[CellWindow]) -> int | None:
    """The cell that ran, or had just run, at a moment between the first cell and the last."""
    before = [window for window in windows if window.start <= moment]
    if not before or moment > windows[-1].end:
        return None
    return max(before, key=lambda window: window.start).cell


def _is_below(path: str, real: str, folders: Iterable[str]) -> bool:
    return any(
        one == folder or one.startswith(folder.rstrip("/") + "/")
        for folder in folders
        for one in (path, real)
    )


def _is_above(path: str, folders: Iterable[str]) -> bool:
    return any(folder == path or folder.startswith(path.rstrip("/") + "/") for folder in folders)


def _created_by_step(path: str, log: AccessLog) -> bool:
    """Whether the watched processes created this path or a folder above it."""
    return path in log.created or any(str(one) in log.created for one in Path(path).parents)


def _resolve_hosts(hosts: Iterable[str]) -> Iterator[str]:
    """Each host as it is and as the addresses that its name stands for now."""
    for entry in hosts:
        host, colon, port = entry.rpartition(":") if ":" in entry else (entry, "", "")
        yield entry
        try:
            results = socket.getaddrinfo(host, None)
        except OSError:
            continue
        for *_, address in results:
            yield f"{address[0]}{colon}{port}"
