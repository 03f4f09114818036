"""Record which files and addresses a step touches, and compare them with its contract."""

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

from workbench.pipeline.checking import seccomp, watch_launch
from workbench.pipeline.checking.seccomp import SystemCall
from workbench.pipeline.checking.watch_launch import can_watch
from workbench.pipeline.environment import PACKAGE_ROOT

AccessKind = Literal["read", "write", "connect"]
Coverage = Literal["complete", "partial", "none"]


@dataclass
class Access:
    """A path or an address, however often it was touched.

    Attributes:
        target: An absolute path, or ``host:port``.
        first: When it was first touched, seconds since the epoch; ``last`` likewise.
        existed: Whether the path was there before the first touch.
        own: The address is one on which a watched process listens.
    """

    kind: AccessKind
    target: str
    first: float
    last: float
    existed: bool = True
    is_folder: bool = False
    own: bool = False


@dataclass
class AccessLog:
    """Everything seen in one run; ``created`` holds paths that the watched processes made."""

    coverage: Coverage = "none"
    seen: dict[tuple[str, str], Access] = field(default_factory=dict)
    created: set[str] = field(default_factory=set)

    def add(
        self,
        kind: AccessKind,
        target: str,
        at: float,
        *,
        existed: bool = True,
        is_folder: bool = False,
        own: bool = False,
    ) -> None:
        known = self.seen.get((kind, target))
        if known is None:
            one = Access(kind, target, at, at, existed, is_folder, own)
            self.seen[(kind, target)] = one
        else:
            known.last = at
            known.own = known.own or own
        if kind == "write" and not existed:
            self.created.add(target)


# ---- Python's audit hooks, for where seccomp is not to be had: partial, blind to C++ libraries.
#
# The hook itself is ``audit/sitecustomize.py``, which every Python process below the step imports
# at its start because ``PYTHONPATH`` leads there.


_AUDIT_VARIABLE = "WORKBENCH_AUDIT_LOG"

_AUDIT_FOLDER = Path(__file__).parent / "audit"


def _audit_environment(log: Path) -> dict[str, str]:
    before = os.environ.get("PYTHONPATH")
    path = f"{_AUDIT_FOLDER}{os.pathsep}{before}" if before else str(_AUDIT_FOLDER)
    return {_AUDIT_VARIABLE: str(log), "PYTHONPATH": path}


def _read_audit_log(file: Path, log: AccessLog) -> None:
    """Add what the hooks wrote; without a file the coverage stays ``none``."""
    if not file.exists():
        return
    log.coverage = "partial"
    for line in file.read_bytes().splitlines():
        try:
            at, kind, target, existed = json.loads(line)
        except ValueError:
            continue  # the last line of a process that was killed
        log.add(kind, target, at, existed=existed)


# ---- Answers the kernel for a watched step, and keeps what it was asked about.


_AT_FDCWD = -100  # AT_FDCWD
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


