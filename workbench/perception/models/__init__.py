"""Detection models of every family behind one small protocol.

compact     our own detector, built for quantisation (`workbench.perception.detector`)
huggingface any detection model of the transformers library, from a folder or the hub
one's own   a class that keeps `protocol.DetectionModel`, made known with `registry.register`
"""

from __future__ import annotations

from workbench.perception.models.protocol import DetectionModel, Losses, Truth
from workbench.perception.models.registry import Family, register

__all__ = ["DetectionModel", "Family", "Losses", "Truth", "register"]
