"""The servers of a workspace: mongod (for FiftyOne), MLflow and Label Studio.

    from workbench import services
    services.up(workspace)             # start what is not running
    services.environment(workspace)    # variables that make a process use the servers

By default they run on this machine, with all data below ``.workbench/services``: mongod on a Unix
socket that only its owner can open, the others on loopback behind a generated password. If
``FIFTYONE_DATABASE_URI``, ``MLFLOW_TRACKING_URI`` or ``LABEL_STUDIO_URL`` is set, that server is
used instead.
"""

from workbench.services.lifecycle import ServiceStatus
from workbench.services.manager import (
    SERVICE_NAMES,
    down,
    environment,
    label_studio_admin,
    mlflow_login,
    status,
    tracking_address,
    up,
)
from workbench.services.servers import LabelStudioAdmin

__all__ = [
    "SERVICE_NAMES",
    "LabelStudioAdmin",
    "ServiceStatus",
    "down",
    "environment",
    "label_studio_admin",
    "mlflow_login",
    "status",
    "tracking_address",
    "up",
]
