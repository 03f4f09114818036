"""Linux seccomp user notification through ctypes (seccomp(2), Linux 5.5 or newer).

A process installs a filter that reports some system calls to a listener before they are made. The
listener, in another process, reads the arguments from ``/proc/PID/mem`` and lets the call continue.

As a program, ``python -m workbench.pipeline.checking.seccomp SOCKET MODULE ARGUMENT…`` installs the
filter, sends the listener through the socket and becomes ``python -m MODULE``. Where no filter can
be installed the module runs unobserved, and the receiver finds the socket empty.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass

from workbench.core.processes import die_with_parent

__all__ = ()

_SET_MODE_FILTER, _GET_NOTIF_SIZES = 1, 3
_NEW_LISTENER = 1 << 3
_PR_SET_NO_NEW_PRIVS = 38
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

_RECEIVE, _SEND, _STILL_VALID = 0xC0502100, 0xC0182101, 0x40082102
_CONTINUE = 1
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, then struct seccomp_data
_RESPONSE = struct.Struct("=QqiI")
_MAX_PATH_BYTES = 4096
_PROBE = "probe"


@dataclass(frozen=True)
class Architecture:
    """Numbers of one architecture: its audit id, seccomp(2), and the calls to report."""

    audit: int
    seccomp: int
    calls: dict[int, str]


_X86_64 = Architecture(
    audit=0xC000003E,
    seccomp=317,
    calls={
        2: "open",
        42: "connect",
        44: "sendto",
        46: "sendmsg",
        59: "execve",
        76: "truncate",
        82: "rename",
        83: "mkdir",
        84: "rmdir",
        85: "creat",
        86: "link",
        87: "unlink",
        88: "symlink",
        257: "openat",
        258: "mkdirat",
        263: "unlinkat",
        264: "renameat",
        265: "linkat",
        266: "symlinkat",
        316: "renameat2",
        322: "execveat",
        437: "openat2",
    },
)
_AARCH64 = Architecture(
    audit=0xC00000B7,
    seccomp=277,
    calls={
        34: "mkdirat",
        35: "unlinkat",
        36: "symlinkat",
        37: "linkat",
        38: "renameat",
        45: "truncate",
        56: "openat",
        203: "connect",
        206: "sendto",
        211: "sendmsg",
        221: "execve",
        276: "renameat2",
        281: "execveat",
        437: "openat2",
    },
)
_ARCHITECTURES = {"x86_64": _X86_64, "aarch64": _AARCH64}


@dataclass(frozen=True)
class SystemCall:
    """A system call that is about to be made by thread ``pid``."""

    id: int
    pid: int
    name: str
    arguments: tuple[int, ...]


def current_architecture() -> Architecture | None:
    """This machine's numbers, None where user notification is not available."""
    known = _ARCHITECTURES.get(platform.machine()) if platform.system() == "Linux" else None
    if known is None:
        return None
    sizes = (ctypes.c_uint16 * 3)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(known.seccomp, _GET_NOTIF_SIZES, 0, sizes) != 0:
        return None
    return known if list(sizes)[:2] == [_NOTIFICATION.size, _RESPONSE.size] else None


