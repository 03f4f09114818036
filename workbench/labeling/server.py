"""A Label Studio server in the words of the workbench: projects, tasks, annotations, labelers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from workbench import workspace
from workbench.errors import ServiceError
from workbench.labeling import accounts, attempts, streams
from workbench.labeling.regions import Region
from workbench.labeling.transport import BULK_TIMEOUT_S, TIMEOUT_S, Transport

Task = dict[str, Any]
"""A task as Label Studio imports and exports it."""

TITLE_LENGTH = 50

_SNAPSHOT_WAIT_S = 0.05
_PAGE = 1000
_IDS_A_CALL = 100
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"  # the only form that the server's filters read

# The SDK would send a failed write again by itself, and the task would be there twice.
_ONCE: dict[str, Any] = {"max_retries": 0}
_ONCE_SLOW: dict[str, Any] = {**_ONCE, "timeout_in_seconds": int(BULK_TIMEOUT_S)}


@dataclass(frozen=True)
class Totals:
    """What a project holds of one batch, skips not counted, at ``at``, a time of the server's."""

    tasks: int
    annotations: int
    at: str


@dataclass(frozen=True)
class Project:
    """``url`` opens it in a browser; ``tasks`` counts what it holds."""

    id: int
    title: str
    url: str
    config: str
    tasks: int


