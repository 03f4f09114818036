"""Checks of this machine: what is missing, and how to fix it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workbench.core import credentials
from workbench.core.errors import ServiceError
from workbench.core.types import Json
from workbench.core.workspace import Workspace
from workbench.services import label_studio_database, manager, probes, servers

__all__ = ()

_CHECKOUT = Path(__file__).resolve().parents[2]
_MIN_DISK_GIB = 5
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class HealthCheck:
    """Result of one check. ``fix`` says what to do if ``ok`` is false."""

    name: str
    ok: bool
    detail: str
    required: bool = True
    fix: str = ""

    def to_json(self) -> Json:
        """The result as ``--json`` prints it."""
        return {
            "name": self.name,
            "ok": self.ok,
            "detail": self.detail,
            "required": self.required,
            "mend": self.fix,
        }


def run_checks(workspace: Workspace) -> list[HealthCheck]:
    """Run all checks. Takes a second or two; starts and changes nothing."""
    checks: tuple[Callable[[Workspace], HealthCheck], ...] = (
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
    return [check(workspace) for check in checks]


def is_healthy(checks: list[HealthCheck]) -> bool:
    """Whether all required checks passed."""
    return all(check.ok for check in checks if check.required)


def mismatched_packages(lock: Path) -> list[str]:
    """Locked packages that are not installed, or in another version.

    Args:
        lock: A requirements file with exact versions.
    """
    # Not sys.path: some packages add folders with copies of others to it when imported.
    folders = sorted({sysconfig.get_path(name) for name in ("purelib", "platlib")})
    installed = {
        canonicalize_name(distribution.metadata["Name"]): distribution.version
        for distribution in metadata.distributions(path=folders)
        if distribution.metadata["Name"]
    }
    mismatches = []
    for line in lock.read_text().splitlines():
        if not line or line.startswith(("#", " ")):
            continue
        pin = Requirement(line)
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        version = installed.get(canonicalize_name(pin.name))
        # A local version label such as +cpu is the same release.
        if version is None or not pin.specifier.contains(version.split("+")[0], prereleases=True):
            mismatches.append(f"{line.split(';')[0].strip()} is {version or 'missing'}")
    return mismatches


def _check_python(_: Workspace) -> HealthCheck:
    version = ".".join(map(str, sys.version_info[:3]))
    fix = "Install Python 3.11, then run `make clean setup`"
    return HealthCheck("Python 3.11", sys.version_info[:2] == (3, 11), version, fix=fix)


def _check_packages(_: Workspace) -> HealthCheck:
    name, lock = "packages as locked", _CHECKOUT / "requirements.lock"
    if not lock.is_file():
        return HealthCheck(name, True, "no requirements.lock beside the package")
    wrong = mismatched_packages(lock)
    detail = f"{len(wrong)} differ: {'; '.join(wrong[:3])}" if wrong else "all match"
    fix = "Run `make setup`; if packages were installed by hand, remove .venv/.ready-* before"
    return HealthCheck(name, not wrong, detail, fix=fix)


def _check_mongod(_: Workspace) -> HealthCheck:
    try:
        return HealthCheck("mongod runs", True, servers.mongod_version())
    except ServiceError as error:
        required = not manager.is_external("mongod")
        return HealthCheck("mongod runs", False, error.what, required, error.hint or "")


def _check_label_studio(_: Workspace) -> HealthCheck:
    name = "Label Studio installed"
    try:
        folder = servers.label_studio_environment()
    except ServiceError as error:
        required = not manager.is_external("label-studio")
        return HealthCheck(name, False, error.what, required, error.hint or "")
    return HealthCheck(name, True, label_studio_database.installed_version(folder))


def _check_label_studio_tables(_: Workspace) -> HealthCheck:
    try:
        template = label_studio_database.template_path(servers.label_studio_environment())
        ready = template.is_file()
    except ServiceError:
        ready = False
    detail = "yes" if ready else "no: the first start in a workspace takes a minute longer"
    name = "Label Studio's tables prepared"
    return HealthCheck(name, ready, detail, required=False, fix="Run `make setup`")


def _check_loopback(_: Workspace) -> HealthCheck:
    name = "ports on loopback"
    try:
        return HealthCheck(name, True, f"port {probes.choose_port()} is free")
    except OSError as error:
        return HealthCheck(name, False, str(error), fix="Allow programs to listen on 127.0.0.1")


def _check_disk(workspace: Workspace) -> HealthCheck:
    free = shutil.disk_usage(_existing_folder(workspace.root)).free / 2**30
    detail = f"{free:.0f} GiB free at {workspace.root}"
    fix = "Free some space, or set WORKBENCH_HOME to a folder on a larger disk"
    return HealthCheck(f"{_MIN_DISK_GIB} GiB of disk", free >= _MIN_DISK_GIB, detail, fix=fix)


def _check_workspace(workspace: Workspace) -> HealthCheck:
    folder = _existing_folder(workspace.root)
    probe = folder / f".writable-{probes.choose_port()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        fix = "Correct its permissions, or set WORKBENCH_HOME to another folder"
        return HealthCheck("workspace writable", False, f"{folder}: {error.strerror}", fix=fix)
    return HealthCheck("workspace writable", True, str(workspace.root))


def _check_secrets(workspace: Workspace) -> HealthCheck:
    exposed = credentials.exposed_secrets(workspace)
    name, fix = "secrets for their owner only", f"chmod -R go= {workspace.secrets}"
    if not exposed:
        return HealthCheck(name, True, "yes")
    return HealthCheck(name, False, f"others can read {', '.join(map(str, exposed[:3]))}", fix=fix)


def _check_servers(workspace: Workspace) -> HealthCheck:
    states = manager.status(workspace).values()
    broken = [f"{state.name}: {state.detail}" for state in states if state.state == "broken"]
    detail = "; ".join(broken) or ", ".join(f"{s.name} {s.state}" for s in states)
    fix = "Run `workbench up`; logs are in .workbench/services"
    return HealthCheck("servers", not broken, detail, fix=fix)


def _check_browser(_: Workspace) -> HealthCheck:
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    fix = "Install chromium (Debian: apt-get install chromium); only browser tests need it"
    return HealthCheck("Chromium", path is not None, path or "not found", required=False, fix=fix)


def _check_node(_: Workspace) -> HealthCheck:
    program = shutil.which("node")
    fix = "Install Node.js; only browser tests need it"
    if program is None:
        return HealthCheck("Node.js", False, "not found", required=False, fix=fix)
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    detail = done.stdout.strip() or done.stderr.strip()
    return HealthCheck("Node.js", done.returncode == 0, detail, required=False, fix=fix)


def _existing_folder(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())
