"""The workspace: the ``.workbench`` folder that holds all state.

It is the folder that ``WORKBENCH_HOME`` names, else the nearest ``.workbench`` in or above the
current folder, else ``./.workbench``. Two checkouts therefore never share state.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from workbench.core.errors import ParameterError, WorkbenchError
from workbench.core.names import invalid_on_a_line, shown

__all__ = ["HOME_VARIABLE", "Workspace", "find_workspace"]

WORKSPACE_FOLDER = ".workbench"
HOME_VARIABLE = "WORKBENCH_HOME"

_NOT_IN_PATHS = frozenset("?#%{}'\"\\`")
"""Characters that mean something in an address, a template or a query of one of the servers."""


@dataclass(frozen=True)
class Workspace:
    """Paths below ``root``. A folder is created by the code that writes into it."""

    root: Path

    def __post_init__(self) -> None:
        """Refuse a path that the servers would misread.

        Raises:
            ParameterError: It has a character such as ``?``, a quote or a line break.
        """
        path = str(self.root)
        found = next((c for c in path if c in _NOT_IN_PATHS or invalid_on_a_line(c)), None)
        if found is not None:
            raise ParameterError(
                f"the workspace's path has the character {shown(found)}, which servers misread",
                where=shown(path),
                hint=f"Rename the folder, or set {HOME_VARIABLE} to another one",
            )

    @property
    def records(self) -> Path:
        """Immutable records, see ``workbench.records.store``."""
        return self.root / "records"

    @property
    def index(self) -> Path:
        """Indexes that can be rebuilt: dataset names, step keys."""
        return self.root / "index"

    @property
    def served(self) -> Path:
        """The only folder that Label Studio may serve, so that it cannot reach secrets."""
        return self.root / "media"

    @property
    def media(self) -> Path:
        """Frame images, named by digest: ``frames/ab/abcdef….jpg``."""
        return self.served / "frames"

    @property
    def services(self) -> Path:
        """Data, logs and state of the servers started here."""
        return self.root / "services"

    @property
    def secrets(self) -> Path:
        """Generated passwords, tokens and the signing key; file mode 0600."""
        return self.root / "secrets"

    def release_folder(self, model: str, bundle: str) -> Path:
        """Folder of the signed copy of a bundle.

        Args:
            model: Name of the released model.
            bundle: Digest of the bundle record.
        """
        return self.releases / model / bundle[:12]

    @property
    def releases(self) -> Path:
        """Signed copies of bundles, see `release_folder`."""
        return self.root / "releases"

    @property
    def runs(self) -> Path:
        """One folder per pipeline run: specs, logs, executed notebooks."""
        return self.root / "runs"

    @property
    def scratch(self) -> Path:
        """Outputs of notebooks that are run by hand; safe to delete."""
        return self.root / "scratch"


def find_workspace(start: Path | None = None) -> Workspace:
    """The workspace of a folder; it need not exist yet.

    Args:
        start: The folder; the current one by default. Ignored if ``WORKBENCH_HOME`` is set.

    Returns:
        The nearest workspace in or above the folder, else the one that would be created in it.
    """
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Workspace(Path(named).expanduser().resolve())
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / WORKSPACE_FOLDER).is_dir():
            return Workspace(folder / WORKSPACE_FOLDER)
    return Workspace(here / WORKSPACE_FOLDER)


def project_root(notebook: Path) -> Path:
    """The folder above the notebook's ``notebooks`` folder, else the folder of the notebook."""
    path = notebook.resolve()
    for folder in path.parents:
        if folder.name == "notebooks":
            return folder.parent
    return path.parent


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a file to read that somebody else may have put there.

    Reading a pipe never ends, and neither does ``/dev/zero``.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            yield stream
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace the content of ``path`` atomically; missing parent folders are created.

    Args:
        mode: Permissions of the file.
    """
    with atomic_replace(path, mode=mode) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def atomic_replace(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed to ``path``.

    Readers never see a partial file, and an exception leaves ``path`` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(workspace: Workspace, name: str, doing: str, *, timeout_s: float) -> Iterator[None]:
    """Let one process of the workspace at a time into the block.

    Args:
        workspace: Holds the lock.
        name: Of the lock.
        doing: What another process does meanwhile, for the message: ``writing the audit log``.

    Raises:
        WorkbenchError: Another process still holds the lock after ``timeout_s`` seconds.
    """
    from filelock import FileLock, Timeout

    path = workspace.root / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=timeout_s):
            yield
    except Timeout as error:
        raise WorkbenchError(f"another process is {doing}", where=path, hint="Try again") from error
