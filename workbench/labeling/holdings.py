"""What a Label Studio server holds of a batch. Everything here only reads, but for `snapshot`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from workbench.errors import ServiceError
from workbench.labeling import streams
from workbench.labeling.transport import BULK_TIMEOUT_S, Transport

Task = dict[str, Any]
"""A task as Label Studio imports and exports it."""

_SNAPSHOT_WAIT_S = 0.05
_PAGE = 1000
_IDS_A_CALL = 100
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"  # the only form that the server's filters read


@dataclass(frozen=True)
class Totals:
    """What a project holds of one batch, skips not counted, at ``at``, a time of the server's."""

    tasks: int
    annotations: int
    at: str


class Holdings:
    """The reading half of a server as one of its users."""

    def __init__(self, wire: Transport) -> None:
        self._wire = wire

    def tasks(self, project: int, batch: str) -> dict[str, list[int]]:
        """Ids of the tasks of each frame of a batch: one, unless something went wrong."""

        def listed() -> dict[str, list[int]]:
            found: dict[str, list[int]] = {}
            for task in self._pages(project, batch, "id,data"):
                found.setdefault(task["data"]["frame"], []).append(task["id"])
            return {frame: sorted(ids) for frame, ids in found.items()}

        return self._wire.read(listed)

    def frames(self, project: int, batch: str) -> dict[str, int]:
        """The task of each frame of a batch that a project holds: the oldest."""
        return {frame: ids[0] for frame, ids in self.tasks(project, batch).items()}

    def totals(self, project: int, batch: str) -> Totals:
        """How much a project holds of a batch, in one short call."""

        def asked() -> Totals:
            query = {"project": project, "include": "id", "page_size": 1, "query": _of(batch)}
            answer = self._wire.http("GET", "/api/tasks", params=query)
            body = answer.json()
            at = parsedate_to_datetime(answer.headers["date"]).isoformat()
            return Totals(body["total"], body["total_annotations"], at)

        return self._wire.read(asked)

    def changed(self, project: int, batch: str, since: datetime) -> dict[int, str]:
        """Tasks of a batch that changed after a time of the server's: id to when."""
        after = since.astimezone(UTC).strftime(_TIME)

        def listed() -> dict[int, str]:
            pages = self._pages(project, batch, "id,updated_at", since=after)
            return {task["id"]: task["updated_at"] for task in pages}

        return self._wire.read(listed)

    def export(self, project: int) -> list[Task]:
        """Every task with all its annotations and predictions, unanswered ones included."""
        path = f"/api/projects/{project}/export"
        query = {"exportType": "JSON", "download_all_tasks": "true"}
        answer = self._wire.read(
            lambda: self._wire.http("GET", path, params=query, timeout=BULK_TIMEOUT_S)
        )
        tasks: list[Task] = answer.json()
        return tasks

    def export_tasks(self, project: int, ids: Sequence[int]) -> Iterator[Task]:
        """These tasks with all their annotations, predictions and drafts."""
        for start in range(0, len(ids), _IDS_A_CALL):
            yield from self._export_some(project, ids[start : start + _IDS_A_CALL])

    def _export_some(self, project: int, ids: Sequence[int]) -> list[Task]:
        query = [("exportType", "JSON"), ("download_all_tasks", "true")]
        query += [("ids[]", str(task)) for task in ids]
        path = f"/api/projects/{project}/export"
        found: list[Task] = self._wire.read(
            lambda: self._wire.http("GET", path, params=query).json()
        )
        return found

    def snapshot(self, project: int, to: Path) -> Iterator[Task]:
        """Every task as at one moment; predictions and drafts as ids. Never whole in memory.

        Args:
            to: File that the export is kept in while it is read.
        """
        exports = f"/api/projects/{project}/exports/"
        only = {"only_id": True}
        asked = {
            "title": "workbench",
            "serialization_options": {
                **{"predictions": only, "drafts": only},
                "annotations__completed_by": only,
            },
        }
        made = self._wire.write(
            lambda: self._wire.http("POST", exports, json=asked, timeout=BULK_TIMEOUT_S).json()
        )
        one = f"{exports}{made['id']}"
        try:
            state = made["status"]
            while state not in ("completed", "failed"):
                time.sleep(_SNAPSHOT_WAIT_S)
                state = self._wire.read(lambda: self._wire.http("GET", one).json()["status"])
            if state == "failed":
                raise ServiceError(
                    "Label Studio could not export this project", where=self._wire.url
                )
            query = {"exportType": "JSON"}
            self._wire.read(lambda: self._wire.download(f"{one}/download", query, to))
        finally:
            self._wire.write(lambda: self._wire.http("DELETE", one))
        return streams.objects(to)

    def _pages(
        self, project: int, batch: str, include: str, *, since: str | None = None
    ) -> Iterator[Task]:
        query = {"project": project, "include": include, "page_size": _PAGE}
        query["query"] = _of(batch, since)
        page, seen = 1, 0
        while True:
            body = self._wire.http("GET", "/api/tasks", params={**query, "page": page}).json()
            yield from body["tasks"]
            seen += len(body["tasks"])
            if not body["tasks"] or seen >= body["total"]:
                return
            page += 1


def _of(batch: str, since: str | None = None) -> str:
    """Label Studio's filter for tasks of a batch, and those changed since then."""
    items = [("filter:tasks:data.batch", "equal", "String", batch)]
    if since:
        items.append(("filter:tasks:updated_at", "greater", "Datetime", since))
    keys = ("filter", "operator", "type", "value")
    chosen = [dict(zip(keys, item, strict=True)) for item in items]
    return json.dumps({"filters": {"conjunction": "and", "items": chosen}})