class AccessWatch:
    """Watches one step: inside ``with``, execute it with ``launch`` and ``handles``.

    Without seccomp the step's spec needs ``environment``, and Python itself tells what it does.
    """

    def __init__(self, folder: Path, *, seccomp_allowed: bool = True) -> None:
        self.log = AccessLog()
        self._by_kernel = seccomp_allowed and can_watch()
        self._audit_file = folder / "audit.jsonl"
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._pids: set[int] = set()
        self._own_ports: dict[int, bool] = {}

    @property
    def handles(self) -> tuple[int, ...]:
        return (self._theirs.fileno(),)

    @property
    def environment(self) -> dict[str, str]:
        return {} if self._by_kernel else _audit_environment(self._audit_file)

    @property
    def launch(self) -> tuple[str, ...]:
        step = ("workbench", "run-step")
        return (
            (watch_launch.__name__, str(self._theirs.fileno()), *step) if self._by_kernel else step
        )

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
            _read_audit_log(self._audit_file, self.log)

    def _answer(self) -> None:
        here = seccomp.current_architecture()
        listener = self._listener()
        if listener is None or here is None:
            return
        self.log.coverage = "complete"
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        try:
            while True:
                ready = poll.poll(_POLL_MS)
                if any(state & select.POLLIN for _, state in ready):
                    call = seccomp.receive_call(listener, here)
                    if call is not None:
                        self._meet(listener, call)
                elif ready or self._stop.is_set():  # the last watched process has ended
                    return
        finally:
            os.close(listener)

    def _listener(self) -> int | None:
        poll = select.poll()
        poll.register(self._ours, select.POLLIN)
        while not self._stop.is_set():
            if poll.poll(_POLL_MS):
                _message, handles, _, _ = socket.recv_fds(self._ours, 256, 1)
                return handles[0] if handles else None
        return None

    def _meet(self, listener: int, call: SystemCall) -> None:
        """Note what the call is about, and in any case let it go on."""
        try:
            self._pids.add(call.pid)
            noted = self._read(call)
            if seccomp.is_call_pending(listener, call):
                for kind, target, more in noted:
                    self.log.add(kind, target, time.time(), **more)  # type: ignore[arg-type]
        finally:
            seccomp.continue_call(listener, call)

    def _read(self, call: SystemCall) -> list[tuple[str, str, dict[str, bool]]]:
        if call.name in _OPEN_CALLS:
            return self._open(call)
        if call.name in _CHANGE_CALLS:
            return self._change(call)
        if call.name in _EXEC_CALLS:
            path = _argument_path(call, *_EXEC_CALLS[call.name])
            return [("read", path, {})] if Path(path).exists() else []
        return self._connect(call)

    def _change(self, call: SystemCall) -> list[tuple[str, str, dict[str, bool]]]:
        """Paths that the call changes; one that must fail, like making what is there, is none."""
        noted = []
        for place in _CHANGE_CALLS[call.name]:
            path = _argument_path(call, *place)
            existed = os.path.lexists(path)
            if path and not (existed and call.name in _CREATE_CALLS):
                noted.append(("write", path, {"existed": existed}))
        return noted

    def _open(self, call: SystemCall) -> list[tuple[str, str, dict[str, bool]]]:
        folder, at, flags_at = _OPEN_CALLS[call.name]
        flags = call.arguments[flags_at]
        if call.name == "openat2":
            flags = int.from_bytes(seccomp.read_memory(call.pid, flags, 8), "little")
        path = _argument_path(call, folder, at)
        if not path or flags & _O_PATH:
            return []
        exists = os.path.exists(path)  # noqa: PTH110 - twice as quick, and this is every open
        if flags & _WRITE_FLAGS:
            return [("write", path, {"existed": exists})]
        if not exists:
            return []  # looked for and not found
        is_folder = os.path.isdir(path)  # noqa: PTH112
        return [("read", path, {"is_folder": is_folder})]

    def _connect(self, call: SystemCall) -> list[tuple[str, str, dict[str, bool]]]:
        address = _socket_address(call)
        if len(address) < 4:
            return []
        family = int.from_bytes(address[:2], "little")
        if family == _UNIX:
            path = os.fsdecode(address[2:].partition(b"\0")[0])
            return [("write", path, {})] if path.startswith("/") and Path(path).exists() else []
        port = struct.unpack(">H", address[2:4])[0]
        if family == _INET:
            host = socket.inet_ntop(socket.AF_INET, address[4:8])
        elif family == _INET6 and len(address) >= 24:
            host = socket.inet_ntop(socket.AF_INET6, address[8:24])
        else:
            return []
        own = _is_loopback(host) and self._listens(port)
        return [("connect", f"{host}:{port}", {"own": own})] if port else []

    def _listens(self, port: int) -> bool:
        """Whether a watched process listens on a port of this machine, as a kernel does."""
        if not self._own_ports.get(port):
            self._own_ports[port] = any(_has_listener(pid, port) for pid in list(self._pids))
        return self._own_ports[port]


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host in ("::1", "localhost") or host.startswith("::ffff:127.")


def _argument_path(call: SystemCall, folder: int | None, at: int) -> str:
    """The absolute path that an argument names, "" when it cannot be read."""
    name = seccomp.read_path(call.pid, call.arguments[at])
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


# ---- Which of the things that were touched a contract covers, and in which cell the others were.


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
"""Below the home folder: settings and caches of the tools, none of it data."""

_CACHE_FILE = re.compile(r"/__pycache__(/|$)|\.pyc(\.\d+)?$|/\.nv/|/numba_cache/")
_TOOL_TEMPORARY = re.compile(r"/(torchinductor_|matplotlib-|pymp-|numba-)[^/]*(/|$)")
_DNS_PORT = 53


@dataclass(frozen=True)
class CellWindow:
    """When a cell ran, in seconds since the epoch; ``end`` is infinite when it never ended."""

    cell: int
    start: float
    end: float = math.inf


