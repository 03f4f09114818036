"""Answering many frames: what was answered is in a file, and a session that died goes on there."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import IO, Any

import numpy as np
from pydantic import ValidationError

from workbench import digest
from workbench.deployment.answers import Answer, Status
from workbench.deployment.runtime import Runtime
from workbench.deployment.sources import Source, decoded
from workbench.errors import DataError, ParameterError
from workbench.perception.preprocessing import Pixels

Progress = Callable[[int, int], None]
Draw = Callable[[Pixels, Answer], None]


@dataclass
class Summary:
    """A session: answers by status, and how long this part of it took."""

    frames: int = 0
    resumed: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    boxes: int = 0
    ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, answer: Answer) -> None:
        self.frames += 1
        self.statuses[answer.status] += 1
        self.boxes += len(answer.boxes)
        if answer.ms is not None:
            self.ms.append(answer.ms)

    def as_json(self) -> dict[str, Any]:
        """``latency_ms`` is of preprocessing, network and decoding of the frames asked about."""
        times = np.array(self.ms)
        here = self.frames - self.resumed
        return {
            "frames": self.frames,
            "resumed": self.resumed,
            "statuses": {status: self.statuses[status] for status in Status},
            "boxes": self.boxes,
            "latency_ms": None
            if not len(times)
            else {
                "median": round(float(np.median(times)), 3),
                "p99": round(float(np.quantile(times, 0.99)), 3),
                "max": round(float(times.max()), 3),
            },
            "images_per_second": round(here / self.seconds, 2) if here and self.seconds else None,
        }


def run(
    runtime: Runtime,
    sources: Sequence[Source],
    *,
    output: Path | None = None,
    draw: Draw | None = None,
    threads: int = 2,
    progress: Progress | None = None,
) -> Summary:
    """Answer all frames in order.

    Args:
        output: JSON lines: a head that says what answers, then an answer a line. If it is there
            from the same bundles, what it answers is not asked again; a line that was cut off when
            a session died is.
        draw: Called with every image that could be read and its answer.
        threads: That decode images beside the network.

    Raises:
        ParameterError: ``output`` holds something else, or another bundle's answers.
    """
    summary = Summary()
    head = _head(runtime)
    done = _resume(runtime, sources, output, head, summary) if output else 0
    stream = _append(output, head, fresh=not done) if output else None
    began = perf_counter()
    try:
        for source, image in decoded(sources[done:], threads=threads):
            answer = runtime.answer(
                image, file=source.file, sequence=source.sequence, frame=source.frame
            )
            summary.add(answer)
            if stream:
                stream.write(_line(answer.model_dump(mode="json")))
                stream.flush()
            if draw and not isinstance(image, DataError):
                draw(image, answer)
            if progress:
                progress(summary.frames, len(sources))
    finally:
        if stream:
            stream.close()
    summary.seconds = perf_counter() - began
    return summary


def _head(runtime: Runtime) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "bundles": [
            {"digest": bundle.digest, "file": bundle.file, "simulated": bundle.simulated}
            for bundle in runtime.bundles
        ],
        "budget_ms": runtime.budget_ms,
        "score": runtime.score,
        "classes": list(runtime.classes),
    }


def _resume(
    runtime: Runtime,
    sources: Sequence[Source],
    output: Path,
    head: dict[str, Any],
    summary: Summary,
) -> int:
    """How many frames the file answers already; what is no whole line is cut off."""
    if not output.exists() or not output.stat().st_size:
        return 0
    content = output.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    if not lines:  # died while it wrote the head
        os.truncate(output, 0)
        return 0
    try:
        there = json.loads(lines[0])
        answers = [Answer.model_validate_json(line) for line in lines[1:]]
    except (ValueError, ValidationError) as error:
        raise ParameterError(
            "output file holds something else", where=output, hint="Name another file"
        ) from error
    same = len(answers) <= len(sources) and all(
        answer.file == source.file for answer, source in zip(answers, sources, strict=False)
    )
    if there != head or not same:
        raise ParameterError(
            "output file holds answers of other bundles, settings or frames",
            where=output,
            hint="Name another file, or delete this one to answer all frames again",
        )
    for answer in answers:
        summary.add(answer)
        if answer.status is Status.OK:
            runtime.memory.keep(answer.sequence, answer.boxes)
        else:
            runtime.memory.recall(answer.sequence)
    summary.ms.clear()  # of another process on a machine that was busy otherwise
    summary.resumed = len(answers)
    os.truncate(output, sum(len(line) + 1 for line in lines))
    return len(answers)


def _append(output: Path, head: dict[str, Any], *, fresh: bool) -> IO[bytes]:
    output.parent.mkdir(parents=True, exist_ok=True)
    stream = output.open("ab")
    if fresh and not stream.tell():
        stream.write(_line(head))
        stream.flush()
    return stream


def _line(value: dict[str, Any]) -> bytes:
    return digest.canonical_json(value) + b"\n"
