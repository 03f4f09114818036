"""Datasets as used in a notebook: count, filter, show."""

from __future__ import annotations

import pytest

from workbench.core.errors import ParameterError
from workbench.records.dataset import Dataset
from workbench.records.frames import (
    Box,
    Conditions,
    Drive,
    Frame,
    Label,
    LabelSchema,
    Light,
    Origin,
    Role,
)

LIGHTS = (Light.DAY, Light.NIGHT, Light.NIGHT)
ROLES = (Role.SEED, Role.POOL, Role.SAFETY)


@pytest.fixture
def dataset() -> Dataset:
    frames = tuple(
        Frame(
            id=str(n) * 64,
            drive=f"d{n}",
            index=n,
            width=64,
            height=48,
            suffix=".png",
            conditions=Conditions(light=LIGHTS[n]),
            role=ROLES[n],
            attributes={"road": "city"} if n == 2 else {},
            events=("cut_in", "overtaking") if n == 0 else (),
        )
        for n in range(3)
    )
    box = Box(x=1, y=2, w=3, h=4)
    labels = tuple(
        Label(frame=frames[n].id, cls=cls, box=box, origin=Origin.IMPORTED)
        for n, cls in ((0, "car"), (1, "car"), (1, "pedestrian"))
    )
    drives = tuple(Drive(id=frame.drive) for frame in frames)
    schema = LabelSchema(
        name="two", version="1", classes=("car", "pedestrian"), vulnerable=("pedestrian",)
    )
    return Dataset("three", schema, drives, frames, labels, ref="dataset/" + "a" * 64)


def test_conditions_filter_frames_with_their_labels_and_drives(dataset: Dataset) -> None:
    night = dataset.where(light="night")
    assert [frame.index for frame in night] == [1, 2]
    assert len(night.labels) == 2 and [drive.id for drive in night.drives] == ["d1", "d2"]
    assert night.ref is None
    assert len(dataset.where(light="night", cls="pedestrian")) == 1
    assert len(dataset.where(light=["day", "night"])) == 3
    assert len(dataset.where(road="city")) == 1
    assert len(dataset.where(construction=False)) == 3
    assert len(dataset.where(event=["cut_in", "overtaking"])) == 1
    assert len(dataset.where(lambda frame: frame.index == 0, light="night")) == 0


def test_roles_by_name(dataset: Dataset) -> None:
    assert len(dataset.role("safety")) == 1
    assert dataset.role("seed", "pool") == dataset.role(Role.SEED, Role.POOL)


def test_an_unknown_condition_or_value_names_the_known_ones(dataset: Dataset) -> None:
    with pytest.raises(ParameterError, match="unknown condition 'colour'"):
        dataset.where(colour="red")
    with pytest.raises(ParameterError) as error:
        dataset.where(light="nihgt")
    assert "night" in str(error.value.hint)
    with pytest.raises(ParameterError):
        dataset.where(cls="tram")


def test_repr_html_and_table(dataset: Dataset) -> None:
    assert repr(dataset) == "Dataset('three': 3 frames, 3 labels, 3 drives)"
    assert "pedestrian 1" in dataset._repr_html_()
    table = dataset.to_pandas()
    assert list(table["labels"]) == [1, 2, 0] and list(table["light"]) == ["day", "night", "night"]
