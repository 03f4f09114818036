"""The one place that speaks to Label Studio, through its SDK.

Reads are tried again when the server is busy or gone for a moment. Writes are tried again only
when the server cannot have acted on them, because a task or an annotation sent twice is there
twice; whoever writes reconciles by reading what is there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from workbench import workspace
from workbench.errors import ServiceError
from workbench.labeling import accounts
from workbench.labeling.regions import Region

T = TypeVar("T")
Task = dict[str, Any]
"""A task as Label Studio imports and exports it."""

TITLE_LENGTH = 50

_TIMEOUT_S = 60.0
_BULK_TIMEOUT_S = 600.0
_WAITS_S = (0.5, 1.0, 2.0)
_PAGE = 1000
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)

# The SDK would send a failed write again by itself, and the task would be there twice.
_ONCE: dict[str, Any] = {"max_retries": 0}
_ONCE_SLOW: dict[str, Any] = {**_ONCE, "timeout_in_seconds": int(_BULK_TIMEOUT_S)}


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

    def __init__(self, url: str, token: str) -> None:
        from label_studio_sdk import LabelStudio as Client

        self.url = url.rstrip("/")
        # Untyped: the SDK's generated types do not describe what the community edition answers.
        client: Any = Client
        self._client: Any = self._read(
            lambda: client(base_url=self.url, api_key=token, timeout=_TIMEOUT_S)
        )

    def whoami(self) -> str:
        """E-mail address of the user whose token this is; proves that server and token work."""
        return str(self._read(lambda: self._client.users.whoami(request_options=_ONCE).email))

    def users(self) -> dict[int, str]:
        """E-mail address of every user by id."""
        users = self._read(lambda: self._client.users.list(request_options=_ONCE))
        return {user.id: user.email for user in users}

    def project(self, identifier: int) -> Project | None:
        """A project by id; None when it is gone."""
        try:
            return self._describe(self._get(identifier))
        except ServiceError as error:
            if getattr(error.__cause__, "status_code", None) == HTTPStatus.NOT_FOUND:
                return None
            raise

    def find_project(self, title: str) -> Project | None:
        """The oldest project with exactly this title."""
        found = self._read(
            lambda: list(self._client.projects.list(title=title, request_options=_ONCE))
        )
        exact = sorted(project.id for project in found if project.title == title)
        return self.project(exact[0]) if exact else None

    def create_project(
        self, title: str, config: str, *, description: str, instruction: str
    ) -> Project:
        created = self._write(
            lambda: self._client.projects.create(
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

    def delete_project(self, identifier: int) -> None:
        self._write(lambda: self._client.projects.delete(identifier, request_options=_ONCE))

    def attach_media(self, project: int, folder: Path) -> None:
        """Let a project show images that lie in ``folder``; nothing is copied or uploaded."""
        storage = self._client.import_storage.local
        attached = self._read(lambda: storage.list(project=project, request_options=_ONCE))
        if any(Path(entry.path or "") == folder for entry in attached):
            return
        try:
            self._write(
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

    def frames(self, project: int, batch: str) -> dict[str, int]:
        """Task id of each frame of a batch that a project holds."""

        def listed() -> dict[str, int]:
            tasks = self._client.tasks.list(
                project=project, include="id,data", page_size=_PAGE, request_options=_ONCE
            )
            return {
                task.data["frame"]: task.id
                for task in tasks
                if isinstance(task.data, dict) and task.data.get("batch") == batch
            }

        return self._read(listed)

    def import_tasks(self, project: int, tasks: Sequence[Task]) -> list[int]:
        """Add tasks with their predictions in one call; their ids in the order given."""
        answer = self._write(
            lambda: self._client.projects.import_tasks(
                project, request=list(tasks), return_task_ids=True, request_options=_ONCE_SLOW
            )
        )
        return list(answer.task_ids or [])

    def offer_to(self, task: int, labelers: int) -> None:
        """Offer a task to so many labelers instead of one."""
        self._write(
            lambda: self._client.tasks.update(str(task), overlap=labelers, request_options=_ONCE)
        )

    def export(self, project: int) -> list[Task]:
        """Every task with all its annotations and predictions, unanswered ones included."""
        content = self._read(
            lambda: b"".join(
                self._client.projects.exports.download_sync(
                    project, export_type="JSON", download_all_tasks=True, request_options=_ONCE_SLOW
                )
            )
        )
        tasks: list[Task] = json.loads(content)
        return tasks

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
        made = self._write(
            lambda: self._client.annotations.create(
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
                if not _is_refused(error):
                    raise
        invites = self._client.organizations.invites
        invitation = str(
            self._read(lambda: invites.get_invite_link(request_options=_ONCE)).invite_url
        )
        token = accounts.personal_token(self.url, email, password, invitation=invitation)
        workspace.write_atomic(token_file, token.encode(), mode=0o600)
        return LabelStudio(self.url, token)

    def _get(self, project: int) -> Any:
        return self._read(lambda: self._client.projects.get(project, request_options=_ONCE))

    def _describe(self, project: Any) -> Project:
        return Project(
            id=project.id,
            title=project.title,
            url=f"{self.url}/projects/{project.id}/data",
            config=project.label_config or "",
            tasks=project.task_number or 0,
        )

    def _read(self, call: Callable[[], T]) -> T:
        return self._attempt(call, lambda error: _is_away(error) or _status(error) >= 500)

    def _write(self, call: Callable[[], T]) -> T:
        return self._attempt(call, _was_not_heard)

    def _attempt(self, call: Callable[[], T], worth_another: Callable[[Exception], bool]) -> T:
        import httpx
        from label_studio_sdk.core.api_error import ApiError

        for wait in (*_WAITS_S, None):
            try:
                return call()
            except (httpx.HTTPError, ApiError) as error:
                if wait is None or not (worth_another(error) or _status(error) in _BUSY):
                    raise self._translated(error) from error
                time.sleep(wait)
        raise AssertionError("the last round returns or raises")

    def _translated(self, error: Exception) -> ServiceError:
        status = _status(error)
        if not status:
            return ServiceError(
                f"Label Studio does not answer: {type(error).__name__}",
                where=self.url,
                hint="Start it with `workbench up`, or look at LABEL_STUDIO_URL",
            )
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return ServiceError(
                f"Label Studio refuses the token ({status})",
                where=self.url,
                hint="`workbench status` says where it lies; LABEL_STUDIO_TOKEN overrides it",
            )
        return ServiceError(
            f"Label Studio answered {status}: {_message(error)}",
            where=self.url,
            hint="`workbench status` says where the server's log lies" if status >= 500 else None,
        )


def connect(url: str, token: str) -> LabelStudio:
    """Speak to a server as the owner of ``token``, personal (renewed as it expires) or legacy.

    Raises:
        ServiceError: The server is away or refuses the token.
    """
    server = LabelStudio(url, token)
    server.whoami()
    return server


def _status(error: BaseException | None) -> int:
    return int(getattr(error, "status_code", None) or 0)


def _is_away(error: Exception) -> bool:
    return _status(error) == 0


def _was_not_heard(error: Exception) -> bool:
    import httpx

    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


def _is_refused(error: ServiceError) -> bool:
    return HTTPStatus.BAD_REQUEST <= _status(error.__cause__) < HTTPStatus.INTERNAL_SERVER_ERROR


def _message(error: Exception) -> str:
    """What the server said, without the tracebacks and request ids it wraps that in."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        parts: Iterable[Any] = (body.get("validation_errors"), body.get("detail"))
        said = next((part for part in parts if part), body)
        return str(said)[:300]
    return str(body)[:300]
