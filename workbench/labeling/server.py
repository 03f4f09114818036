"""A Label Studio server: projects, tasks, annotations, users, exports and webhooks."""

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

from workbench.core import workspace
from workbench.core.errors import ServiceError
from workbench.labeling import client as accounts
from workbench.labeling.client import BULK_TIMEOUT_S, TIMEOUT_S, ApiClient
from workbench.labeling.regions import Region

_READ_BYTES = 1 << 20


def read_json_array(path: Path, key: str | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, or of the first one that a canonical object has as ``key``.

    Raises:
        ServiceError: The file ends too soon or is no such array.
    """
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as file:
        text = file.read(_READ_BYTES).lstrip()
        opening = "[" if key is None else f'"{key}":['
        position = text.find(opening) + len(opening)
        if position < len(opening) or (key is None and position > 1):
            raise ServiceError("expected a JSON array in an export", where=path)
        while True:
            while position < len(text) and text[position] in " ,\n\r\t":
                position += 1
            if text[position : position + 1] == "]":
                return
            try:
                found, position = decoder.raw_decode(text, position)
            except json.JSONDecodeError as error:
                more = file.read(_READ_BYTES)
                if not more:
                    raise ServiceError("an export broke off", where=path) from error
                text, position = text[position:] + more, 0
                continue
            yield found


# ---- What a Label Studio server holds of a batch. Everything here only reads, but for `snapshot`.


Task = dict[str, Any]
"""A task as Label Studio imports and exports it."""

_SNAPSHOT_WAIT_S = 0.05
_PAGE_SIZE = 1000
_IDS_PER_CALL = 100
_FILTER_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"  # the only form that the server's filters read


@dataclass(frozen=True)
class BatchTotals:
    """What a project holds of one batch, skips not counted, at ``at``, a time of the server's."""

    tasks: int
    annotations: int
    at: str


class _ServerReader:
    """The reading half of a server as one of its users."""

    def __init__(self, wire: ApiClient) -> None:
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

    def totals(self, project: int, batch: str) -> BatchTotals:
        """How much a project holds of a batch, in one short call."""

        def asked() -> BatchTotals:
            query = {
                "project": project,
                "include": "id",
                "page_size": 1,
                "query": _batch_filter(batch),
            }
            answer = self._wire.http("GET", "/api/tasks", params=query)
            body = answer.json()
            at = parsedate_to_datetime(answer.headers["date"]).isoformat()
            return BatchTotals(body["total"], body["total_annotations"], at)

        return self._wire.read(asked)

    def changed(self, project: int, batch: str, since: datetime) -> dict[int, str]:
        """Tasks of a batch that changed after a time of the server's: id to when."""
        after = since.astimezone(UTC).strftime(_FILTER_TIME_FORMAT)

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
        for start in range(0, len(ids), _IDS_PER_CALL):
            yield from self._export_some(project, ids[start : start + _IDS_PER_CALL])

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
        return read_json_array(to)

    def _pages(
        self, project: int, batch: str, include: str, *, since: str | None = None
    ) -> Iterator[Task]:
        query = {"project": project, "include": include, "page_size": _PAGE_SIZE}
        query["query"] = _batch_filter(batch, since)
        page, seen = 1, 0
        while True:
            body = self._wire.http("GET", "/api/tasks", params={**query, "page": page}).json()
            yield from body["tasks"]
            seen += len(body["tasks"])
            if not body["tasks"] or seen >= body["total"]:
                return
            page += 1


def _batch_filter(batch: str, since: str | None = None) -> str:
    """Label Studio's filter for tasks of a batch, and those changed since then."""
    items = [("filter:tasks:data.batch", "equal", "String", batch)]
    if since:
        items.append(("filter:tasks:updated_at", "greater", "Datetime", since))
    keys = ("filter", "operator", "type", "value")
    chosen = [dict(zip(keys, item, strict=True)) for item in items]
    return json.dumps({"filters": {"conjunction": "and", "items": chosen}})


# ---- A Label Studio server in the words of the workbench: projects, tasks, annotations, labelers.


TITLE_LENGTH = 50

_WEBHOOK_ACTIONS = [
    "ANNOTATION_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_DELETED",
    "TASKS_DELETED",
]


# The SDK would send a failed write again by itself, and the task would be there twice.
_NO_SDK_RETRIES: dict[str, Any] = {"max_retries": 0}

# Longer than a storage's library, inside the server, tries a bucket that it cannot reach: only
# then does it say why.
_BUCKET_TIMEOUT_S = 300

_BUCKET_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, the key file of a service account",
    "azure": "AZURE_BLOB_ACCOUNT_NAME and AZURE_BLOB_ACCOUNT_KEY",
}
"""What Label Studio signs with, by its name of the storage, where its project holds nothing."""


@dataclass(frozen=True)
class Project:
    """``url`` opens it in a browser; ``tasks`` counts what it holds."""

    id: int
    title: str
    url: str
    config: str
    tasks: int


