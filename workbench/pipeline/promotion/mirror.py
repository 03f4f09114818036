"""MLflow's view of the promoted steps. What it misses is written the next time."""

from __future__ import annotations

from pathlib import Path

from workbench import services
from workbench.pipeline.promotion import repository
from workbench.pipeline.promotion.repository import RECEIPT_FILE, STEP_FILE, Promoted
from workbench.tracking import Tracker
from workbench.workspace import Workspace

EXPERIMENT = "workbench"
KNOWN_BY = "workbench.step"
_SOURCE = "step"


def mirror(place: Workspace, project: Path, names: list[str] | None = None) -> int:
    """Register every version that MLflow lacks and let its aliases point as they do here.

    Args:
        names: Steps to mirror; all when left out.

    Returns:
        How many versions were new to MLflow.

    Raises:
        ServiceError: MLflow is away. The repository is whole all the same.
    """
    services.up(place, ("mlflow",))
    uri = services.environment(place, ("mlflow",))["MLFLOW_TRACKING_URI"]
    tracker = Tracker(uri, EXPERIMENT)
    new = 0
    for name in repository.steps(project) if names is None else names:
        registered: dict[int, int] = {}
        for version in repository.versions(project, name):
            promoted = repository.load(project, name, version)
            known = tracker.version_of(_model(name), KNOWN_BY, promoted.ref)
            registered[version] = known or _register(tracker, promoted)
            new += known is None
        aliases = repository.current_aliases(project, name)
        tracker.point(
            _model(name), {alias: registered[at.version] for alias, at in aliases.items()}
        )
    return new


def _register(tracker: Tracker, promoted: Promoted) -> int:
    record = promoted.record
    tags = {
        KNOWN_BY: promoted.ref,
        "workbench.version": str(promoted.version),
        "workbench.owner": record.owner,
        "workbench.reviewer": record.reviewer,
        "workbench.commit": record.commit,
        "workbench.notebook": record.notebook,
        "workbench.environment": record.environment,
        "workbench.receipt": record.receipt,
    }
    run = tracker.start(f"promote {promoted.name}@{promoted.version}", tags=tags, parameters={})
    files = [promoted.path, *(promoted.path.with_name(name) for name in (STEP_FILE, RECEIPT_FILE))]
    tracker.log_files(run, files, _SOURCE)
    tracker.end(run, "FINISHED")
    return tracker.register(
        _model(promoted.name), run, source=_SOURCE, tags=tags, aliases=(), known_by=KNOWN_BY
    )


def _model(name: str) -> str:
    return f"step.{name}"
