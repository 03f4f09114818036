"""MLflow's tracking server on SQLite, artifacts served from its own folder."""

from __future__ import annotations

import sys

from workbench.services import ports, wire
from workbench.services.embedded import Say, Server
from workbench.services.state import folder_of
from workbench.workspace import Workspace


class MLflow(Server):
    name = "mlflow"
    patience = 180.0  # imports and the first creation of its tables

    def prepare(self, place: Workspace, say: Say) -> None:
        (folder_of(place, self.name) / "artifacts").mkdir(parents=True, exist_ok=True)

    def command(self, place: Workspace, port: int) -> list[str]:
        folder = folder_of(place, self.name)
        # One process creates the tables, before any worker starts: several at once on an empty
        # SQLite file fail. Everybody else goes through HTTP.
        return [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", ports.LOOPBACK, "--port", str(port)),
            *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
            *("--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"),
        ]

    def variables(self, place: Workspace, port: int) -> dict[str, str]:
        return {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Its background jobs (a queue of its own and more processes) are not used here.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    def url(self, port: int) -> str:
        return f"http://{ports.LOOPBACK}:{port}"

    def answers(self, port: int) -> bool:
        return wire.http_ok(f"{self.url(port)}/health")