class LabelStudio(_ServerReader):
    """One server, as one of its users. Made by `connect`."""

    def __init__(self, url: str, token: str, *, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__(ApiClient(url, token, timeout_s))
        self._sdk = self._wire.sdk
        self.url = self._wire.url

    def whoami(self) -> str:
        """E-mail address of the user whose token this is; proves that server and token work."""
        return str(
            self._wire.read(lambda: self._sdk.users.whoami(request_options=_NO_SDK_RETRIES).email)
        )

    def users(self) -> dict[int, str]:
        """E-mail address of every user by id."""
        users = self._wire.read(lambda: self._sdk.users.list(request_options=_NO_SDK_RETRIES))
        return {user.id: user.email for user in users}

    def project(self, identifier: int) -> Project | None:
        """A project by id; None when it is gone."""
        try:
            return self._describe(self._get(identifier))
        except ServiceError as error:
            if accounts.http_status(error.__cause__) == HTTPStatus.NOT_FOUND:
                return None
            raise

    def find_project(self, title: str) -> Project | None:
        """The oldest project with exactly this title."""
        found = self._wire.read(
            lambda: list(self._sdk.projects.list(title=title, request_options=_NO_SDK_RETRIES))
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
                request_options=_NO_SDK_RETRIES,
            )
        )
        return self._describe(self._get(created.id))

    def update_config(self, project: int, config: str) -> None:
        self._wire.write(
            lambda: self._sdk.projects.update(
                project, label_config=config, request_options=_NO_SDK_RETRIES
            )
        )

    def update_instruction(self, project: int, instruction: str) -> None:
        """Replace what labelers read before they begin; HTML."""
        self._wire.write(
            lambda: self._sdk.projects.update(
                project, expert_instruction=instruction, request_options=_NO_SDK_RETRIES
            )
        )

    def delete_project(self, identifier: int) -> None:
        self._wire.write(
            lambda: self._sdk.projects.delete(identifier, request_options=_NO_SDK_RETRIES)
        )

    def attach_media(self, project: int, folder: Path) -> None:
        """Let a project show images that lie in ``folder``; nothing is copied or uploaded."""
        storage = self._sdk.import_storage.local
        attached = self._wire.read(
            lambda: storage.list(project=project, request_options=_NO_SDK_RETRIES)
        )
        if any(Path(entry.path or "") == folder for entry in attached):
            return
        try:
            self._wire.write(
                lambda: storage.create(
                    project=project,
                    path=str(folder),
                    title=folder.name,
                    use_blob_urls=True,
                    request_options=_NO_SDK_RETRIES,
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

        Raises:
            ServiceError: The server has none, may not read the bucket, or finds nothing there.
        """
        client = getattr(self._sdk.import_storage, storage)
        key = "container" if storage == "azure" else "bucket"
        attached = self._wire.read(
            lambda: client.list(project=project, request_options=_NO_SDK_RETRIES)
        )
        if any((getattr(one, key), one.prefix or "") == (bucket, prefix) for one in attached):
            return
        place = {key: bucket, "prefix": prefix, "title": "frames"}
        patient = {**_NO_SDK_RETRIES, "timeout_in_seconds": _BUCKET_TIMEOUT_S}
        try:
            self._wire.write(
                lambda: client.create(
                    project=project,
                    presign=True,
                    use_blob_urls=True,
                    request_options=patient,
                    **place,
                )
            )
        except ServiceError as error:
            raise ServiceError(
                f"Label Studio cannot show images from {bucket}: {error.what}",
                where=self.url,
                hint=f"The server needs credentials of its own ({_BUCKET_CREDENTIALS[storage]}) that may"
                " read the bucket, a way to it (HTTPS_PROXY, REQUESTS_CA_BUNDLE) and something"
                " below that folder. One that the workbench starts takes them from the environment"
                " of `workbench up`, after a `workbench down`",
            ) from error

    def add_webhook(self, project: int, url: str, headers: dict[str, str]) -> int:
        """Let the server call ``url`` when annotations of a project change; the webhook's id."""
        body = {
            **{"project": project, "url": url, "headers": headers, "is_active": True},
            **{"send_payload": True, "send_for_all_actions": False, "actions": _WEBHOOK_ACTIONS},
        }
        made = self._wire.write(lambda: self._wire.http("POST", "/api/webhooks/", json=body).json())
        return int(made["id"])

    def remove_webhook(self, identifier: int) -> None:
        self._wire.write(lambda: self._wire.http("DELETE", f"/api/webhooks/{identifier}/"))

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
        self._wire.write(lambda: self._sdk.tasks.delete(str(task), request_options=_NO_SDK_RETRIES))

    def set_note(self, task: int, data: dict[str, Any]) -> None:
        """Replace a task's data, as with a note for whoever opens it."""
        self._wire.write(
            lambda: self._sdk.tasks.update(str(task), data=data, request_options=_NO_SDK_RETRIES)
        )

    def offer_to(self, task: int, labelers: int) -> None:
        """Offer a task to so many labelers instead of one."""
        self._wire.write(
            lambda: self._sdk.tasks.update(
                str(task), overlap=labelers, request_options=_NO_SDK_RETRIES
            )
        )

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
                task,
                result=list(result),
                was_cancelled=skipped,
                request_options=_NO_SDK_RETRIES,
                **timed,
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
                if not accounts.was_rejected(error):
                    raise
        invites = self._sdk.organizations.invites
        invitation = str(
            self._wire.read(
                lambda: invites.get_invite_link(request_options=_NO_SDK_RETRIES)
            ).invite_url
        )
        token = accounts.personal_token(self.url, email, password, invitation=invitation)
        workspace.write_atomic(token_file, token.encode(), mode=0o600)
        return LabelStudio(self.url, token)

    def _get(self, project: int) -> Any:
        return self._wire.read(
            lambda: self._sdk.projects.get(project, request_options=_NO_SDK_RETRIES)
        )

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
