"""Shadow mode: a candidate answers beside the champion, and nothing of it reaches the vehicle.

The candidate runs in a process of its own, at low priority, and is stopped while the
champion answers: the champion has the machine to itself. Frames wait in a few slots of shared
memory; when they are full, a frame is not shown to the candidate, and that is counted. The champion
never waits.

    with ShadowProcess(folder, digest, file="int8.cpu.onnx") as shadow:
        run_shadow(runtime, shadow, sources, FrameSample(max_bytes, seed=0))
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from workbench.core.errors import ServiceError
from workbench.core.processes import die_with_parent
from workbench.core.types import Json
from workbench.deployment.runtime import Answer, Runtime, load_bundle
from workbench.detection.preprocessing import Pixels

__all__ = ["ShadowProcess"]

_SLOTS: Final = 4
_SLOT_BYTES: Final = 3 * 4096 * 2160
_START_S: Final = 120.0
_NICENESS: Final = 10  # beside other programs; the champion stops it


@dataclass(frozen=True)
class ShadowPair:
    """One frame that both models answered."""

    champion: Answer
    candidate: Answer


class ShadowProcess:
    """A candidate in a process of its own.

    Args:
        bundle: Folder of the candidate's bundle.
        digest: Expected digest of its manifest, which lists the digest of every other file.
        file: Model file of the bundle.
        score: Boxes with a lower score are left out; None for the bundle's threshold.

    Attributes:
        dropped: Frames that the candidate was not shown, because its slots were full.
    """

    def __init__(self, bundle: Path, digest: str, *, file: str, score: float | None = None) -> None:
        self.dropped = 0
        # tmpfs where there is one: the champion writes memory and no disk.
        memory = Path("/dev/shm")  # noqa: S108
        self._folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        path = Path(self._folder.name) / "frames"
        with path.open("w+b") as stream:
            stream.truncate(_SLOTS * _SLOT_BYTES)  # sparse until written
            self._memory = mmap.mmap(stream.fileno(), 0)
        command = [sys.executable, "-m", __spec__.name, str(bundle), digest, str(path)]
        command += ["--file", file, *(["--score", str(score)] if score is not None else [])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._waiting: dict[int, Answer] = {}
        self._text = b""
        self._pairs: list[ShadowPair] = []
        streams = (self._process.stdin, self._process.stdout)
        self._input, self._output = (-1 if one is None else one.fileno() for one in streams)
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)
        try:
            self._ready(bundle)
        except BaseException:
            self.close()
            raise

    def pause(self) -> None:
        """Stop the candidate: the champion has a frame to answer."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the candidate go on."""
        self._signal(signal.SIGCONT)

    def offer(self, answer: Answer, image: Pixels) -> bool:
        """Show the candidate a frame that the champion has answered; never waits.

        Args:
            image: RGB uint8 ``[height, width, 3]``.

        Returns:
            Whether there was a free slot. If not, the frame is counted in ``dropped``.
        """
        self._receive()
        free = next((slot for slot in range(_SLOTS) if slot not in self._waiting), None)
        if free is None or image.nbytes > _SLOT_BYTES or self._process.poll() is not None:
            self.dropped += 1
            return False
        view = np.frombuffer(self._memory, np.uint8, image.size, free * _SLOT_BYTES)
        view[:] = image.reshape(-1)
        job = {"slot": free, "shape": list(image.shape), "file": answer.file,
               "sequence": answer.sequence, "frame": answer.frame}  # fmt: skip
        try:
            os.write(self._input, json.dumps(job).encode() + b"\n")  # a few of these always fit
        except OSError:
            self.dropped += 1
            return False
        self._waiting[free] = answer
        return True

    def collect(self, *, wait_s: float = 0.0) -> list[ShadowPair]:
        """Frames that the candidate has answered since the last call.

        Args:
            wait_s: Wait so long for those that it was shown; for the end of a drive.
        """
        deadline = time.monotonic() + wait_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            self._receive()
            while self._waiting and self._process.poll() is None:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    break
                self._receive()
        found, self._pairs = self._pairs, []
        return found

    def close(self) -> None:
        """End the candidate."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
        with contextlib.suppress(BufferError):
            self._memory.close()
        self._folder.cleanup()

    def __enter__(self) -> ShadowProcess:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _ready(self, bundle: Path) -> None:
        deadline = time.monotonic() + _START_S
        while not self._text.endswith(b"\n"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServiceError("the shadow model does not start", where=bundle)
            self._read()
            time.sleep(0.01)
        self._text = b""

    def _receive(self) -> None:
        self._read()
        *lines, self._text = self._text.split(b"\n")
        for line in lines:
            found = json.loads(line)
            champion = self._waiting.pop(found["slot"])
            self._pairs.append(ShadowPair(champion, Answer.model_validate(found["answer"])))

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while content := os.read(self._output, 1 << 16):
                self._text += content

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)


def _serve(options: argparse.Namespace) -> None:
    """Answer frames from shared memory, one line a frame."""
    die_with_parent()
    bundle = load_bundle(options.bundle, file=options.file, threads=1)
    if bundle.digest != options.digest:
        sys.exit("the bundle has changed")
    runtime = Runtime([bundle], score=options.score)
    with options.memory.open("r+b") as stream:
        memory = mmap.mmap(stream.fileno(), 0)
    os.nice(_NICENESS)
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        job: Mapping[str, Json] = json.loads(line)
        height, width, channels = (int(side) for side in job["shape"])
        slot, size = int(str(job["slot"])), height * width * channels
        image = np.frombuffer(memory, np.uint8, size, slot * _SLOT_BYTES)
        answer = runtime.answer(
            image.reshape(height, width, channels),
            file=str(job["file"]),
            sequence=str(job["sequence"]),
            frame=None if job["frame"] is None else str(job["frame"]),
        )
        result = {"slot": slot, "answer": answer.model_dump(mode="json")}
        print(json.dumps(result), flush=True)


def main() -> None:
    """Run a candidate for `ShadowProcess`."""
    parser = argparse.ArgumentParser(prog="python -m workbench.deployment.shadow")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("digest")
    parser.add_argument("memory", type=Path)
    parser.add_argument("--file", required=True)
    parser.add_argument("--score", type=float)
    _serve(parser.parse_args())


if __name__ == "__main__":
    main()
