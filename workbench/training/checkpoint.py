"""Keeping a trained model as a record."""

from __future__ import annotations

from workbench import digest
from workbench.records.base import Ref
from workbench.records.store import Store
from workbench.records.types import Checkpoint
from workbench.training.trained import Trained

WEIGHTS = "weights.safetensors"
CURVES = "curves.json"


def save(store: Store, trained: Trained, dataset: Ref, *, parent: Ref | None = None) -> Ref:
    """Write a `Checkpoint` record; the same training gives the same reference.

    Args:
        dataset: The version that was learned from.
        parent: The checkpoint it started from.
    """
    from safetensors.torch import save as to_bytes

    record = Checkpoint(
        dataset=dataset,
        parent=parent,
        classes=trained.detector.classes,
        architecture=trained.detector.model_dump(mode="json"),
        training=trained.config.as_json() | {"frames": trained.frames} | trained.facts,
        preprocessing=trained.preprocessing.model_dump(mode="json"),
        conditions=trained.conditions,
        family=trained.detector.architecture,
        supplier=trained.supplier,
    )
    payload = {
        # No metadata: safetensors does not write several keys in a fixed order.
        WEIGHTS: to_bytes(trained.weights),
        CURVES: digest.canonical_json(trained.curves),
    }
    speed = {
        "seconds": trained.seconds,
        "images_per_second": trained.images_per_second,
        "waited": trained.waited,
        "peak_mib": trained.peak_mib,
    }
    return store.put(record, payload, side={"speed": speed})
