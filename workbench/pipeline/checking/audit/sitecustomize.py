"""Audit hooks of a watched step, installed at the start of each of its Python processes.

They write one JSON line for each open, change and connection that Python makes. Each line is
one ``write`` to a file opened for appending, so lines of several processes do not mix.
"""

import contextlib
import json
import os
import sys
import time

_FILE = os.environ.get("WORKBENCH_AUDIT_LOG")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = {"os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0, "os.rename": 1}
_CHANGES.update({"os.symlink": 1, "os.link": 1})


def _watch(handle: int) -> None:
    def note(kind: str, target: str, existed: bool) -> None:
        line = json.dumps([time.time(), kind, target, existed]) + "\n"
        os.write(handle, line.encode())

    def path_of(value: object) -> str:
        if isinstance(value, int) or value is None:
            return ""
        return os.path.abspath(os.fsdecode(value))  # type: ignore[arg-type]  # noqa: PTH100

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _mode, flags = arguments
            target = path_of(path)
            existed = bool(target) and os.path.lexists(target)
            writes = isinstance(flags, int) and flags & _WRITES
            if target and (writes or existed):
                note("write" if writes else "read", target, existed)
        elif event in _CHANGES:
            target = path_of(arguments[_CHANGES[event]])
            if target:
                note("write", target, os.path.lexists(target))
        elif event == "sqlite3.connect":
            target = str(arguments[0])
            if target and not target.startswith((":memory:", "file:")):
                target = path_of(target)
                note(
                    "read" if os.path.lexists(target) else "write", target, os.path.lexists(target)
                )
        elif event in ("socket.connect", "socket.sendto"):
            address = arguments[1]
            if isinstance(address, tuple) and len(address) >= 2:
                note("connect", f"{address[0]}:{address[1]}", True)

    def guarded(event: str, arguments: tuple[object, ...]) -> None:
        with contextlib.suppress(Exception):  # the watched program must not fail
            hook(event, arguments)

    sys.addaudithook(guarded)


if _FILE:
    with contextlib.suppress(OSError):
        _watch(os.open(_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