def install_filter(architecture: Architecture) -> int:
    """Report calls of this thread, and of every process it starts, to the returned listener.

    From the next reported call on, the thread waits until the listener answers.

    Raises:
        OSError: The kernel or an existing filter does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    code = _filter_program(architecture)
    buffer = ctypes.create_string_buffer(b"".join(code))
    program = struct.pack("=HxxxxxxQ", len(code), ctypes.addressof(buffer))
    listener = libc.syscall(architecture.seccomp, _SET_MODE_FILTER, _NEW_LISTENER, program)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp(SECCOMP_SET_MODE_FILTER)")
    return int(listener)


def receive_call(listener: int, architecture: Architecture) -> SystemCall | None:
    """The next call that waits for an answer; None when its thread has ended meanwhile."""
    buffer = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer, True)
    except OSError:
        return None
    number, pid, _flags, nr, _arch, _ip, *arguments = _NOTIFICATION.unpack(buffer)
    return SystemCall(number, pid, architecture.calls[nr], tuple(arguments))


def continue_call(listener: int, call: SystemCall) -> None:
    """Let the thread make its call."""
    try:
        fcntl.ioctl(listener, _SEND, bytearray(_RESPONSE.pack(call.id, 0, 0, _CONTINUE)), True)
    except OSError:
        return  # the thread was interrupted or has ended


def is_call_pending(listener: int, call: SystemCall) -> bool:
    """Whether the thread still waits, so that the memory just read was its own."""
    try:
        fcntl.ioctl(listener, _STILL_VALID, bytearray(struct.pack("=Q", call.id)), True)
    except OSError:
        return False
    return True


def read_memory(pid: int, address: int, size: int) -> bytes:
    """Up to ``size`` bytes of another process; fewer at the end of its memory."""
    try:
        handle = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(handle, size, address)
    except (OSError, OverflowError):
        return b""
    finally:
        os.close(handle)


def read_path(pid: int, address: int) -> str:
    """The path at ``address`` in another process."""
    data = read_memory(pid, address, _MAX_PATH_BYTES) if address else b""
    return os.fsdecode(data.partition(b"\0")[0])


def _filter_program(architecture: Architecture) -> list[bytes]:
    """Report the architecture's calls; sendto only when it names an address."""
    sendto = next(number for number, name in architecture.calls.items() if name == "sendto")
    reported = [number for number in architecture.calls if number != sendto]
    tail = 7  # instructions after the list: five for sendto, allow, report
    jumps = [
        _instruction(_JUMP_IF_EQUAL, number, len(reported) - position - 1 + tail - 1, 0)
        for position, number in enumerate(reported)
    ]
    address = _AT_ARGUMENT + 8 * 4
    return [
        _instruction(_LOAD, _AT_ARCHITECTURE),
        _instruction(_JUMP_IF_EQUAL, architecture.audit, 1, 0),
        _instruction(_RETURN, _RET_ALLOW),
        _instruction(_LOAD, _AT_NUMBER),
        *jumps,
        _instruction(_JUMP_IF_EQUAL, sendto, 0, 4),
        _instruction(_LOAD, address),
        _instruction(_JUMP_IF_EQUAL, 0, 0, 3),
        _instruction(_LOAD, address + 4),
        _instruction(_JUMP_IF_EQUAL, 0, 0, 1),
        _instruction(_RETURN, _RET_ALLOW),
        _instruction(_RETURN, _RET_USER_NOTIF),
    ]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def can_watch() -> bool:
    """Whether a filter can be installed here; tried in a separate process."""
    command = [sys.executable, "-m", __name__, _PROBE]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _main(handle: int, command: list[str]) -> None:
    die_with_parent()
    _install_and_send(socket.socket(fileno=handle))
    os.execv(sys.executable, [sys.executable, "-m", *command])  # noqa: S606


def _install_and_send(channel: socket.socket) -> None:
    import array  # noqa: F401 - send_fds imports it, too late for a thread that is watched

    architecture = current_architecture()
    listeners: list[int] = []
    installed = threading.Event()

    def send() -> None:
        # From a thread that the filter does not bind: nobody could let its sendmsg continue.
        installed.wait()
        socket.send_fds(channel, [b"listener"], listeners)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        if architecture is not None:
            listeners.append(install_filter(architecture))
    except OSError as error:
        print(f"not watched: {error}", file=sys.stderr)
    finally:
        installed.set()
        sender.join()
    for listener in listeners:
        os.close(listener)
    channel.close()


def _probe() -> None:
    architecture = current_architecture()
    try:
        if architecture is not None:
            install_filter(architecture)
            os._exit(0)
    finally:
        os._exit(1)


if __name__ == "__main__":
    if sys.argv[1] == _PROBE:
        _probe()
    _main(int(sys.argv[1]), sys.argv[2:])
