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

from workbench.core import credentials
from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace
from workbench.services import label_studio_database, manager, probes, servers

_CHECKOUT = Path(__file__).resolve().parents[2]
_DISK_GIB = 5
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class HealthCheck:
    """One question about the machine. ``mend`` is what to do when ``ok`` is false."""

    name: str
    ok: bool
    detail: str
    required: bool = True
    mend: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_checks(workspace: Workspace) -> list[HealthCheck]:
    """Ask everything. Takes a second or two; starts and changes nothing."""
    questions: tuple[Callable[[Workspace], HealthCheck], ...] = (
        _check_python,
        _check_packages,
        _check_mongod,
        _check_label_studio,
        _check_label_studio_tables,
        _check_loopback,
        _check_disk,
        _check_workspace,
        _check_secrets,
        _check_servers,
        _check_browser,
        _check_node,
    )
    return [question(workspace) for question in questions]


def is_healthy(checks: list[HealthCheck]) -> bool:
    """Whether nothing that is required is missing."""
    return all(check.ok for check in checks if check.required)


def _check_python(_: Workspace) -> HealthCheck:
    found = ".".join(map(str, sys.version_info[:3]))
    mend = "Install Python 3.11, then `make clean setup`"
    return HealthCheck("Python 3.11", sys.version_info[:2] == (3, 11), found, mend=mend)


def _check_packages(_: Workspace) -> HealthCheck:
    name, lock = "packages as locked", _CHECKOUT / "requirements.lock"
    if not lock.is_file():
        return HealthCheck(name, True, "no lock beside the package: nothing to compare with")
    wrong = mismatched_packages(lock)
    detail = f"{len(wrong)} differ: {'; '.join(wrong[:3])}" if wrong else "all in step"
    mend = "Run `make setup`, after removing .venv/.ready-* where something was installed by hand"
    return HealthCheck(name, not wrong, detail, mend=mend)


def mismatched_packages(lock: Path) -> list[str]:
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


def _check_mongod(_: Workspace) -> HealthCheck:
    try:
        return HealthCheck("mongod runs", True, servers.mongod_version())
    except ServiceError as error:
        required = not manager.is_external("mongod")
        return HealthCheck("mongod runs", False, error.what, required, error.hint or "")


def _check_label_studio(_: Workspace) -> HealthCheck:
    try:
        folder = servers.label_studio_environment()
    except ServiceError as error:
        required = not manager.is_external("label-studio")
        return HealthCheck("Label Studio installed", False, error.what, required, error.hint or "")
    return HealthCheck(
        "Label Studio installed", True, label_studio_database.installed_version(folder)
    )


def _check_label_studio_tables(_: Workspace) -> HealthCheck:
    name, mend = "Label Studio's tables prepared", "Run `make setup`"
    try:
        ready = label_studio_database.template_path(servers.label_studio_environment()).is_file()
    except ServiceError:
        ready = False
    detail = "yes" if ready else "no: the first start in a workspace takes a minute longer"
    return HealthCheck(name, ready, detail, required=False, mend=mend)


def _check_loopback(_: Workspace) -> HealthCheck:
    try:
        return HealthCheck(
            "ports on loopback", True, f"free ones there are, such as {probes.choose_port()}"
        )
    except OSError as error:
        mend = "Allow programs to listen on 127.0.0.1"
        return HealthCheck("ports on loopback", False, str(error), mend=mend)


def _check_disk(workspace: Workspace) -> HealthCheck:
    free = shutil.disk_usage(_existing_folder(workspace.root)).free / 2**30
    detail = f"{free:.0f} GiB free where {workspace.root} lies"
    mend = "Free some space, or point WORKBENCH_HOME at a larger disk"
    return HealthCheck(f"{_DISK_GIB} GiB of disk", free >= _DISK_GIB, detail, mend=mend)


def _check_workspace(workspace: Workspace) -> HealthCheck:
    folder = _existing_folder(workspace.root)
    probe = folder / f".writable-{probes.choose_port()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        mend = "Correct its permissions, or point WORKBENCH_HOME elsewhere"
        return HealthCheck("workspace writable", False, f"{folder}: {error.strerror}", mend=mend)
    return HealthCheck("workspace writable", True, str(workspace.root))


def _check_secrets(workspace: Workspace) -> HealthCheck:
    exposed = credentials.exposed_secrets(workspace)
    name, mend = "secrets for their owner only", f"chmod -R go= {workspace.secrets}"
    if not exposed:
        return HealthCheck(name, True, "yes")
    return HealthCheck(
        name, False, f"others can read {', '.join(map(str, exposed[:3]))}", mend=mend
    )


def _check_servers(workspace: Workspace) -> HealthCheck:
    states = manager.status(workspace).values()
    broken = [f"{state.name}: {state.detail}" for state in states if state.state == "broken"]
    detail = "; ".join(broken) or ", ".join(f"{s.name} {s.state}" for s in states)
    mend = "Run `workbench up`; logs lie in .workbench/services"
    return HealthCheck("servers", not broken, detail, mend=mend)


def _check_browser(_: Workspace) -> HealthCheck:
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    mend = "Install chromium (Debian: apt-get install chromium); only browser tests need it"
    return HealthCheck(
        "Chromium", found is not None, found or "not found", required=False, mend=mend
    )


def _check_node(_: Workspace) -> HealthCheck:
    program = shutil.which("node")
    mend = "Install Node.js; only browser tests need it"
    if program is None:
        return HealthCheck("Node.js", False, "not found", required=False, mend=mend)
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    ok, detail = said.returncode == 0, said.stdout.strip() or said.stderr.strip()
    return HealthCheck("Node.js", ok, detail, required=False, mend=mend)


def _existing_folder(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())
