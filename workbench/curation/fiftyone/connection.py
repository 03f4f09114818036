"""Connect to FiftyOne's database: always this workspace's mongod, never one that FiftyOne
starts."""

from __future__ import annotations

import os
import sys
from typing import Any

from workbench import services
from workbench.core.errors import DataError, ServiceError
from workbench.core.workspace import Workspace, find_workspace
from workbench.services.manager import is_external

__all__ = ()

_URI_VARIABLE = "FIFTYONE_DATABASE_URI"
_START_HINT = "Run `workbench up`; `workbench status` shows what is running"


def connect(workspace: Workspace) -> Any:
    """FiftyOne, attached to the workspace's mongod.

    Raises:
        ServiceError: mongod does not answer, or FiftyOne is attached to another database.
    """
    import pymongo
    from pymongo.errors import PyMongoError

    if not is_external("mongod"):  # nor that of another workspace, opened before
        os.environ.update(services.environment(workspace, ("mongod",), inherited=True))
    uri = os.environ[_URI_VARIABLE]
    try:
        client: pymongo.MongoClient[dict[str, Any]]
        with pymongo.MongoClient(uri, serverSelectionTimeoutMS=3000) as client:
            client.admin.command("ping")
    except PyMongoError as error:
        raise ServiceError("mongod does not answer", where=uri, hint=_START_HINT) from error
    loaded = sys.modules.get("fiftyone")
    if loaded is not None and getattr(loaded.config, "database_uri", uri) != uri:
        raise ServiceError(
            "FiftyOne is attached to another database in this process",
            where=loaded.config.database_uri,
            hint="Restart the notebook's kernel",
        )
    import fiftyone

    return fiftyone


def load_fo_dataset(workspace: Workspace | None, name: str) -> Any:
    """Load a dataset of FiftyOne by name.

    Raises:
        DataError: There is none of this name.
        ServiceError: mongod does not answer.
    """
    fo = connect(workspace or find_workspace())
    if not fo.dataset_exists(name):
        names = ", ".join(fo.list_datasets()) or "none"
        raise DataError(
            f"FiftyOne has no dataset {name!r}",
            hint=f"Datasets: {names}. `workbench.curation.publish` creates one",
        )
    dataset = fo.load_dataset(name)
    dataset.reload()
    return dataset
