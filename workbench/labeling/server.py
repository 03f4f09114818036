"""A Label Studio server: projects, tasks, annotations, users, exports and webhooks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypedDict

import ijson

from workbench.core.errors import ServiceError
from workbench.core.types import Json
from workbench.core.workspace import write_atomic
from workbench.labeling.client import (
    BULK_TIMEOUT_S,
    ApiClient,
    http_status,
    personal_token,
    was_rejected,
)
from workbench.labeling.regions import Region

__all__ = ["LabelStudio", "connect"]

MAX_TITLE_LENGTH = 50

_WEBHOOK_ACTIONS = [
    "ANNOTATION_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_DELETED",
    "TASKS_DELETED",
]
_SNAPSHOT_WAIT_S = 0.05
_PAGE_SIZE = 1000
_IDS_PER_CALL = 100
_FILTER_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"  # the only format that the server's filters accept

# The SDK would repeat a failed write by itself, and the task would exist twice.
_NO_SDK_RETRIES: Json = {"max_retries": 0}

# Longer than the storage library inside the server tries an unreachable bucket: the error message
# comes only after that.
_BUCKET_TIMEOUT_S = 300

_BUCKET_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, the key file of a service account",
    "azure": "AZURE_BLOB_ACCOUNT_NAME and AZURE_BLOB_ACCOUNT_KEY",
}
"""Credentials that Label Studio signs URLs with, by its name of the storage."""


class Task(TypedDict, total=False):
    """A task as Label Studio imports and exports it; ``data`` are its columns."""

    id: int
    data: Json
    updated_at: str
    annotations: list[Json]
    predictions: list[Json]
    drafts: list[Json]


@dataclass(frozen=True)
class Project:
    """A Label Studio project.

    Attributes:
        url: Page of the project in a browser.
        config: Labeling configuration (XML).
        tasks: Number of tasks.
    """

    id: int
    title: str
    url: str
    config: str
    tasks: int


@dataclass(frozen=True)
class BatchTotals:
    """Number of tasks and submitted annotations (without skips) of one batch in a project.

    Attributes:
        at: Server time of the count, ISO 8601.
    """

    tasks: int
    annotations: int
    at: str


class LabelStudio:
    """A server as seen by one of its users. Create it with `connect`.

    Every method raises ServiceError when the server is not reachable or rejects the call.
    """

    def __init__(self, url: str, token: str) -> None:
        self._client = ApiClient(url, token)
        self._sdk = self._client.sdk
        self.url = self._client.url

    # Users

    def whoami(self) -> str:
        """E-mail address of the token's user."""
        return str(self._read(self._sdk.users.whoami).email)

    def users(self) -> dict[int, str]:
        """E-mail address of every user by id."""
        return {user.id: user.email for user in self._read(self._sdk.users.list)}

    def as_user(self, email: str, password: str, *, token_file: Path) -> LabelStudio:
        """This server as another user, who is invited and signed up where needed.

        Args:
            token_file: Stores the user's personal access token (mode 0600) for the next call.
        """
        if token_file.is_file():
            try:
                user = LabelStudio(self.url, token_file.read_text().strip())
                if user.whoami() == email:
                    return user
            except ServiceError as error:
                if not was_rejected(error):
                    raise
        token = personal_token(self.url, email, password, invitation=self._invitation())
        write_atomic(token_file, token.encode(), mode=0o600)
        return LabelStudio(self.url, token)

    def invitation_link(self) -> str:
        """Address at which people make an account of their own; good until it is renewed."""
        return f"{self.url}{self._invitation()}"

    def _invitation(self) -> str:
        return str(self._read(self._sdk.organizations.invites.get_invite_link).invite_url)

    # Projects

    def project(self, project_id: int) -> Project | None:
        """A project by id; None if it does not exist."""
        try:
            project = self._read(self._sdk.projects.get, project_id)
        except ServiceError as error:
            if http_status(error.__cause__) == HTTPStatus.NOT_FOUND:
                return None
            raise
        return Project(
            id=project.id,
            title=project.title,
            url=f"{self.url}/projects/{project.id}/data",
            config=project.label_config or "",
            tasks=project.task_number or 0,
        )

    def find_project(self, title: str) -> Project | None:
        """The oldest project with exactly this title."""
        projects = self._client.read(
            lambda: list(self._sdk.projects.list(title=title, request_options=_NO_SDK_RETRIES))
        )
        ids = sorted(project.id for project in projects if project.title == title)
        return self.project(ids[0]) if ids else None

    def create_project(
        self, title: str, config: str, *, description: str, instruction: str
    ) -> Project:
        """Create a project whose labelers start from predictions and may skip a frame.

        Args:
            config: Labeling configuration (XML).
            instruction: Shown before labeling; HTML.
        """
        created = self._write(
            self._sdk.projects.create,
            title=title,
            label_config=config,
            description=description,
            expert_instruction=instruction,
            show_instruction=True,
            show_skip_button=True,
            enable_empty_annotation=True,
            show_collab_predictions=True,
        )
        project = self.project(created.id)
        if project is None:
            raise ServiceError(f"project {title!r} was deleted right after its creation")
        return project

    def update_config(self, project_id: int, config: str) -> None:
        """Replace the labeling configuration."""
        self._write(self._sdk.projects.update, project_id, label_config=config)

    def update_instruction(self, project_id: int, instruction: str) -> None:
        """Replace the instruction shown before labeling; HTML."""
        self._write(self._sdk.projects.update, project_id, expert_instruction=instruction)

    def attach_folder(self, project_id: int, folder: Path) -> None:
        """Let a project show the images below a local folder; nothing is copied or uploaded."""
        storage = self._sdk.import_storage.local
        attached = self._read(storage.list, project=project_id)
        if any(Path(entry.path or "") == folder for entry in attached):
            return
        try:
            self._write(
                storage.create,
                project=project_id,
                path=str(folder),
                title=folder.name,
                use_blob_urls=True,
            )
        except ServiceError as error:
            raise ServiceError(
                f"Label Studio cannot show images from {folder}: {error.what}",
                where=self.url,
                hint="The server must see that folder as a subfolder of its"
                " LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT",
            ) from error

    def attach_bucket(self, project_id: int, storage: str, bucket: str, prefix: str) -> None:
        """Let a project show images in a bucket; Label Studio signs their URLs on opening.

        Args:
            storage: ``s3``, ``gcs`` or ``azure``; the credentials are the server's own.

        Raises:
            ServiceError: The server has no credentials, may not read the bucket, or finds no
                object below the prefix.
        """
        api = getattr(self._sdk.import_storage, storage)
        bucket_field = "container" if storage == "azure" else "bucket"
        attached = self._read(api.list, project=project_id)
        if any(
            (getattr(one, bucket_field), one.prefix or "") == (bucket, prefix) for one in attached
        ):
            return
        options = {**_NO_SDK_RETRIES, "timeout_in_seconds": _BUCKET_TIMEOUT_S}
        target = {bucket_field: bucket, "prefix": prefix, "title": "frames"}
        try:
            self._client.write(
                lambda: api.create(
                    project=project_id,
                    presign=True,
                    use_blob_urls=True,
                    request_options=options,
                    **target,
                )
            )
        except ServiceError as error:
            raise ServiceError(
                f"Label Studio cannot show images from {bucket}: {error.what}",
                where=self.url,
                hint=f"The server needs its own credentials ({_BUCKET_CREDENTIALS[storage]}) with"
                " read access to the bucket, network access (HTTPS_PROXY, REQUESTS_CA_BUNDLE) and"
                " at least one object below that folder. A server started by the workbench takes"
                " them from the environment of `workbench up`, after a `workbench down`",
            ) from error

    def add_webhook(self, project_id: int, url: str, headers: dict[str, str]) -> int:
        """Let the server call ``url`` when annotations of a project change; the webhook's id."""
        body = {
            "project": project_id,
            "url": url,
            "headers": headers,
            "is_active": True,
            "send_payload": True,
            "send_for_all_actions": False,
            "actions": _WEBHOOK_ACTIONS,
        }
        response = self._client.write(
            lambda: self._client.request("POST", "/api/webhooks/", json=body)
        )
        return int(response.json()["id"])

    def remove_webhook(self, webhook_id: int) -> None:
        self._client.write(lambda: self._client.request("DELETE", f"/api/webhooks/{webhook_id}/"))

    # Tasks

    def task_ids(self, project_id: int, batch: str) -> dict[str, list[int]]:
        """Ids of the tasks of each frame of a batch, ascending; normally one per frame.

        Args:
            batch: Digest of the batch.
        """

        def fetch() -> dict[str, list[int]]:
            ids: dict[str, list[int]] = {}
            for task in self._pages(project_id, batch, "id,data"):
                ids.setdefault(task["data"]["frame"], []).append(task["id"])
            return {frame: sorted(several) for frame, several in ids.items()}

        return self._client.read(fetch)

    def task_by_frame(self, project_id: int, batch: str) -> dict[str, int]:
        """Id of the oldest task of each frame of a batch."""
        return {frame: ids[0] for frame, ids in self.task_ids(project_id, batch).items()}

    def totals(self, project_id: int, batch: str) -> BatchTotals:
        """Number of tasks and annotations of a batch, in one short call."""
        query = {
            "project": project_id,
            "include": "id",
            "page_size": 1,
            "query": _batch_filter(batch),
        }
        response = self._client.read(
            lambda: self._client.request("GET", "/api/tasks", params=query)
        )
        body = response.json()
        at = parsedate_to_datetime(response.headers["date"]).isoformat()
        return BatchTotals(body["total"], body["total_annotations"], at)

    def changed_tasks(self, project_id: int, batch: str, since: datetime) -> dict[int, str]:
        """Tasks of a batch that changed after a server time: id to time of the change."""
        after = since.astimezone(UTC).strftime(_FILTER_TIME_FORMAT)

        def fetch() -> dict[int, str]:
            pages = self._pages(project_id, batch, "id,updated_at", since=after)
            return {task["id"]: task["updated_at"] for task in pages}

        return self._client.read(fetch)

    def import_tasks(self, project_id: int, tasks: Sequence[Task]) -> None:
        """Add tasks with their predictions in one call, which succeeds or fails as a whole."""
        content = json.dumps(tasks).encode()
        self._client.write(
            lambda: self._client.request(
                "POST",
                f"/api/projects/{project_id}/import",
                content=content,
                headers={"Content-Type": "application/json"},
                timeout=BULK_TIMEOUT_S,
            )
        )

    def delete_tasks(self, ids: Sequence[int]) -> None:
        for task_id in ids:
            self._write(self._sdk.tasks.delete, str(task_id))

    def set_task_data(self, task_id: int, data: Json) -> None:
        """Replace a task's data, for example to show a note above the image."""
        self._write(self._sdk.tasks.update, str(task_id), data=data)

    def set_overlap(self, task_id: int, labelers: int) -> None:
        """Offer a task to this many labelers instead of one."""
        self._write(self._sdk.tasks.update, str(task_id), overlap=labelers)

    def annotate(
        self,
        task_id: int,
        result: Sequence[Region],
        *,
        skipped: bool = False,
        lead_time_s: float | None = None,
    ) -> int:
        """Submit an annotation as this user; the id of the annotation."""
        timed = {} if lead_time_s is None else {"lead_time": lead_time_s}
        annotation = self._write(
            self._sdk.annotations.create,
            task_id,
            result=list(result),
            was_cancelled=skipped,
            **timed,
        )
        return int(annotation.id)

    # Exports

    def export_tasks(self, project_id: int, ids: Sequence[int]) -> Iterator[Task]:
        """Tasks with all their annotations, predictions and drafts."""
        path = f"/api/projects/{project_id}/export"
        for start in range(0, len(ids), _IDS_PER_CALL):
            query = [("exportType", "JSON"), ("download_all_tasks", "true")]
            query += [("ids[]", str(task_id)) for task_id in ids[start : start + _IDS_PER_CALL]]
            yield from self._client.read(
                lambda: self._client.request("GET", path, params=query).json()  # noqa: B023
            )

    def snapshot(self, project_id: int, file: Path) -> Iterator[Task]:
        """Every task at one moment, streamed; predictions and drafts as ids only.

        Args:
            file: Where the export is stored while it is read.
        """
        exports = f"/api/projects/{project_id}/exports/"
        only_id = {"only_id": True}
        options = {"predictions": only_id, "drafts": only_id, "annotations__completed_by": only_id}
        body = {"title": "workbench", "serialization_options": options}
        export = self._client.write(
            lambda: self._client.request("POST", exports, json=body, timeout=BULK_TIMEOUT_S).json()
        )
        path = f"{exports}{export['id']}"
        try:
            state = export["status"]
            while state not in ("completed", "failed"):
                time.sleep(_SNAPSHOT_WAIT_S)
                state = self._client.read(
                    lambda: self._client.request("GET", path).json()["status"]
                )
            if state == "failed":
                raise ServiceError("Label Studio failed to export the project", where=self.url)
            query = {"exportType": "JSON"}
            self._client.read(lambda: self._client.download(f"{path}/download", query, file))
        finally:
            self._client.write(lambda: self._client.request("DELETE", path))
        return read_export(file)

    def _pages(
        self, project_id: int, batch: str, include: str, *, since: str | None = None
    ) -> Iterator[Any]:
        query: Json = {"project": project_id, "include": include, "page_size": _PAGE_SIZE}
        query["query"] = _batch_filter(batch, since)
        page, seen = 1, 0
        while True:
            body = self._client.request("GET", "/api/tasks", params={**query, "page": page}).json()
            yield from body["tasks"]
            seen += len(body["tasks"])
            if not body["tasks"] or seen >= body["total"]:
                return
            page += 1

    def _read(self, method: Callable[..., Any], *args: Any, **fields: Any) -> Any:
        return self._client.read(lambda: method(*args, request_options=_NO_SDK_RETRIES, **fields))

    def _write(self, method: Callable[..., Any], *args: Any, **fields: Any) -> Any:
        return self._client.write(lambda: method(*args, request_options=_NO_SDK_RETRIES, **fields))


