"""Query: what a pool is searched for, where it is not simply what is rare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding.encoder import Encoder
from workbench.curation.finding import Exemplar
from workbench.errors import ParameterError
from workbench.records.base import Ref
from workbench.records.frames import Frame


@dataclass(frozen=True)
class Query:
    """What to look for.

    Attributes:
        like: Frames, or boxes on them, of which more is wanted; any frames of the dataset.
        unlike: What it should not be like.
        text: What it should show, in words; the encoder must know words.
        other_models: Checkpoints whose disagreement with the model counts as a signal.
        encoder: Whose vectors to use, by default the model's own.
        signals: Which signals of `workbench.curation.finding` rank the pool; all by default.
    """

    like: tuple[Exemplar, ...] = ()
    unlike: tuple[Exemplar, ...] = ()
    text: str | None = None
    other_models: tuple[Ref, ...] = ()
    encoder: Encoder | None = None
    signals: tuple[str, ...] = ()

    @property
    def is_search(self) -> bool:
        """Whether frames are wanted for what they show, not for being rare."""
        return bool(self.like) or self.text is not None

    @property
    def frames(self) -> tuple[str, ...]:
        """The exemplars' frames."""
        return tuple(dict.fromkeys(one.frame for one in (*self.like, *self.unlike)))

    def as_json(self) -> dict[str, Any]:
        """What of it shapes a selection, for the record."""
        said: dict[str, Any] = {
            "like": [_written(one) for one in self.like],
            "unlike": [_written(one) for one in self.unlike],
            "text": self.text,
            "other_models": list(self.other_models),
        }
        return {key: value for key, value in said.items() if value}


@dataclass(frozen=True)
class OneText:
    """An encoder of many texts, asked for one."""

    model: str
    _encode: Callable[[Sequence[str]], NDArray[np.float32]]

    @classmethod
    def of(cls, encoder: Any) -> OneText:
        """Raises `ParameterError` for an encoder that reads no text."""
        encode = getattr(encoder, "encode_text", None)
        if encode is None:
            raise ParameterError(
                "the encoder has no words",
                where=type(encoder).__name__,
                hint="Give an --encoder with a text tower, such as a folder with CLIP or SigLIP",
            )
        return cls(encoder.model, encode)

    def encode_text(self, text: str) -> NDArray[np.float32]:
        """Float32 ``[d]``."""
        vector: NDArray[np.float32] = self._encode([text])[0]
        return vector


def exemplar(frames: Sequence[Frame], written: str) -> Exemplar:
    """An exemplar as people write it: ``FRAME`` or ``FRAME:x,y,w,h``.

    Args:
        frames: Where it is looked for.
        written: A frame's digest or the first digits of it, or ``DRIVE@INDEX``; then a box in
            pixels of the frame.

    Raises:
        ParameterError: No frame or several are meant, or the box is none or lies outside.
    """
    name, _, box = written.rpartition(":") if written.count(",") == 3 else (written, "", "")
    frame = _named(frames, name)
    if not box:
        return Exemplar(frame.id)
    try:
        x, y, w, h = (float(number) for number in box.split(","))
    except ValueError as error:
        raise ParameterError("not a box", where=written, hint="Write x,y,w,h in pixels") from error
    inside = 0 <= x < frame.width and 0 <= y < frame.height
    if not (inside and w > 0 and h > 0 and x + w <= frame.width and y + h <= frame.height):
        raise ParameterError(
            "the exemplar's box leaves the picture",
            where=written,
            hint=f"The frame is {frame.width} x {frame.height} pixels; a box is x,y,w,h",
        )
    return Exemplar(frame.id, (x, y, w, h))


def _named(frames: Sequence[Frame], name: str) -> Frame:
    drive, at, index = name.rpartition("@")
    if at and index.isdigit():
        found = [one for one in frames if one.drive == drive and one.index == int(index)]
        near = [f"{one.drive}@{one.index}" for one in _by_index(frames, drive, int(index))]
    else:
        found = [one for one in frames if name and one.id.startswith(name.lower())]
        near = [one.id[:12] for one in _by_digits(frames, name.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(one.id[: len(name) + 4] for one in found[:5])
        raise ParameterError(
            f"{len(found)} frames begin like this: {several}",
            where=name,
            hint="Give more digits",
        )
    raise ParameterError(
        f"none of these {len(frames)} frames is the exemplar that was named",
        where=name or "an empty name",
        hint=f"Nearest names: {', '.join(near)}. A frame is its digest, the first digits of it,"
        " or DRIVE@INDEX",
    )


def _by_digits(frames: Sequence[Frame], name: str) -> list[Frame]:
    """Those whose names share most first digits with ``name``."""

    def shared(frame: Frame) -> int:
        pairs = zip(frame.id, name, strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), len(name))

    return sorted(frames, key=lambda one: (-shared(one), one.id))[:3]


def _by_index(frames: Sequence[Frame], drive: str, index: int) -> list[Frame]:
    same = [one for one in frames if one.drive == drive] or list(frames)
    return sorted(same, key=lambda one: (abs(one.index - index), one.drive))[:3]


def _written(one: Exemplar) -> dict[str, Any]:
    return {"frame": one.frame, **({"box": list(one.box)} if one.box else {})}
