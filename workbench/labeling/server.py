"""A Label Studio server in the words of the workbench: projects, tasks, annotations, labelers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from workbench import workspace
from workbench.errors import ServiceError
from workbench.labeling import accounts, attempts
from workbench.labeling.holdings import Holdings, Task
from workbench.labeling.regions import Region
from workbench.labeling.transport import BULK_TIMEOUT_S, TIMEOUT_S, Transport

TITLE_LENGTH = 50

_ACTIONS = ["ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "TASKS_DELETED"]


# The SDK would send a failed write again by itself, and the task would be there twice.
_ONCE: dict[str, Any] = {"max_retries": 0}

# Longer than a storage's library, inside the server, tries a bucket that it cannot reach: only
# then does it say why.
_BUCKET_TIMEOUT_S = 300

_CREDENTIALS = {
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


class LabelStudio(Holdings):
    """One server, as one of its users. Made by `connect`."""

    def __init__(self, url: str, token: str, *, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__(Transport(url, token, timeout_s))
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

    def update_instruction(self, project: int, instruction: str) -> None:
        """Replace what labelers read before they begin; HTML."""
        self._wire.write(
            lambda: self._sdk.projects.update(
                project, expert_instruction=instruction, request_options=_ONCE
            )
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
                    title=folder.name,
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

        Raises:
            ServiceError: The server has none, may not read the bucket, or finds nothing there.
        """
        client = getattr(self._sdk.import_storage, storage)
        key = "container" if storage == "azure" else "bucket"
        attached = self._wire.read(lambda: client.list(project=project, request_options=_ONCE))
        if any((getattr(one, key), one.prefix or "") == (bucket, prefix) for one in attached):
            return
        place = {key: bucket, "prefix": prefix, "title": "frames"}
        patient = {**_ONCE, "timeout_in_seconds": _BUCKET_TIMEOUT_S}
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
                hint=f"The server needs credentials of its own ({_CREDENTIALS[storage]}) that may"
                " read the bucket, a way to it (HTTPS_PROXY, REQUESTS_CA_BUNDLE) and something"
                " below that folder. One that the workbench starts takes them from the environment"
                " of `workbench up`, after a `workbench down`",
            ) from error

    def add_webhook(self, project: int, url: str, headers: dict[str, str]) -> int:
        """Let the server call ``url`` when annotations of a project change; the webhook's id."""
        body = {
            **{"project": project, "url": url, "headers": headers, "is_active": True},
            **{"send_payload": True, "send_for_all_actions": False, "actions": _ACTIONS},
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
