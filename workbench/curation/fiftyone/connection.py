"""Connect to FiftyOne's database: always this workspace's mongod."""

from __future__ import annotations

import os
import sys
from typing import Any

from workbench import services
from workbench.core import workspace
from workbench.core.errors import DataError, ServiceError
from workbench.core.workspace import Workspace

_URI_VARIABLE = "FIFTYONE_DATABASE_URI"
_START_HINT = "Run `workbench up`; `workbench status` shows what is running"


def connect(place: Workspace) -> Any:
    """FiftyOne attached to this workspace's mongod; its database is asked first."""
    import pymongo
    from pymongo.errors import PyMongoError

    if _URI_VARIABLE not in os.environ:
        os.environ.update(services.environment(place, ("mongod",)))
    uri = os.environ[_URI_VARIABLE]
    try:
        client: pymongo.MongoClient[dict[str, Any]]
        with pymongo.MongoClient(uri, serverSelectionTimeoutMS=3000) as client:
            client.admin.command("ping")
    except PyMongoError as error:
        raise ServiceError("mongod does not answer", where=uri, hint=_START_HINT) from error
    known = sys.modules.get("fiftyone")
    if known is not None and getattr(known.config, "database_uri", uri) != uri:
        raise ServiceError(
            "this process has FiftyOne attached to another database",
            where=known.config.database_uri,
            hint="Restart the notebook's kernel",
        )
    import fiftyone

    return fiftyone


def load_dataset(place: Workspace | None, name: str) -> Any:
    fo = connect(place or workspace.find_workspace())
    if not fo.dataset_exists(name):
        near = ", ".join(fo.list_datasets()) or "none"
        raise DataError(
            f"FiftyOne has no dataset {name!r}",
            hint=f"There are: {near}. `workbench.curation.publish` makes one",
        )
    shown = fo.load_dataset(name)
    shown.reload()
    return shown
