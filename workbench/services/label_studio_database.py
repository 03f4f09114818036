"""An empty, already migrated Label Studio database, made once at set-up and copied by workspaces.

Set-up runs this file with Label Studio's own Python, so it uses the standard library only:

    .venv-label-studio/bin/python workbench/services/label_studio_database.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DATABASE = "label_studio.sqlite3"


def installed_version(environment: Path) -> str:
    """The installed version, read from the name of its metadata, without starting Python."""
    found = environment.glob("lib/python*/site-packages/label_studio-*.dist-info")
    names = [path.name.removesuffix(".dist-info").split("-")[1] for path in found]
    return names[0] if names else "unknown"


def template_path(environment: Path) -> Path:
    """Where the database for the version in ``environment`` lies, whether or not it is made."""
    return environment / "prepared" / installed_version(environment) / DATABASE


def private_settings(data: Path) -> dict[str, str]:
    """Variables: where Label Studio keeps its data, and that it tells nobody about us."""
    return {
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "COLLECT_ANALYTICS": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LATEST_VERSION_CHECK": "false",
    }


def create_template(environment: Path) -> Path:
    """Create all tables and no user; what exists already is kept. Takes about half a minute.

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
