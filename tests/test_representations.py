"""What notebooks and logs show of public types: short, however much they hold."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench
from workbench import data
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Drive, Frame, Label, Origin
from workbench.records.types import RECORD_TYPES

MANY = tuple(f"{number:064x}" for number in range(50_000))
NEEDS_REAL_FIELDS = {"Dataset", "Evaluation", "Comparison", "Model", "Predictions", "Workbench"}
"""They count what they hold; `test_a_big_dataset_is_short` and their own tests make real ones."""


def public_dataclasses() -> Iterator[type]:
    seen = set()
    root = Path(workbench.__file__).parent
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        # The last two import FiftyOne, which stays with the database of its first import.
        if name.endswith(("sitecustomize", "__main__", "fiftyone.similarity", "fiftyone_plugin")):
            continue
        loaded = importlib.import_module(name)
        for public in getattr(loaded, "__all__", ()):
            found = getattr(loaded, public)
            if isinstance(found, type) and dataclasses.is_dataclass(found) and found not in seen:
                seen.add(found)
                yield found


def holds_much(cls: Any) -> bool:
    """Whether a field of a dataclass can hold any number of things."""
    words = ("tuple[", "Mapping", "dict[", "list[", "Sequence", "NDArray", "Dataset", "bytes")
    fields = [str(field.type) for field in dataclasses.fields(cls) if field.repr]
    fixed = "tuple[float, float, float, float]"
    return any(word in text.replace(fixed, "") for text in fields for word in words)


CLASSES = [cls for cls in public_dataclasses() if holds_much(cls)]


def filled(cls: Any) -> Any:
    """An object with a great deal in every field, whatever its type."""
    instance = object.__new__(cls)
    for position, field in enumerate(dataclasses.fields(cls)):
        value = (MANY, {name: name for name in MANY}, np.zeros((300, 300)), "x" * 10**6)
        object.__setattr__(instance, field.name, value[position % len(value)])
    return instance


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_public_classes_are_short(cls: type) -> None:
    if cls.__name__ in NEEDS_REAL_FIELDS:
        assert "_repr_html_" in dir(cls)
        return
    instance = filled(cls)
    assert len(repr(instance)) < 2000
    assert len(instance._repr_html_()) < 8000


@pytest.mark.parametrize("cls", list(RECORD_TYPES.values()), ids=list(RECORD_TYPES))
def test_records_are_short(cls: Any) -> None:
    values = {
        name: (MANY, {key: key for key in MANY}, "x" * 10**6)[position % 3]
        for position, name in enumerate(cls.model_fields)
    }
    record = cls.model_construct(**values)
    assert len(repr(record)) < 2000
    assert len(str(record)) < 2000
    assert len(record._repr_html_()) < 8000
    assert cls.__name__ in repr(record)


def test_a_big_dataset_is_short() -> None:
    frames = tuple(
        Frame(id=name, drive="d", index=number, width=10, height=10, suffix=".png")
        for number, name in enumerate(MANY[:5000])
    )
    box = Box(x=1, y=2, w=3, h=4)
    labels = tuple(
        Label(frame=name, cls="car", box=box, origin=Origin.HUMAN) for name in MANY[:5000]
    )
    dataset = Dataset("big", data.FRONT_CAMERA, (Drive(id="d"),), frames, labels)
    assert len(repr(dataset)) < 2000
    assert len(dataset._repr_html_()) < 8000


def test_small_values_are_shown_whole() -> None:
    assert repr(Box(x=1, y=2, w=3, h=4)) == "Box(x=1.0, y=2.0, w=3.0, h=4.0)"
