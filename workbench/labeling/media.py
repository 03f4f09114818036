"""Where Label Studio finds a frame's image: always by a canonical address, never by a signed one.

Images on this machine are served from where they lie. With ``WORKBENCH_MEDIA_URL`` set
(``s3://bucket/folder``, ``gs://…`` or ``azure-blob://…``) tasks name the object there, and Label
Studio signs the address when a labeler opens the task, with its own credentials. So no export
ever holds a signature, and nothing is uploaded.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from workbench.errors import DataError, ParameterError
from workbench.labeling.server import LabelStudio
from workbench.records.dataset import media_path
from workbench.records.frames import Frame
from workbench.workspace import Workspace

VARIABLE = "WORKBENCH_MEDIA_URL"

STORAGES = {"s3": "s3", "gs": "gcs", "azure-blob": "azure"}
"""Scheme of an address to Label Studio's name for that storage."""


def remote() -> str | None:
    """The folder that frames lie in, if not on this machine.

    Raises:
        ParameterError: Its scheme is none that Label Studio can sign.
    """
    url = os.environ.get(VARIABLE, "").rstrip("/")
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme not in STORAGES or not parts.netloc or parts.query:
        raise ParameterError(
            f"cannot serve frames from {url!r}",
            where=VARIABLE,
            hint=f"Use one of {', '.join(f'{scheme}://BUCKET/FOLDER' for scheme in STORAGES)}",
        )
    return url


def address(place: Workspace, frame: Frame) -> str:
    """A frame's image as a task names it.

    Raises:
        DataError: The image is not where it should be.
    """
    base = remote()
    if base:
        return f"{base}/{frame.id[:2]}/{frame.id}{frame.suffix}"
    path = media_path(place, frame)
    if not path.is_file():
        raise DataError(
            "the image of a frame is missing",
            where=path,
            hint="Ingest the drives again; frames keep their names",
        )
    # Relative to the server, so that it may move to another address.
    return f"/data/local-files/?d={path.relative_to(place.served).as_posix()}"


def attach(server: LabelStudio, project: int, place: Workspace) -> None:
    """Let a project show the frames; nothing is copied."""
    base = remote()
    if base is None:
        server.attach_media(project, place.media.resolve())  # as the server knows it
        return
    parts = urlsplit(base)
    server.attach_bucket(project, STORAGES[parts.scheme], parts.netloc, parts.path.strip("/"))
