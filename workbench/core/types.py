"""Types that the whole package shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Progress"]

Json = dict[str, Any]
"""A JSON object."""

Progress = Callable[[int, int], None]
"""Called with the number of items done and their total."""