def connect(url: str, token: str) -> LabelStudio:
    """Connect to a Label Studio server.

    Args:
        url: Base address, such as ``http://127.0.0.1:8080``.
        token: Personal access token (refreshed when it expires) or legacy token of a user.

    Raises:
        ServiceError: The server is not reachable or rejects the token.
    """
    server = LabelStudio(url, token)
    server.whoami()
    return server


def read_export(file: Path) -> Iterator[Task]:
    """Tasks of an exported JSON array, one at a time.

    Raises:
        ServiceError: The file is not a JSON array, or is cut off.
    """
    with file.open("rb") as content:
        if content.read(64).lstrip()[:1] != b"[":
            raise ServiceError("the export is not a JSON array", where=file)
        content.seek(0)
        try:
            yield from ijson.items(content, "item", use_float=True)
        except ijson.JSONError as error:
            raise ServiceError("the export is not complete JSON", where=file) from error


def _batch_filter(batch: str, since: str | None = None) -> str:
    """Label Studio's filter for tasks of a batch, optionally those changed after a time."""
    items = [("filter:tasks:data.batch", "equal", "String", batch)]
    if since:
        items.append(("filter:tasks:updated_at", "greater", "Datetime", since))
    keys = ("filter", "operator", "type", "value")
    filters = [dict(zip(keys, item, strict=True)) for item in items]
    return json.dumps({"filters": {"conjunction": "and", "items": filters}})
