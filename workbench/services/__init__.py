"""The servers a workbench needs: mongod (for FiftyOne), MLflow and Label Studio.

    from workbench import services
    services.up(workspace)             # start what is not running; found ones are left alone
    services.environment(workspace)    # the variables that make notebooks use them

By default they are started here, on loopback, with everything below ``.workbench/services``. With
``FIFTYONE_DATABASE_URI``, ``MLFLOW_TRACKING_URI`` or ``LABEL_STUDIO_URL`` set, that server is used
and none is started in its place.
"""

from workbench.services.lifecycle import ServiceStatus
from workbench.services.manager import (
    SERVICE_NAMES,
    down,
    environment,
    label_studio_admin,
    status,
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
    "status",
    "up",
]
