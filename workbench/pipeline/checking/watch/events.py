"""What a watch has seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["read", "write", "connect"]
Coverage = Literal["complete", "partial", "none"]


@dataclass
class Seen:
    """A path or an address, however often it was touched.

    Attributes:
        target: An absolute path, or ``host:port``.
        first: When it was first touched, seconds since the epoch; ``last`` likewise.
        existed: Whether the path was there before the first touch.
        own: The address is one on which a watched process listens.
    """

    kind: Kind
    target: str
    first: float
    last: float
    existed: bool = True
    is_folder: bool = False
    own: bool = False


@dataclass
class Log:
    """Everything seen in one run; ``created`` holds paths that the watched processes made."""

    coverage: Coverage = "none"
    seen: dict[tuple[str, str], Seen] = field(default_factory=dict)
    created: set[str] = field(default_factory=set)

    def add(
        self,
        kind: Kind,
        target: str,
        at: float,
        *,
        existed: bool = True,
        is_folder: bool = False,
        own: bool = False,
    ) -> None:
        known = self.seen.get((kind, target))
        if known is None:
            one = Seen(kind, target, at, at, existed, is_folder, own)
            self.seen[(kind, target)] = one
        else:
            known.last = at
            known.own = known.own or own
        if kind == "write" and not existed:
            self.created.add(target)
