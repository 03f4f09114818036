"""The ledger's lock: one command at a time, and the other says that it waits."""

from __future__ import annotations

import threading
import time

import pytest

from tests.labeling.conftest import Sample
from workbench.labeling import ledger


def test_who_has_to_wait_is_told_at_once_and_then_goes_on(
    sample: Sample, caplog: pytest.LogCaptureFixture
) -> None:
    batch = sample.batch()
    went_on = threading.Event()

    def second() -> None:
        with ledger.locked(sample.place, batch):
            went_on.set()

    with ledger.locked(sample.place, batch):
        assert not caplog.messages
        waiting = threading.Thread(target=second)
        waiting.start()
        deadline = time.monotonic() + 5
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        (told,) = caplog.messages
        assert "another command is at work on batch/" in told and "waiting" in told
        assert not went_on.is_set()
    waiting.join(5)
    assert went_on.is_set()
