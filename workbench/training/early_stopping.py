"""Validation during training, and when it ends the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.core.errors import ParameterError
from workbench.detection.predictor import TorchPredictor
from workbench.training.config import EarlyStopping

Decision = Literal["best", "worse", "stop", "forgot"]


@dataclass(frozen=True)
class Validation:
    """What is looked at.

    Args:
        judge: A model's figures by name, larger is better; the same model gives the same figures.
        name: What the figures are and on which frames, such as ``ap50 on val`` with a digest. It
            is part of what names the training.
    """

    judge: Callable[[TorchPredictor], Mapping[str, float]]
    name: str


@dataclass
class ValidationHistory:
    """Every look so far, the start's first, and what follows from them."""

    how: EarlyStopping
    looks: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    without_gain: int = 0
    forgot: dict[str, float] = field(default_factory=dict)

    @property
    def before(self) -> Mapping[str, float] | None:
        """Figures of the model that it started from."""
        first = next((look for look in self.looks if look["step"] == 0), None)
        return None if first is None else first["figures"]

    def look(self, step: int, figures: Mapping[str, float]) -> Decision:
        """Take figures in after ``step`` steps."""
        plain = {name: float(value) for name, value in sorted(figures.items())}
        if self.how.figure not in plain:
            raise ParameterError(
                f"no watched figure is called {self.how.figure!r}",
                where="TrainingConfig.stopping.figure",
                hint=f"There are {', '.join(plain) or 'none'}",
            )
        self.looks.append({"step": step, "figures": plain})
        if step == 0:
            return "best"
        self.forgot = self.lost(plain)
        if self.forgot:
            return "forgot"
        value = plain[self.how.figure]
        if self.best is None or value > self.best + self.how.least:
            self.best, self.best_step, self.without_gain = value, step, 0
            return "best"
        self.without_gain += 1
        enough = self.how.patience and self.without_gain >= self.how.patience
        return "stop" if enough else "worse"

    def changes(self) -> dict[str, list[float]]:
        """Each figure before the training and at its last look; empty without a start."""
        if self.before is None or len(self.looks) < 2:
            return {}
        now = self.looks[-1]["figures"]
        return {name: [old, now[name]] for name, old in self.before.items() if name in now}

    def as_json(self) -> dict[str, Any]:
        return {
            "looks": self.looks,
            "best": self.best,
            "best_step": self.best_step,
            "without_gain": self.without_gain,
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        self.looks = list(kept["looks"])
        self.best, self.best_step = kept["best"], kept["best_step"]
        self.without_gain = kept["without_gain"]

    def lost(self, now: Mapping[str, float]) -> dict[str, float]:
        """Figures that have fallen further than they may."""
        if self.how.forget is None or self.before is None:
            return {}
        lost = {name: old - now[name] for name, old in self.before.items() if name in now}
        return {name: loss for name, loss in lost.items() if loss > self.how.forget}
