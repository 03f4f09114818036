"""What this machine lacks, in plain words, each with the way to mend it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workbench.errors import ServiceError
from workbench.services import credentials, external, label_studio, mongod, ports, prepared, roster
from workbench.workspace import Workspace

_CHECKOUT = Path(__file__).resolve().parents[2]
_DISK_GIB = 5
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Check:
    """One question about the machine. ``mend`` is what to do when ``ok`` is false."""

    name: str
    ok: bool
    detail: str
    required: bool = True
    mend: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(place: Workspace) -> list[Check]:
    """Ask everything. Takes a second or two; starts and changes nothing."""
    questions: tuple[Callable[[Workspace], Check], ...] = (
        _python,
        _packages,
        _mongod,
        _label_studio,
        _prepared_tables,
        _loopback,
        _disk,
        _workspace,
        _secrets,
        _servers,
        _browser,
        _node,
    )
    return [question(place) for question in questions]


def healthy(checks: list[Check]) -> bool:
    """Whether nothing that is required is missing."""
    return all(check.ok for check in checks if check.required)


def _python(_: Workspace) -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    mend = "Install Python 3.11, then `make clean setup`"
    return Check("Python 3.11", sys.version_info[:2] == (3, 11), found, mend=mend)


def _packages(_: Workspace) -> Check:
    name, lock = "packages as locked", _CHECKOUT / "requirements.lock"
    if not lock.is_file():
        return Check(name, True, "no lock beside the package: nothing to compare with")
    wrong = out_of_step(lock)
    detail = f"{len(wrong)} differ: {'; '.join(wrong[:3])}" if wrong else "all in step"
    mend = "Run `make setup`, after removing .venv/.ready-* where something was installed by hand"
    return Check(name, not wrong, detail, mend=mend)


def out_of_step(lock: Path) -> list[str]:
    """Locked packages that are missing here or have another version."""
    # Not sys.path: packages that carry copies of others put those on it while they are imported.
    folders = sorted({sysconfig.get_path(name) for name in ("purelib", "platlib")})
    installed = {
        canonicalize_name(found.metadata["Name"]): found.version
        for found in metadata.distributions(path=folders)
        if found.metadata["Name"]
    }
    wrong = []
    for line in lock.read_text().splitlines():
        if not line or line.startswith(("#", " ")):
            continue
        pin = Requirement(line)
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        version = installed.get(canonicalize_name(pin.name))
        # A build tag such as +cpu is the same release.
        if version is None or not pin.specifier.contains(version.split("+")[0], prereleases=True):
            wrong.append(f"{line.split(';')[0].strip()} is {version or 'missing'}")
    return wrong


def _mongod(_: Workspace) -> Check:
    try:
        return Check("mongod runs", True, mongod.version())
    except ServiceError as error:
        required = not external.named("mongod")
        return Check("mongod runs", False, error.what, required, error.hint or "")


def _label_studio(_: Workspace) -> Check:
    try:
        folder = label_studio.environment_folder()
    except ServiceError as error:
        required = not external.named("label-studio")
        return Check("Label Studio installed", False, error.what, required, error.hint or "")
    return Check("Label Studio installed", True, prepared.version(folder))


def _prepared_tables(_: Workspace) -> Check:
    name, mend = "Label Studio's tables prepared", "Run `make setup`"
    try:
        ready = prepared.template_of(label_studio.environment_folder()).is_file()
    except ServiceError:
        ready = False
    detail = "yes" if ready else "no: the first start in a workspace takes a minute longer"
    return Check(name, ready, detail, required=False, mend=mend)


def _loopback(_: Workspace) -> Check:
    try:
        return Check("ports on loopback", True, f"free ones there are, such as {ports.choose()}")
    except OSError as error:
        mend = "Allow programs to listen on 127.0.0.1"
        return Check("ports on loopback", False, str(error), mend=mend)


def _disk(place: Workspace) -> Check:
    free = shutil.disk_usage(_existing(place.root)).free / 2**30
    detail = f"{free:.0f} GiB free where {place.root} lies"
    mend = "Free some space, or point WORKBENCH_HOME at a larger disk"
    return Check(f"{_DISK_GIB} GiB of disk", free >= _DISK_GIB, detail, mend=mend)


def _workspace(place: Workspace) -> Check:
    folder = _existing(place.root)
    probe = folder / f".writable-{ports.choose()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        mend = "Correct its permissions, or point WORKBENCH_HOME elsewhere"
        return Check("workspace writable", False, f"{folder}: {error.strerror}", mend=mend)
    return Check("workspace writable", True, str(place.root))


def _secrets(place: Workspace) -> Check:
    exposed = credentials.exposed(place)
    name, mend = "secrets for their owner only", f"chmod -R go= {place.secrets}"
    if not exposed:
        return Check(name, True, "yes")
    return Check(name, False, f"others can read {', '.join(map(str, exposed[:3]))}", mend=mend)


def _servers(place: Workspace) -> Check:
    states = roster.status(place).values()
    broken = [f"{state.name}: {state.detail}" for state in states if state.state == "broken"]
    detail = "; ".join(broken) or ", ".join(f"{s.name} {s.state}" for s in states)
    mend = "Run `workbench up`; logs lie in .workbench/services"
    return Check("servers", not broken, detail, mend=mend)


def _browser(_: Workspace) -> Check:
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    mend = "Install chromium (Debian: apt-get install chromium); only browser tests need it"
    return Check("Chromium", found is not None, found or "not found", required=False, mend=mend)


def _node(_: Workspace) -> Check:
    program = shutil.which("node")
    mend = "Install Node.js; only browser tests need it"
    if program is None:
        return Check("Node.js", False, "not found", required=False, mend=mend)
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    ok, detail = said.returncode == 0, said.stdout.strip() or said.stderr.strip()
    return Check("Node.js", ok, detail, required=False, mend=mend)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())
