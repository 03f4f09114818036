"""Which of the things that were touched a contract covers, and in which cell the others were."""

from __future__ import annotations

import math
import os
import re
import site
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.pipeline.checking.watch.events import Log, Seen
from workbench.pipeline.checking.watch.supervisor import is_loopback
from workbench.pipeline.planning.modules import ROOT

_SYSTEM = ("/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys", "/usr")
_SYSTEM_STATE = (
    "/run/nscd",
    "/var/run/nscd",
    "/run/systemd/resolve",
    "/var/cache/fontconfig",
    "/var/lib/libuuid",  # the clock behind time-based UUIDs
)
_DEVICES = ("/dev", "/proc")
_OF_TOOLS = (
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

_CACHED = re.compile(r"/__pycache__(/|$)|\.pyc(\.\d+)?$|/\.nv/|/numba_cache/")
_TOOLS_TEMPORARY = re.compile(r"/(torchinductor_|matplotlib-|pymp-|numba-)[^/]*(/|$)")
_NAME_SERVICE = 53


@dataclass(frozen=True)
class Window:
    """When a cell ran, in seconds since the epoch; ``end`` is infinite when it never ended."""

    cell: int
    start: float
    end: float = math.inf


@dataclass(frozen=True)
class Policy:
    """What a step may touch.

    Attributes:
        reads: Files, and folders with all below them, that it may read.
        writes: The same for writing; what may be written may be read.
        hosts: ``host`` or ``host:port`` that it may talk to.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    hosts: tuple[str, ...] = ()

    def undeclared(self, log: Log, windows: Sequence[Window]) -> Iterator[tuple[Seen, int]]:
        """Everything that no declaration covers, with its cell; start-up and shut-down are not
        the notebook's doing and are left out."""
        addresses = frozenset(_resolved(self.hosts))
        for seen in log.seen.values():
            cell = _cell_at(seen.first, windows) or _cell_at(seen.last, windows)
            if cell is not None and not self._covers(seen, log, addresses):
                yield seen, cell

    def _covers(self, seen: Seen, log: Log, addresses: frozenset[str]) -> bool:
        if seen.kind == "connect":
            return self._may_connect(seen, addresses)
        real = os.path.realpath(seen.target)
        if seen.kind == "write":
            return _below(seen.target, real, self.writes) or self._passing(seen, log, real)
        if seen.is_folder and _above(seen.target, (*self.reads, *self.writes)):
            return True  # looked through on the way to something declared
        if _below(seen.target, real, (*self.reads, *self.writes)) or _own(seen.target, log):
            return True
        return self._passing(seen, log, real)

    def _passing(self, seen: Seen, log: Log, real: str) -> bool:
        """Byte code beside what may be read, and what the step made in the temporary folder."""
        if _CACHED.search(seen.target) and _below(seen.target, real, self.reads):
            return True
        if not _below(seen.target, real, temporary()):
            return False
        return _own(seen.target, log) or bool(_TOOLS_TEMPORARY.search(seen.target))

    def _may_connect(self, seen: Seen, addresses: frozenset[str]) -> bool:
        host, _, port = seen.target.rpartition(":")
        if seen.own or seen.target in addresses or host in addresses:
            return True
        asks_for_names = port == str(_NAME_SERVICE)
        return asks_for_names and any(not is_loopback(one) for one in addresses)


def software() -> tuple[str, ...]:
    """What every Python program reads: the interpreter, its packages, the system, our package."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages()}
    prefixes |= {sysconfig.get_path("stdlib"), str(ROOT), str(ROOT / ".." / "pyproject.toml")}
    prefixes |= {str(Path.home() / name) for name in _OF_TOOLS}
    found = {os.path.realpath(one) for one in prefixes} | {os.path.normpath(p) for p in prefixes}
    return (*_SYSTEM, *_SYSTEM_STATE, *sorted(found))


def scribbles() -> tuple[str, ...]:
    """Where every Python program may write: devices, and caches of tools."""
    return (*_DEVICES, *_SYSTEM_STATE, *(str(Path.home() / name) for name in _OF_TOOLS))


def _cell_at(moment: float, windows: Sequence[Window]) -> int | None:
    """The cell that ran, or had just run, at a moment between the first cell and the last."""
    before = [window for window in windows if window.start <= moment]
    if not before or moment > windows[-1].end:
        return None
    return max(before, key=lambda window: window.start).cell


def temporary() -> tuple[str, ...]:
    """Folders for what no step leaves behind."""
    return (os.path.realpath(tempfile.gettempdir()), "/tmp", "/var/tmp")  # noqa: S108


def _below(path: str, real: str, folders: Iterable[str]) -> bool:
    return any(
        one == folder or one.startswith(folder.rstrip("/") + "/")
        for folder in folders
        for one in (path, real)
    )


def _above(path: str, folders: Iterable[str]) -> bool:
    return any(folder == path or folder.startswith(path.rstrip("/") + "/") for folder in folders)


def _own(path: str, log: Log) -> bool:
    """Whether the watched processes made this path, or a folder above it."""
    if path in log.created:
        return True
    return any(str(parent) in log.created for parent in Path(path).parents)


def _resolved(hosts: Iterable[str]) -> Iterator[str]:
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
