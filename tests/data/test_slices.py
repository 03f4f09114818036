"""Conditions and slices have one definition."""

from __future__ import annotations

import pytest

from workbench.core.errors import ParameterError
from workbench.data.schema import FRONT_CAMERA
from workbench.data.slices import (
    STANDARD_SLICES,
    check_slice_name,
    describe_conditions,
    frame_conditions,
    frame_slices,
    light_and_weather,
    parse_conditions,
)
from workbench.records.frames import Conditions, Frame, Light, Role, Weather, condition_values

NIGHT = Frame(
    id="a" * 64,
    drive="d",
    index=0,
    width=9,
    height=9,
    suffix=".jpg",
    conditions=Conditions(light=Light.NIGHT, weather=Weather.RAIN, construction=True),
    role=Role.SAFETY,
    events=("cut_in",),
    attributes={"road": "city"},
)
UNKNOWN = NIGHT.model_copy(update={"conditions": Conditions(), "role": None, "events": ()})


def test_names_of_conditions() -> None:
    names = ("light=night", "weather=rain", "construction", "event=cut_in")
    assert frame_conditions(NIGHT) == names
    assert frame_conditions(NIGHT, ("weather",)) == ("weather=rain",)
    assert frame_conditions(UNKNOWN) == ()
    assert describe_conditions(NIGHT) == "night, rain, road works"
    assert describe_conditions(UNKNOWN) == "unknown"
    assert light_and_weather(NIGHT) == "night/rain"


def test_every_frame_predicate_of_a_slice_is_a_condition() -> None:
    names = {part.name for part in STANDARD_SLICES if part.frame and part.frame(NIGHT)}
    assert names == {"light=night", "weather=rain", "construction", "night_vru"}
    assert not any(part.frame(UNKNOWN) for part in STANDARD_SLICES if part.frame)


def test_slices_that_a_frame_can_be_in_are_valid_names() -> None:
    for name in (*frame_slices(NIGHT, ["pedestrian"], FRONT_CAMERA), "all"):
        check_slice_name(name)
    with pytest.raises(ParameterError, match="unknown slice 'night'") as error:
        check_slice_name("night")
    assert "light=night" in str(error.value.hint)
    with pytest.raises(ParameterError, match="unknown slice"):
        check_slice_name("event=cut_in", ("light", "weather"))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("light", ("night",)),
        ("construction", ("yes",)),
        ("event", ("cut_in",)),
        ("role", ("safety",)),
        ("road", ("city",)),
        ("colour", ()),
    ],
)
def test_values_of_a_condition(key: str, values: tuple[str, ...]) -> None:
    assert condition_values(NIGHT, key) == values


def test_conditions_are_parsed() -> None:
    text = "class=pedestrian + light=night+road=city"
    assert parse_conditions(text, FRONT_CAMERA) == (
        ("class", "pedestrian"),
        ("light", "night"),
        ("road", "city"),
    )
    for invalid in ("night", "light=", "light=nihgt", "class=tram", ""):
        with pytest.raises(ParameterError):
            parse_conditions(invalid, FRONT_CAMERA)