@dataclass(frozen=True)
class AccessPolicy:
    """What a step may touch.

    Attributes:
        reads: Files, and folders with all below them, that it may read.
        writes: The same for writing; what may be written may be read.
        hosts: ``host`` or ``host:port`` that it may talk to.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    hosts: tuple[str, ...] = ()

    def undeclared(
        self, log: AccessLog, windows: Sequence[CellWindow]
    ) -> Iterator[tuple[Access, int]]:
        """Everything that no declaration covers, with its cell; start-up and shut-down are not
        the notebook's doing and are left out."""
        addresses = frozenset(_resolve_hosts(self.hosts))
        for seen in log.seen.values():
            cell = _cell_at(seen.first, windows) or _cell_at(seen.last, windows)
            if cell is not None and not self._covers(seen, log, addresses):
                yield seen, cell

    def _covers(self, seen: Access, log: AccessLog, addresses: frozenset[str]) -> bool:
        if seen.kind == "connect":
            return self._may_connect(seen, addresses)
        real = os.path.realpath(seen.target)
        if seen.kind == "write":
            return _is_below(seen.target, real, self.writes) or self._passing(seen, log, real)
        if seen.is_folder and _is_above(seen.target, (*self.reads, *self.writes)):
            return True  # looked through on the way to something declared
        if _is_below(seen.target, real, (*self.reads, *self.writes)) or _made_by_step(
            seen.target, log
        ):
            return True
        return self._passing(seen, log, real)

    def _passing(self, seen: Access, log: AccessLog, real: str) -> bool:
        """Byte code beside what may be read, and what the step made in the temporary folder."""
        if _CACHE_FILE.search(seen.target) and _is_below(seen.target, real, self.reads):
            return True
        if not _is_below(seen.target, real, temporary_folders()):
            return False
        return _made_by_step(seen.target, log) or bool(_TOOL_TEMPORARY.search(seen.target))

    def _may_connect(self, seen: Access, addresses: frozenset[str]) -> bool:
        host, _, port = seen.target.rpartition(":")
        if seen.own or seen.target in addresses or host in addresses:
            return True
        asks_for_names = port == str(_DNS_PORT)
        return asks_for_names and any(not _is_loopback(one) for one in addresses)


def software_paths() -> tuple[str, ...]:
    """What every Python program reads: the interpreter, its packages, the system, our package."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages()}
    prefixes |= {
        sysconfig.get_path("stdlib"),
        str(PACKAGE_ROOT),
        str(PACKAGE_ROOT / ".." / "pyproject.toml"),
    }
    prefixes |= {str(Path.home() / name) for name in _TOOL_FOLDERS}
    found = {os.path.realpath(one) for one in prefixes} | {os.path.normpath(p) for p in prefixes}
    return (*_SYSTEM_FOLDERS, *_SYSTEM_STATE, *sorted(found))


def scratch_paths() -> tuple[str, ...]:
    """Where every Python program may write: devices, and caches of tools."""
    return (*_DEVICES, *_SYSTEM_STATE, *(str(Path.home() / name) for name in _TOOL_FOLDERS))


def _cell_at(moment: float, windows: Sequence[CellWindow]) -> int | None:
    """The cell that ran, or had just run, at a moment between the first cell and the last."""
    before = [window for window in windows if window.start <= moment]
    if not before or moment > windows[-1].end:
        return None
    return max(before, key=lambda window: window.start).cell


def temporary_folders() -> tuple[str, ...]:
    """Folders for what no step leaves behind."""
    return (os.path.realpath(tempfile.gettempdir()), "/tmp", "/var/tmp")  # noqa: S108


def _is_below(path: str, real: str, folders: Iterable[str]) -> bool:
    return any(
        one == folder or one.startswith(folder.rstrip("/") + "/")
        for folder in folders
        for one in (path, real)
    )


def _is_above(path: str, folders: Iterable[str]) -> bool:
    return any(folder == path or folder.startswith(path.rstrip("/") + "/") for folder in folders)


def _made_by_step(path: str, log: AccessLog) -> bool:
    """Whether the watched processes made this path, or a folder above it."""
    if path in log.created:
        return True
    return any(str(parent) in log.created for parent in Path(path).parents)


def _resolve_hosts(hosts: Iterable[str]) -> Iterator[str]:
    """Each host as it is and as the addresses that its name stands for now."""
    for one in hosts:
        host, colon, port = one.rpartition(":") if ":" in one else (one, "", "")
        yield one
        try:
            found = socket.getaddrinfo(host, None)
        except OSError:
            continue
        for *_, address in found:
            yield f"{address[0]}{colon}{port}"
