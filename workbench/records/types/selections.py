"""Which frames were chosen, why, and by how much the choice beat chance."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from workbench.records.base import Digest, Record, Ref, Row
from workbench.records.frames import added
from workbench.records.types.verdicts import Verdict

Json = dict[str, Any]

Arm = Literal["mined", "random", "control"]
"""How a frame came to be chosen: ranked; drawn so that rare frames can be counted; drawn so that
the ranked ones can be compared with chance."""


DRAWN = "drawn at random, so that the share of rare frames can be counted"
"""The reason of a frame of the random share, in the words that labelers read."""


class Choice(Row):
    """A frame that was chosen, how it ranked, and why in words a labeler can read.

    ``probability`` is the one with which a drawn frame was drawn from the usable pool; a ranked
    one has none. ``signals`` are its ranks in [0, 1] by signal, 1 the rarest.
    """

    frame: Digest
    rank: int
    score: float
    arm: Arm = "mined"
    reasons: tuple[str, ...] = ()
    probability: float | None = added(None)
    signals: dict[str, float] = added({})


class Selection(Record):
    """Frames chosen under a budget, with everything that shaped the choice in ``parameters``.

    ``budget`` counts frames; where labelers' time was given, ``minutes`` is that time and
    ``budget`` how many frames it paid for. A control arm of the same size comes on top, and then
    labelers must not see who was ranked. ``notes`` say what did not go as asked for.
    """

    KIND: ClassVar[str] = "selection"
    dataset: Ref
    model: Ref | None = None
    budget: int
    seed: int
    method: str
    parameters: Json = {}
    chosen: tuple[Choice, ...]
    minutes: float | None = added(None)
    parents: tuple[Ref, ...] = added(())
    notes: tuple[str, ...] = added(())

    @property
    def has_control(self) -> bool:
        return any(choice.arm == "control" for choice in self.chosen)


class ArmOutcome(Row):
    """What labeling the frames of one arm brought. ``hours`` None where no time is known."""

    arm: Arm
    frames: int
    unlabelled: int
    rare_frames: int
    rare_objects: int
    rare_events: int
    hours: float | None


class Beaten(Row):
    """One figure of the mined arm against the control arm's, with a paired interval.

    ``change`` is ``ratio`` (mined over control) or ``difference`` (mined less control). The verdict
    is PASS where the whole interval speaks for mining, FAIL where it speaks against it. ``low`` and
    ``high`` None: there is no such end. ``drives`` and ``unit`` say what was drawn again.
    """

    figure: str
    change: Literal["ratio", "difference"]
    mined: float | None
    control: float | None
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    drives: int
    unit: str
    why: str


class MiningReport(Record):
    """By how much the mined arm of a selection beat chance, once both arms were labelled.

    ``rare`` says what counted as rare, and was fixed before the labels were looked at.
    ``per`` is what yields are divided by and ``time_from`` where its time comes from. ``models``
    are those trained with each arm, where they were compared. ``headline`` says what is simulated
    before it says anything else. ``blind`` is False where labelers could have known the arms.
    Payload: ``frames.jsonl``, every labelled frame with its arm.
    """

    KIND: ClassVar[str] = "mining"
    selection: Ref
    labels: tuple[Ref, ...]
    rare: tuple[str, ...]
    arms: tuple[ArmOutcome, ...]
    per: str
    time_from: str
    prevalence: float | None
    prevalence_interval: tuple[float, float] | None
    beaten: tuple[Beaten, ...]
    models: dict[str, Ref] = {}
    resamples: int
    confidence: float
    simulated: bool
    headline: str
    blind: bool = added(True)
