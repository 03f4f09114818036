"""What a change of the label schema does to a project, and to a dataset that is labeled already.

A new version may add classes, questions and shapes: everything drawn before still means the same.
A class that is gone needs a place to go to, which the new version's ``mapping`` names: another
class, ``ignore`` or ``drop``. Anything else is refused, and the refusal says why.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from workbench.errors import ParameterError
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.frames import ANY_CLASS, Label, LabelSchema, Question
from workbench.records.store import Store

_IGNORE, _DROP = "ignore", "drop"


def only_adds(old: LabelSchema, new: LabelSchema) -> list[str]:
    """Why ``new`` does more than add to ``old``; nothing when whatever was drawn stays valid."""
    gone = [name for name in old.classes if name not in new.classes]
    why = [f"class {name!r} is gone" for name in gone]
    why += [f"{shape} shapes are gone" for shape in old.shapes if shape not in new.shapes]
    why += _fewer("box", old.box_questions, new.box_questions)
    why += _fewer("frame", old.frame_questions, new.frame_questions)
    if old.tracks and not new.tracks:
        why.append("tracks are gone")
    return why


def asks_the_same(one: LabelSchema, other: LabelSchema) -> bool:
    """Whether labelers are asked the same, whatever else the schemas say."""
    return one.classes == other.classes and not only_adds(one, other) and not only_adds(other, one)


def migrate(store: Store, dataset_ref: Ref, schema: LabelSchema) -> tuple[Ref, dict[str, int]]:
    """A dataset under a newer version of its schema, and how many labels went where.

    Raises:
        ParameterError: The new schema is no later version of the old one, or does not say what
            becomes of labels that there are.
    """
    dataset = datasets.load(store, dataset_ref)
    old = dataset.label_schema
    _check_later(old, schema)
    homeless = sorted(
        {
            label.cls
            for label in dataset.labels
            if label.cls != ANY_CLASS and schema.class_of(label.cls) is None
        }
    )
    if homeless:
        counts = Counter(label.cls for label in dataset.labels)
        told = ", ".join(f"{name} ({counts[name]} labels)" for name in homeless)
        raise ParameterError(
            f"schema {schema.name} version {schema.version} has no place for {told}",
            where=dataset_ref,
            hint="Name in its `mapping` the class each goes to, or `ignore`, or `drop`",
        )
    moved: Counter[str] = Counter()
    labels = [_moved(label, schema, moved) for label in dataset.labels]
    kept = tuple(label for label in labels if label is not None)
    result = replace(dataset, label_schema=schema, labels=kept, ref=None)
    return datasets.save(store, result, made_by="migrate", parents=(dataset_ref,)), dict(moved)


def _check_later(old: LabelSchema, new: LabelSchema) -> None:
    if old.name != new.name or new.version <= old.version:
        raise ParameterError(
            f"{new.name} version {new.version} is no later version of {old.name}"
            f" version {old.version}",
            hint="Keep the schema's name and raise its version",
        )


def _moved(label: Label, schema: LabelSchema, moved: Counter[str]) -> Label | None:
    target = label.cls if label.cls == ANY_CLASS else schema.class_of(label.cls)
    if target == label.cls:
        return label
    moved[f"{label.cls} -> {target}"] += 1
    if target == _DROP:
        return None
    if target == _IGNORE:
        return label.model_copy(update={"cls": ANY_CLASS, "ignore": True})
    return label.model_copy(update={"cls": target})


def _fewer(what: str, old: tuple[Question, ...], new: tuple[Question, ...]) -> list[str]:
    later = {question.name: set(question.answers) for question in new}
    why = []
    for question in old:
        if question.name not in later:
            why.append(f"the {what} question {question.name!r} is gone")
        elif gone := [one for one in question.answers if one not in later[question.name]]:
            why.append(f"{what} question {question.name!r} lost the answer {', '.join(gone)}")
    return why
