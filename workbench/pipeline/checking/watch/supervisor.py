"""Answers the kernel for a watched step, and keeps what it was asked about."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

from workbench.pipeline.checking.watch import audit_log, launch, seccomp
from workbench.pipeline.checking.watch.events import Log
from workbench.pipeline.checking.watch.launch import is_possible
from workbench.pipeline.checking.watch.seccomp import Call

_CWD = -100  # AT_FDCWD
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_O_PATH = 0o10000000
_POLL_MS = 200
_UNIX, _INET, _INET6 = 1, 2, 10

# Which arguments of a call hold (folder handle, path); None for the working folder.
_CHANGES: dict[str, tuple[tuple[int | None, int], ...]] = {
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
_MAKE_NEW = ("link", "linkat", "mkdir", "mkdirat", "symlink", "symlinkat")
_OPENS = {"open": (None, 0, 1), "openat": (0, 1, 2), "openat2": (0, 1, 2)}
_RUNS = {"execve": (None, 0), "execveat": (0, 1)}


class Watch:
    """Watches one step: inside ``with``, execute it with ``launch`` and ``handles``.

    Without seccomp the step's spec needs ``environment``, and Python itself tells what it does.
    """

    def __init__(self, folder: Path, *, seccomp_allowed: bool = True) -> None:
        self.log = Log()
        self._by_kernel = seccomp_allowed and is_possible()
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
        return {} if self._by_kernel else audit_log.environment(self._audit_file)

    @property
    def launch(self) -> tuple[str, ...]:
        step = ("workbench", "run-step")
        return (launch.__name__, str(self._theirs.fileno()), *step) if self._by_kernel else step

    def __enter__(self) -> Watch:
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
            audit_log.read(self._audit_file, self.log)

    def _answer(self) -> None:
        here = seccomp.machine()
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
                    call = seccomp.receive(listener, here)
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

    def _meet(self, listener: int, call: Call) -> None:
        """Note what the call is about, and in any case let it go on."""
        try:
            self._pids.add(call.pid)
            noted = self._read(call)
            if seccomp.is_waiting(listener, call):
                for kind, target, more in noted:
                    self.log.add(kind, target, time.time(), **more)  # type: ignore[arg-type]
        finally:
            seccomp.let_go_on(listener, call)

    def _read(self, call: Call) -> list[tuple[str, str, dict[str, bool]]]:
        if call.name in _OPENS:
            return self._open(call)
        if call.name in _CHANGES:
            return self._change(call)
        if call.name in _RUNS:
            path = _path(call, *_RUNS[call.name])
            return [("read", path, {})] if Path(path).exists() else []
        return self._connect(call)

    def _change(self, call: Call) -> list[tuple[str, str, dict[str, bool]]]:
        """Paths that the call changes; one that must fail, like making what is there, is none."""
        noted = []
        for place in _CHANGES[call.name]:
            path = _path(call, *place)
            existed = os.path.lexists(path)
            if path and not (existed and call.name in _MAKE_NEW):
                noted.append(("write", path, {"existed": existed}))
        return noted

    def _open(self, call: Call) -> list[tuple[str, str, dict[str, bool]]]:
        folder, at, flags_at = _OPENS[call.name]
        flags = call.arguments[flags_at]
        if call.name == "openat2":
            flags = int.from_bytes(seccomp.memory(call.pid, flags, 8), "little")
        path = _path(call, folder, at)
        if not path or flags & _O_PATH:
            return []
        exists = os.path.exists(path)  # noqa: PTH110 - twice as quick, and this is every open
        if flags & _WRITES:
            return [("write", path, {"existed": exists})]
        if not exists:
            return []  # looked for and not found
        is_folder = os.path.isdir(path)  # noqa: PTH112
        return [("read", path, {"is_folder": is_folder})]

    def _connect(self, call: Call) -> list[tuple[str, str, dict[str, bool]]]:
        address = _address(call)
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
        own = is_loopback(host) and self._listens(port)
        return [("connect", f"{host}:{port}", {"own": own})] if port else []

    def _listens(self, port: int) -> bool:
        """Whether a watched process listens on a port of this machine, as a kernel does."""
        if not self._own_ports.get(port):
            self._own_ports[port] = any(_has_listener(pid, port) for pid in list(self._pids))
        return self._own_ports[port]


def is_loopback(host: str) -> bool:
    return host.startswith("127.") or host in ("::1", "localhost") or host.startswith("::ffff:127.")


def _path(call: Call, folder: int | None, at: int) -> str:
    """The absolute path that an argument names, "" when it cannot be read."""
    name = seccomp.text(call.pid, call.arguments[at])
    if not name:
        return ""
    if not name.startswith("/"):
        handle = _CWD
        if folder is not None:
            handle = struct.unpack("=i", struct.pack("=I", call.arguments[folder] & 0xFFFFFFFF))[0]
        base = "cwd" if handle == _CWD else f"fd/{handle}"
        try:
            name = f"{os.readlink(f'/proc/{call.pid}/{base}')}/{name}"  # noqa: PTH115
        except OSError:
            return ""
    return os.path.normpath(name)


def _address(call: Call) -> bytes:
    """The socket address that a call names, empty when it names none."""
    if call.name == "sendmsg":  # struct msghdr starts with the address and its length
        head = seccomp.memory(call.pid, call.arguments[1], 12)
        if len(head) < 12:
            return b""
        pointer, size = struct.unpack("=QI", head)
    else:
        pointer, size = call.arguments[1:3] if call.name == "connect" else call.arguments[4:6]
    return seccomp.memory(call.pid, pointer, min(size, 128)) if pointer and size else b""


def _has_listener(pid: int, port: int) -> bool:
    try:
        sockets = psutil.Process(pid).net_connections(kind="tcp")
    except psutil.Error:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets)
