"""Checks of the machine, with problems made on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.core import credentials
from workbench.core.workspace import Workspace
from workbench.services import doctor


def by_name(workspace: Workspace) -> dict[str, doctor.HealthCheck]:
    return {check.name: check for check in doctor.run_checks(workspace)}


def test_every_failed_check_has_a_fix(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("WORKBENCH_LABEL_STUDIO_ENVIRONMENT", str(tmp_path))
    checks = by_name(workspace)
    assert not checks["Label Studio installed"].ok
    assert not checks["Chromium"].ok
    assert all(check.fix for check in checks.values() if not check.ok)
    assert not doctor.is_healthy(list(checks.values()))
    assert not checks["Chromium"].required


def test_a_local_label_studio_is_optional_beside_an_external_one(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_LABEL_STUDIO_ENVIRONMENT", str(tmp_path))
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:9")
    check = by_name(workspace)["Label Studio installed"]
    assert (check.ok, check.required) == (False, False)


def test_exposed_secrets_are_found(workspace: Workspace) -> None:
    credentials.ensure_secret(workspace, "token")
    assert by_name(workspace)["secrets for their owner only"].ok
    credentials.secret_path(workspace, "token").chmod(0o604)
    check = by_name(workspace)["secrets for their owner only"]
    assert not check.ok
    assert "chmod" in check.fix


def test_mismatched_packages_are_listed(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "# made by hand\n"
        "click==0.0.1\n    # via somebody\n"
        "no-such-package==1.0\n"
        "no-such-package-either==1.0 ; sys_platform == 'win32'\n"
    )
    wrong = doctor.mismatched_packages(lock)
    assert len(wrong) == 2
    assert wrong[0].startswith("click==0.0.1 is ")
    assert wrong[1] == "no-such-package==1.0 is missing"


def test_the_exit_status_follows_the_checks(workspace: Workspace) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 1)
    assert {"name", "ok", "detail", "required", "mend"} == set(found["checks"][0])
    assert not workspace.root.exists()
