"""The template database of Label Studio: all tables, no users. Every workspace copies it.

`make setup` runs this file with Label Studio's own Python, so it needs the standard library only:

    .venv-label-studio/bin/python workbench/services/label_studio_database.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ()

DATABASE = "label_studio.sqlite3"


def installed_version(environment: Path) -> str:
    """The version of Label Studio in a Python environment, read from a folder name."""
    folders = environment.glob("lib/python*/site-packages/label_studio-*.dist-info")
    versions = [path.name.removesuffix(".dist-info").split("-")[1] for path in folders]
    return versions[0] if versions else "unknown"


def template_path(environment: Path) -> Path:
    """The template database for the version in ``environment``, whether or not it exists."""
    return environment / "prepared" / installed_version(environment) / DATABASE


def private_settings(data: Path) -> dict[str, str]:
    """Environment variables: Label Studio's data folder, and no telemetry."""
    return {
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "COLLECT_ANALYTICS": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LATEST_VERSION_CHECK": "false",
    }


def create_template(environment: Path) -> Path:
    """Create the template database unless it exists. Takes about half a minute.

    Raises:
        SystemExit: Label Studio could not create its tables.
    """
    template = template_path(environment)
    if template.is_file():
        return template
    template.parent.mkdir(parents=True, exist_ok=True)
    package = next(environment.glob("lib/python*/site-packages/label_studio/manage.py")).parent
    with tempfile.TemporaryDirectory(dir=template.parent) as folder:
        settings = {"DJANGO_SETTINGS_MODULE": "core.settings.label_studio", "DJANGO_DB": "sqlite"}
        done = subprocess.run(
            [str(environment / "bin" / "python"), "manage.py", "migrate", "-v", "0", "--no-color"],
            cwd=package,
            env={"PATH": os.environ.get("PATH", ""), **settings, **private_settings(Path(folder))},
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            raise SystemExit(f"Label Studio could not create its tables:\n{done.stdout[-4000:]}")
        shutil.move(Path(folder) / DATABASE, template)
    return template


if __name__ == "__main__":
    print(f"prepared {create_template(Path(sys.prefix))}")
