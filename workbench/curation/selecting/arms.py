"""Arms: what would be known if only one arm of a selection had been labelled."""

from __future__ import annotations

from dataclasses import replace

from workbench.errors import ParameterError
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.frames import Role
from workbench.records.store import Store
from workbench.records.types import Arm, Selection


def one_arm(store: Store, dataset_ref: Ref, selection_ref: Ref, arm: Arm) -> Ref:
    """A version in which the other arms' frames are back in the pool, without their labels.

    Trained on such versions, two models differ in nothing but the arm whose labels they saw. The
    version has a name of its own, so that nobody takes it for the newest of the dataset.

    Raises:
        ParameterError: The selection has no such arm, or none of it was labelled.
    """
    selection = store.get(selection_ref, Selection)
    dataset = datasets.load(store, dataset_ref)
    arms = {choice.frame: choice.arm for choice in selection.chosen}
    others = {frame for frame, its in arms.items() if its != arm}
    learned = {frame.id for frame in dataset.with_roles(Role.TRAIN).frames}
    if not any(arms.get(frame) == arm for frame in learned):
        raise ParameterError(
            f"no frame of the {arm} arm is labelled in this dataset",
            where=dataset_ref,
            hint=f"The selection's arms are: {', '.join(sorted(set(arms.values())))};"
            " collect and merge their labels first",
        )
    back = others & learned
    made = replace(
        dataset,
        name=f"{dataset.name}-{arm}",
        frames=tuple(
            frame.model_copy(update={"role": Role.POOL}) if frame.id in back else frame
            for frame in dataset.frames
        ),
        labels=tuple(label for label in dataset.labels if label.frame not in back),
        ref=None,
    )
    return datasets.save(store, made, made_by="arm", parents=[dataset_ref, selection_ref])
