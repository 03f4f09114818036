"""Light and weather in the words of other sources.

`_CONDITION_WORDS` is the one table of words; ``ingest(..., conditions={"drizzle": "rain"})``
extends it. A word that is in neither is reported and counts as ``unknown``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.data.source import Source, SourceFrame
from workbench.records.frames import UNKNOWN, Conditions, Light, Weather
from workbench.records.types import Quarantined

__all__ = ()

_LIGHT: dict[str, Light] = {
    **{light.value: light for light in Light},
    **dict.fromkeys(("daytime", "daylight", "sunny", "noon", "morning", "afternoon"), Light.DAY),
    **dict.fromkeys(("dawn", "dawn/dusk", "dusk/dawn", "dawn_dusk", "twilight"), Light.DUSK),
    **dict.fromkeys(("sunset", "sunrise", "evening", "low_sun"), Light.DUSK),
    **dict.fromkeys(("nighttime", "night_time", "dark", "darkness", "midnight"), Light.NIGHT),
}
# Overcast and cloudy say that nothing falls: the road is seen as on a clear day.
_WEATHER: dict[str, Weather] = {
    **{weather.value: weather for weather in Weather},
    **dict.fromkeys(("sunny", "dry", "fair", "fine", "good", "normal"), Weather.CLEAR),
    **dict.fromkeys(("overcast", "cloudy", "clouds", "partly_cloudy"), Weather.CLEAR),
    **dict.fromkeys(("rainy", "raining", "drizzle", "wet", "shower"), Weather.RAIN),
    **dict.fromkeys(("heavy_rain", "light_rain", "thunderstorm"), Weather.RAIN),
    **dict.fromkeys(("foggy", "mist", "misty", "haze", "hazy"), Weather.FOG),
    **dict.fromkeys(("snowy", "snowing", "snowfall", "sleet", "blizzard"), Weather.SNOW),
}
_SAYS_NOTHING = frozenset({"", UNKNOWN, "undefined", "none", "null", "n/a", "na", "other", "-1"})

_CONDITION_WORDS: dict[str, dict[str, Light] | dict[str, Weather]] = {
    "light": _LIGHT,
    "weather": _WEATHER,
}
"""Our value by word of a source, for light and weather."""


def apply_conditions(source: Source, extra: Mapping[str, str]) -> Source:
    """``source`` with its words for light and weather translated; unknown words become problems.

    Args:
        extra: Values of `Light` or `Weather` by word, beside the table.

    Raises:
        ParameterError: A value of ``extra`` is neither light nor weather.
    """
    tables = _tables(extra)
    unknown: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    frames = []
    for frame in source.frames:
        values: dict[str, Any] = {}
        for kind, word in frame.condition_words:
            key = _normalize_word(word)
            value = tables[kind].get(key)
            if value is not None:
                values[kind] = value
            elif key not in _SAYS_NOTHING:
                unknown[kind, word] += 1
                first.setdefault((kind, word), frame.name)
        frames.append(_with_conditions(frame, values))
    problems = [
        Quarantined(
            file=first[kind, word],
            reason="mislabelled",
            detail=f"{kind} {word!r} ({counted(count, 'image')}) is not a known word: the image is "
            f"kept with {kind} unknown; to map the word, ingest with --condition {word!r}=VALUE",
        )
        for (kind, word), count in sorted(unknown.items())
    ]
    return replace(source, frames=tuple(frames), problems=(*source.problems, *problems))


def _normalize_word(word: str) -> str:
    """A word as the table has it: lower case, with underscores for spaces and dashes."""
    return "_".join(word.strip().lower().replace("-", " ").replace("_", " ").split())


def _tables(extra: Mapping[str, str]) -> dict[str, dict[str, Light | Weather]]:
    tables: dict[str, dict[str, Light | Weather]] = {"light": {**_LIGHT}, "weather": {**_WEATHER}}
    for word, value in extra.items():
        lights, weathers = set(Light), set(Weather)
        if value not in lights | weathers:
            raise ParameterError(
                f"cannot map the condition {word!r} to {value!r}: no such value",
                hint=f"Use one of {', '.join(dict.fromkeys((*Light, *Weather)))}",
            )
        if value in lights:
            tables["light"][_normalize_word(word)] = Light(value)
        if value in weathers:
            tables["weather"][_normalize_word(word)] = Weather(value)
    return tables


def _with_conditions(frame: SourceFrame, values: dict[str, Any]) -> SourceFrame:
    if not values:
        return frame
    return replace(frame, conditions=Conditions(**{**dict(frame.conditions), **values}))
