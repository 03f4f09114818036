"""A broker with accounts, and a table, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from workbench.monitoring.broker import Broker, mosquitto_path


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    if mosquitto_path() is None:
        pytest.skip("mosquitto is not installed")
    broker = Broker(tmp_path_factory.mktemp("broker"))
    broker.add_accounts([f"vehicle-{number}" for number in range(1, 7)])
    broker.start()
    yield broker
    broker.stop()
