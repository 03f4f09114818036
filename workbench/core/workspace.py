"""Where a workbench keeps what it makes: one folder, ``.workbench``, found from anywhere below it.

``WORKBENCH_HOME`` names the folder outright; otherwise the nearest ``.workbench`` above the current
folder is taken, and failing that ``./.workbench``. Two checkouts therefore never share state.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WORKSPACE_FOLDER = ".workbench"
HOME_VARIABLE = "WORKBENCH_HOME"


@dataclass(frozen=True)
class Workspace:
    """The layout below ``root``. Folders are made by whoever writes into them."""

    root: Path

    @property
    def records(self) -> Path:
        """Immutable records, see ``workbench.records.store``."""
        return self.root / "records"

    @property
    def index(self) -> Path:
        """Rebuildable look-ups: dataset names and step keys."""
        return self.root / "index"

    @property
    def served(self) -> Path:
        """All that Label Studio may show, and nothing else, so that secrets stay out of reach."""
        return self.root / "media"

    @property
    def media(self) -> Path:
        """Frame images by content: ``frames/ab/abcdef….jpg``."""
        return self.served / "frames"

    @property
    def services(self) -> Path:
        """Data, logs and state of the servers started here."""
        return self.root / "services"

    @property
    def secrets(self) -> Path:
        """Generated passwords, tokens and the signing key; files are 0600."""
        return self.root / "secrets"

    def release_folder(self, model: str, bundle: str) -> Path:
        """Where the signed copy of the bundle with this digest lies."""
        return self.root / "releases" / model / bundle[:12]

    @property
    def runs(self) -> Path:
        """One folder a pipeline run: specs, logs, executed notebooks."""
        return self.root / "runs"

    @property
    def scratch(self) -> Path:
        """Throw-away output of notebooks run by hand."""
        return self.root / "scratch"


def find_workspace(start: Path | None = None) -> Workspace:
    """The workspace of ``start`` (default: the current folder); it need not exist yet."""
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Workspace(Path(named).expanduser().resolve())
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / WORKSPACE_FOLDER).is_dir():
            return Workspace(folder / WORKSPACE_FOLDER)
    return Workspace(here / WORKSPACE_FOLDER)


def project_root(notebook: Path) -> Path:
    """The project a notebook belongs to: above its ``notebooks`` folder, else where it lies."""
    path = notebook.resolve()
    for folder in path.parents:
        if folder.name == "notebooks":
            return folder.parent
    return path.parent


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` in one step, so that a reader or a crash never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_replace(path, mode=mode) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def atomic_replace(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it is synced and renamed into place on success."""
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
