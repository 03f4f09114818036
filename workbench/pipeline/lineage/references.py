"""References as people write them, to records.

sha256:DIGEST  KIND/PREFIX  NAME  NAME@N  models:/NAME/VERSION  models:/NAME@ALIAS
"""

from __future__ import annotations

import re

from workbench import services
from workbench.errors import RecordError
from workbench.records.base import Ref, digest_of
from workbench.records.store import Store
from workbench.records.types import RECORD_TYPES, Release
from workbench.workspace import Workspace

_MODEL = re.compile(r"^models:/([^/@]+)(?:/(\d+)|@(\w+))$")
_FORMS = "sha256:…, KIND/PREFIX, NAME, NAME@N, models:/NAME/VERSION or models:/NAME@ALIAS"


def resolve(place: Workspace, text: str) -> Ref:
    """The one record that ``text`` names; raises `RecordError` when there is none or several."""
    model = _MODEL.match(text)
    if model:
        return _model(place, *model.groups())
    if text.startswith("models:"):
        raise RecordError("not a model reference", where=text, hint=f"References are {_FORMS}")
    if text.startswith("sha256:"):
        return _prefix(place, list(RECORD_TYPES), text.removeprefix("sha256:"), text)
    kind, slash, prefix = text.partition("/")
    if slash and kind in RECORD_TYPES:
        return _prefix(place, [kind], prefix, text)
    from workbench.data import versions

    return versions.resolve(place, text)


def _prefix(place: Workspace, kinds: list[str], prefix: str, text: str) -> Ref:
    store = Store(place)
    found = [ref for kind in kinds for ref in store.refs(kind) if digest_of(ref).startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RecordError("no record has this digest", where=text, hint=f"References are {_FORMS}")
    several = ", ".join(ref[: ref.index("/") + 13] for ref in found[:5])
    raise RecordError(f"{len(found)} records match: {several}", where=text, hint="Give more digits")


def _model(place: Workspace, name: str, version: str | None, alias: str | None) -> Ref:
    """A version from the release records; an alias, which moves, from the registry."""
    store = Store(place)
    versions: dict[int, Ref] = {}
    for ref in store.refs(Release.KIND):
        if store.get(ref, Release).model == name:
            registered = store.side(ref, "registry") or {}
            versions[registered.get("version", 0)] = ref
    if not versions or (version is not None and int(version) not in versions):
        known = ", ".join(str(number) for number in sorted(versions)) or "none"
        raise RecordError(
            "no release here is registered as this",
            where=f"models:/{name}/{version}" if version else f"models:/{name}@{alias}",
            hint=f"Versions of {name} made in this workspace: {known}",
        )
    if version is not None:
        return versions[int(version)]
    from workbench.tracking import Tracker

    services.up(place, ("mlflow",))
    uri = services.environment(place, ("mlflow",))["MLFLOW_TRACKING_URI"]
    return Tracker(uri, "workbench").release_of(name, alias=str(alias))
