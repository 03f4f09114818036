"""Validation during training, and when it ends the training.

The caller supplies the function that evaluates the model, such as an evaluation on the ``val``
frames by slice. This module only decides whether the training continues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.core.errors import ParameterError
from workbench.core.text import short_repr
from workbench.detection.predictor import TorchPredictor
from workbench.training.config import EarlyStopping

__all__ = ["Validation"]

_Decision = Literal["best", "worse", "stop", "forgot"]


@short_repr
@dataclass(frozen=True)
class Validation:
    """How the model is validated while it trains.

    Attributes:
        evaluate: Maps a model to its metrics by name, larger is better. Equal models must give
            equal metrics.
        name: What the metrics are and on which frames, such as ``ap50 on val of dataset/…``. It is
            part of the training's identity.
    """

    evaluate: Callable[[TorchPredictor], Mapping[str, float]]
    name: str


@dataclass
class ValidationHistory:
    """All validations so far, and the decision that follows from each.

    Attributes:
        settings: Patience and limits.
        checks: ``{"step": int, "figures": {name: value}}`` for each validation. Step 0 is the model
            that training started from.
        best: Best value of the deciding metric; ``best_step`` is its step.
        checks_without_gain: Validations since then.
        regressions: Drop of each metric beyond the limit, at the last validation.
    """

    settings: EarlyStopping
    checks: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    checks_without_gain: int = 0
    regressions: dict[str, float] = field(default_factory=dict)

    def add(self, step: int, metrics: Mapping[str, float]) -> _Decision:
        """Record the metrics after ``step`` steps.

        Raises:
            ParameterError: The metric that decides is not among them.
        """
        values = {name: float(value) for name, value in sorted(metrics.items())}
        if self.settings.figure not in values:
            raise ParameterError(
                f"unknown validation metric {self.settings.figure!r}",
                where="TrainingConfig.stopping.figure",
                hint=f"Metrics: {', '.join(values) or 'none'}",
            )
        self.checks.append({"step": step, "figures": values})
        if step == 0:
            return "best"
        self.regressions = self._regressions(values)
        if self.regressions:
            return "forgot"
        value = values[self.settings.figure]
        if self.best is None or value > self.best + self.settings.least:
            self.best, self.best_step, self.checks_without_gain = value, step, 0
            return "best"
        self.checks_without_gain += 1
        return "stop" if self._patience_exhausted else "worse"

    def stop_reason(self) -> Literal["", "stop", "forgot"]:
        """Why training ends after the last validation; empty where it continues."""
        if self._patience_exhausted:
            return "stop"
        last = self.checks[-1] if self.checks else None
        return "forgot" if last and last["step"] and self._regressions(last["figures"]) else ""

    def changes(self) -> dict[str, list[float]]:
        """Each metric before training and at the last validation; empty without a start model."""
        if self._initial is None or len(self.checks) < 2:
            return {}
        last = self.checks[-1]["figures"]
        return {name: [old, last[name]] for name, old in self._initial.items() if name in last}

    def as_json(self) -> dict[str, Any]:
        """What a saved training state holds."""
        return {
            "looks": self.checks,
            "best": self.best,
            "best_step": self.best_step,
            "without_gain": self.checks_without_gain,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `as_json` gave."""
        self.checks = list(saved["looks"])
        self.best, self.best_step = saved["best"], saved["best_step"]
        self.checks_without_gain = saved["without_gain"]

    @property
    def _initial(self) -> Mapping[str, float] | None:
        """Metrics of the model that training started from."""
        first = next((check for check in self.checks if check["step"] == 0), None)
        return None if first is None else first["figures"]

    @property
    def _patience_exhausted(self) -> bool:
        patience = self.settings.patience
        return patience > 0 and self.checks_without_gain >= patience

    def _regressions(self, values: Mapping[str, float]) -> dict[str, float]:
        if self.settings.forget is None or self._initial is None:
            return {}
        drops = {name: old - values[name] for name, old in self._initial.items() if name in values}
        return {name: drop for name, drop in drops.items() if drop > self.settings.forget}
