"""The steps of a training, with what is kept and looked at between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from workbench.errors import DataError
from workbench.perception.preprocessing import Preprocessing
from workbench.training.config import TrainingConfig
from workbench.training.loader import Loader
from workbench.training.progress import Log, Progress
from workbench.training.trained import predictor_of
from workbench.training.watching import Watch

Told = Callable[[int, int], None]

_LEAST_BETWEEN_S = 10.0  # between two states: passes over few frames end every second


@dataclass
class Work:
    """The steps of a training, with what is kept and looked at between them."""

    run: Progress
    loader: Loader
    config: TrainingConfig
    watch: Watch | None
    spec: Preprocessing
    key: str
    folder: Path | None
    first: int = 0
    seconds: float = 0.0
    ended: str = ""
    _kept_at: float = 0.0

    @property
    def takes_held(self) -> bool:
        """Whether the result is an earlier model, not the last."""
        stopping = self.config.stopping
        return bool(self.run.held) and (stopping.patience > 0 or self.ended == "forgot")

    def carry_out(self, *, with_start: bool, progress: Told | None, log: Log | None) -> int:
        """Every step that is left; returns how many there are then in all."""
        total = self.run.total
        self.first = self.run.restore(self.folder, self.key)
        if self.first == 0 and with_start and self.watch:
            self._look(0, log)
        began = time.perf_counter()
        self._kept_at = began
        done = self.first
        try:
            if not self._has_ended(done):
                for step, batch in enumerate(self.loader.batches(done, total), start=done):
                    self.run.step(batch, step, log)
                    done = step + 1
                    if progress:
                        progress(done, total)
                    if self._is_time_to_look(done):
                        self._look(done, log)
                    self._keep(done)
                    if self.ended:
                        break
        except DataError:
            self._keep(done, now=True)  # whoever mends the data shall not lose the hours before
            raise
        finally:
            self.seconds = time.perf_counter() - began
        return done

    def _has_ended(self, done: int) -> bool:
        """Whether a training that is taken up had come to its end."""
        stopping, watched = self.config.stopping, self.run.watched
        if stopping.patience and watched.without_gain >= stopping.patience:
            self.ended = "stop"
        elif stopping.forget is not None and watched.looks:
            last = watched.looks[-1]
            self.ended = "forgot" if last["step"] and watched.lost(last["figures"]) else ""
        return bool(self.ended) or done >= self.run.total

    def _is_time_to_look(self, done: int) -> bool:
        every = self.config.stopping.every
        return self.watch is not None and (
            done == self.run.total or (every > 0 and done % every == 0)
        )

    def _look(self, done: int, log: Log | None) -> None:
        assert self.watch is not None  # noqa: S101 - for the type checker
        random = torch.get_rng_state()
        average = {name: value.cpu() for name, value in self.run.average.items()}
        predictor = predictor_of(self.run.model.config, average, self.spec)
        figures = self.watch.judge(predictor)
        torch.set_rng_state(random)
        verdict = self.run.watched.look(done, figures)
        if log:
            for name, value in figures.items():
                log(f"watched/{name}", float(value), done)
        stopping = self.config.stopping
        if verdict == "best" if stopping.patience else verdict != "forgot":
            self.run.hold()
        if verdict in ("stop", "forgot"):
            self.ended = verdict

    def _keep(self, done: int, *, now: bool = False) -> None:
        if self.folder is None or self.run.rank > 0:
            return
        since = time.perf_counter() - self._kept_at
        per_pass = self.config.steps_per_epoch(self.loader.frames)
        due = since >= 60 * self.config.keep_minutes
        due |= done % per_pass == 0 and since >= _LEAST_BETWEEN_S
        if now or due or done == self.run.total or self.ended:
            self.run.keep(self.folder, self.key, done)
            self._kept_at = time.perf_counter()
