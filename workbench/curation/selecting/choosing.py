"""Choosing by hand, and reading what was chosen before."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from workbench.errors import DataError
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.store import Store
from workbench.records.types import Choice, Selection

BY_HAND = "chosen by hand"
SCORES = "scores.jsonl"
"""Payload of a mined Selection: the scores of every frame of the pool, a line each."""


def choose(
    store: Store, dataset_ref: Ref, frames: Iterable[str], why: str, model_ref: Ref | None = None
) -> Ref:
    """Keep a person's choice, such as the frames of a tag, as a Selection like any other.

    Args:
        frames: Digests, most important first.
        why: In words; labelers read it beside every frame.

    Raises:
        DataError: No frames, or some that the dataset does not hold.
    """
    wanted = list(dict.fromkeys(frames))
    known = {frame.id for frame in datasets.load(store, dataset_ref).frames}
    strange = [frame for frame in wanted if frame not in known]
    if not wanted or strange:
        what = f"{len(strange)} frames are not in the dataset" if wanted else "no frames were given"
        raise DataError(
            what,
            where=strange[0] if strange else dataset_ref,
            hint="Name one frame at least, by its whole digest, of this version of the dataset",
        )
    chosen = tuple(
        Choice(frame=frame, rank=rank, score=1.0, reasons=(why,))
        for rank, frame in enumerate(wanted, start=1)
    )
    record = Selection(
        dataset=dataset_ref,
        model=model_ref,
        budget=len(chosen),
        seed=0,
        method=BY_HAND,
        chosen=chosen,
    )
    return store.put(record)


def is_mined(selection: Selection) -> bool:
    """Whether a pool was ranked for it; choices by hand and reviews of labels ranked none."""
    return "pool" in selection.parameters


def newest_selection(store: Store) -> Ref:
    """The last selection that `mine` made; raises `DataError` with what to run first."""
    for ref in reversed(list(store.refs(Selection.KIND))):
        if is_mined(store.get(ref, Selection)):
            return ref
    raise DataError(
        "nothing was mined yet",
        where=store.root,
        hint="Say `make run` first (or `workbench run pipelines/data_engine.yaml`), then come back",
    )


def read_scores(store: Store, selection_ref: Ref) -> dict[str, dict[str, Any]]:
    """Frame to its scores, as `mine` wrote them; empty for a selection made otherwise."""
    if SCORES not in store.payload_names(selection_ref):
        return {}
    lines = store.payload(selection_ref, SCORES).read_text().splitlines()
    return {row["frame"]: row for row in map(json.loads, lines)}