class LabelStudio:
    """One server, as one of its users. Made by `connect`."""

    def __init__(self, url: str, token: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._wire = Transport(url, token, timeout_s)
        self._sdk = self._wire.sdk
        self.url = self._wire.url

    def whoami(self) -> str:
        """E-mail address of the user whose token this is; proves that server and token work."""
        return str(self._wire.read(lambda: self._sdk.users.whoami(request_options=_ONCE).email))

    def users(self) -> dict[int, str]:
        """E-mail address of every user by id."""
        users = self._wire.read(lambda: self._sdk.users.list(request_options=_ONCE))
        return {user.id: user.email for user in users}

    def project(self, identifier: int) -> Project | None:
        """A project by id; None when it is gone."""
        try:
            return self._describe(self._get(identifier))
        except ServiceError as error:
            if attempts.status_of(error.__cause__) == HTTPStatus.NOT_FOUND:
                return None
            raise

    def find_project(self, title: str) -> Project | None:
        """The oldest project with exactly this title."""
        found = self._wire.read(
            lambda: list(self._sdk.projects.list(title=title, request_options=_ONCE))
        )
        exact = sorted(project.id for project in found if project.title == title)
        return self.project(exact[0]) if exact else None

    def create_project(
        self, title: str, config: str, *, description: str, instruction: str
    ) -> Project:
        created = self._wire.write(
            lambda: self._sdk.projects.create(
                title=title,
                label_config=config,
                description=description,
                expert_instruction=instruction,
                show_instruction=True,
                show_skip_button=True,
                enable_empty_annotation=True,
                # A labeler starts from the model's boxes and mends them.
                show_collab_predictions=True,
                request_options=_ONCE,
            )
        )
        return self._describe(self._get(created.id))

    def update_config(self, project: int, config: str) -> None:
        self._wire.write(
            lambda: self._sdk.projects.update(project, label_config=config, request_options=_ONCE)
        )

    def delete_project(self, identifier: int) -> None:
        self._wire.write(lambda: self._sdk.projects.delete(identifier, request_options=_ONCE))

    def attach_media(self, project: int, folder: Path) -> None:
        """Let a project show images that lie in ``folder``; nothing is copied or uploaded."""
        storage = self._sdk.import_storage.local
        attached = self._wire.read(lambda: storage.list(project=project, request_options=_ONCE))
        if any(Path(entry.path or "") == folder for entry in attached):
            return
        try:
            self._wire.write(
                lambda: storage.create(
                    project=project,
                    path=str(folder),
                    title="frames",
                    use_blob_urls=True,
                    request_options=_ONCE,
                )
            )
        except ServiceError as error:
            raise ServiceError(
                f"Label Studio cannot show images from {folder}: {error.what}",
                where=self.url,
                hint="The server must see that folder, as a subfolder of its"
                " LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT",
            ) from error

    def attach_bucket(self, project: int, storage: str, bucket: str, prefix: str) -> None:
        """Let a project show images in a bucket, whose addresses Label Studio signs late.

        Args:
            storage: ``s3``, ``gcs`` or ``azure``; the credentials are the server's own.
        """
        client = getattr(self._sdk.import_storage, storage)
        key = "container" if storage == "azure" else "bucket"
        attached = self._wire.read(lambda: client.list(project=project, request_options=_ONCE))
        if any((getattr(one, key), one.prefix or "") == (bucket, prefix) for one in attached):
            return
        place = {key: bucket, "prefix": prefix, "title": "frames"}
        try:
            self._wire.write(
                lambda: client.create(
                    project=project,
                    presign=True,
                    use_blob_urls=True,
                    request_options=_ONCE,
                    **place,
                )
            )
        except ServiceError as error:
            raise ServiceError(
                f"Label Studio cannot show images from {bucket}: {error.what}",
                where=self.url,
                hint="The server needs credentials of its own that may read the bucket",
            ) from error

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

    def import_tasks(self, project: int, tasks: Sequence[Task]) -> None:
        """Add tasks with their predictions in one call, which takes place whole or not at all."""
        content = json.dumps(tasks).encode()
        self._wire.write(
            lambda: self._wire.http(
                "POST",
                f"/api/projects/{project}/import",
                content=content,
                headers={"Content-Type": "application/json"},
                timeout=BULK_TIMEOUT_S,
            )
        )

    def delete_tasks(self, ids: Sequence[int]) -> None:
        for task in ids:
            self._delete_task(task)

    def _delete_task(self, task: int) -> None:
        self._wire.write(lambda: self._sdk.tasks.delete(str(task), request_options=_ONCE))

    def set_note(self, task: int, data: dict[str, Any]) -> None:
        """Replace a task's data, as with a note for whoever opens it."""
        self._wire.write(
            lambda: self._sdk.tasks.update(str(task), data=data, request_options=_ONCE)
        )

    def offer_to(self, task: int, labelers: int) -> None:
        """Offer a task to so many labelers instead of one."""
        self._wire.write(
            lambda: self._sdk.tasks.update(str(task), overlap=labelers, request_options=_ONCE)
        )

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
                raise ServiceError("Label Studio could not export this project", where=self.url)
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

    def annotate(
        self,
        task: int,
        result: Sequence[Region],
        *,
        skipped: bool = False,
        lead_time_s: float | None = None,
    ) -> int:
        """Answer a task as this user; the id of the annotation."""
        timed = {} if lead_time_s is None else {"lead_time": lead_time_s}
        made = self._wire.write(
            lambda: self._sdk.annotations.create(
                task, result=list(result), was_cancelled=skipped, request_options=_ONCE, **timed
            )
        )
        return int(made.id)

    def as_user(self, email: str, password: str, *, token_file: Path) -> LabelStudio:
        """This server as another user, who is invited and signed up where needed.

        Args:
            token_file: Keeps the user's personal access token (0600) for the next time.
        """
        if token_file.is_file():
            try:
                user = LabelStudio(self.url, token_file.read_text().strip())
                if user.whoami() == email:
                    return user
            except ServiceError as error:
                if not attempts.is_refused(error):
                    raise
        invites = self._sdk.organizations.invites
        invitation = str(
            self._wire.read(lambda: invites.get_invite_link(request_options=_ONCE)).invite_url
        )
        token = accounts.personal_token(self.url, email, password, invitation=invitation)
        workspace.write_atomic(token_file, token.encode(), mode=0o600)
        return LabelStudio(self.url, token)

    def _get(self, project: int) -> Any:
        return self._wire.read(lambda: self._sdk.projects.get(project, request_options=_ONCE))

    def _describe(self, project: Any) -> Project:
        return Project(
            id=project.id,
            title=project.title,
            url=f"{self.url}/projects/{project.id}/data",
            config=project.label_config or "",
            tasks=project.task_number or 0,
        )


def connect(url: str, token: str) -> LabelStudio:
    """Speak to a server as the owner of ``token``, personal (renewed as it expires) or legacy.

    Raises:
        ServiceError: The server is away or refuses the token.
    """
    server = LabelStudio(url, token)
    server.whoami()
    return server


def _of(batch: str, since: str | None = None) -> str:
    """Label Studio's filter for tasks of a batch, and those changed since then."""
    items = [("filter:tasks:data.batch", "equal", "String", batch)]
    if since:
        items.append(("filter:tasks:updated_at", "greater", "Datetime", since))
    keys = ("filter", "operator", "type", "value")
    chosen = [dict(zip(keys, item, strict=True)) for item in items]
    return json.dumps({"filters": {"conjunction": "and", "items": chosen}})
