"""A store of thousands of small records, written without syncing."""

from __future__ import annotations

from itertools import pairwise

from workbench.core import digest
from workbench.records.base import Record, Ref, make_ref
from workbench.records.model_types import StepRun
from workbench.records.store import Store
from workbench.records.types import Selection

NOTHING = "0" * 64


def put(store: Store, record: Record) -> Ref:
    """Like `Store.put`, without syncing."""
    body = {**record.model_dump(mode="json"), "kind": record.KIND, "payload": {}}
    content = digest.canonical_json(body)
    ref = make_ref(record.KIND, digest.of_bytes(content))
    folder = store.folder(ref)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_bytes(content)
    (folder / "COMPLETE").touch()
    return ref


def chains(store: Store, count: int, length: int) -> tuple[Ref, Ref]:
    """``count`` chains of runs and selections, ``length`` of each; the first and last selection.

    Every chain starts from the same selection.
    """
    first = put(
        store, Selection(dataset="dataset/" + NOTHING, budget=0, seed=0, method="m", chosen=())
    )
    last = first
    for number in range(count):
        made = [first]
        for step in range(length):
            chosen = Selection(
                dataset="dataset/" + NOTHING,
                budget=step + 1,
                seed=number + 1,
                method="m",
                chosen=(),
            )
            made.append(put(store, chosen))
        for step, (given, output) in enumerate(pairwise(made)):
            put(
                store,
                StepRun(
                    step=f"s{step}",
                    key=f"{number:032x}{step:032x}",
                    notebook="notebook/" + NOTHING,
                    environment="environment/" + NOTHING,
                    modules=NOTHING,
                    parameters={"step": step},
                    inputs={"given": given},
                    outputs={"chosen": output},
                ),
            )
        last = made[-1]
    return first, last
