"""MQTT at both ends: a vehicle delivers its queue, and the ingest service stores and settles."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from workbench.core.errors import ServiceError
from workbench.core.parsing import UNREADABLE, parse_json
from workbench.monitoring.broker import BrokerAccount
from workbench.monitoring.ingest import Ingest
from workbench.monitoring.queue import VehicleQueue

__all__ = ()

_WINDOW = 50  # messages on the way
_POLL_S = 0.05
_QOS = 1


@dataclass(frozen=True)
class Delivery:
    """What one connection of a vehicle achieved; ``left`` messages wait for the next one."""

    settled: int
    left: int


def deliver(
    queue: VehicleQueue,
    account: BrokerAccount,
    *,
    timeout_s: float = 30.0,
    resend_s: float = 10.0,
) -> Delivery:
    """Send what is in a vehicle's queue until it is empty, the time is over, or the network fails.

    A vehicle without network is normal: what is left is sent the next time.

    Args:
        resend_s: A message that was not settled after this time is sent again.

    Raises:
        ServiceError: The broker refuses the account or its certificate is not ours.
    """
    deadline = time.monotonic() + timeout_s
    sent: dict[int, float] = {}
    settled: set[int] = set()

    def settle(_topic: str, payload: bytes) -> None:
        try:
            numbers = [int(number) for number in parse_json(payload)["settled"]]
        except UNREADABLE:
            return
        queue.settle(numbers)
        settled.update(numbers)
        for number in numbers:
            sent.pop(number, None)

    connection = _Connection(account, f"ack/{account.user}", settle)
    if not connection.open(timeout_s):
        return Delivery(0, len(queue))
    try:
        while len(queue) and time.monotonic() < deadline:
            now = time.monotonic()
            for number in [number for number, at in sent.items() if now - at > resend_s]:
                del sent[number]
            for message in queue.pending(after=sent, limit=_WINDOW - len(sent)):
                topic = f"telemetry/{account.user}/{message.kind}/{message.sequence}"
                connection.publish(topic, message.body)
                sent[message.sequence] = now
            if not connection.wait(_POLL_S):
                break
    finally:
        connection.close()
    return Delivery(len(settled), len(queue))


def serve_ingest(
    ingest: Ingest,
    account: BrokerAccount,
    *,
    stop: Callable[[], bool] = lambda: False,
    flush_s: float = 1.0,
    on_flush: Callable[[], None] = lambda: None,
) -> None:
    """Store what vehicles send until ``stop`` says so; a lost connection is opened again.

    Args:
        flush_s: Longest time that a message waits to be stored with others.
        on_flush: Called after each time.
    """
    connection = _Connection(account, "telemetry/+/+/+", ingest.accept)
    while not stop():
        if not connection.open(5.0):
            time.sleep(_POLL_S)
            continue
        flushed = time.monotonic()
        while not stop() and connection.wait(_POLL_S):
            if ingest.full or time.monotonic() - flushed > flush_s:
                for vehicle, numbers in ingest.flush().items():
                    body = json.dumps({"settled": numbers}).encode()
                    connection.publish(f"ack/{vehicle}", body)
                on_flush()
                flushed = time.monotonic()
        connection.close()


class _Connection:
    """One MQTT connection, driven by the calling thread."""

    def __init__(
        self, account: BrokerAccount, topic: str, on_message: Callable[[str, bytes], None]
    ) -> None:
        self._account, self._topic, self._on_message = account, topic, on_message
        self._client: mqtt.Client | None = None
        self._ready = False
        self._refused = ""

    def open(self, timeout_s: float) -> bool:
        """Connect and subscribe; False without a network.

        Raises:
            ServiceError: The broker refuses the account, or its certificate is not the right one.
        """
        self._ready, self._refused = False, ""
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=self._account.user, reconnect_on_failure=False
        )
        client.tls_set_context(ssl.create_default_context(cadata=self._account.ca))
        client.username_pw_set(self._account.user, self._account.password)
        client.max_inflight_messages_set(2 * _WINDOW)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = lambda _client, _data, message: self._on_message(
            message.topic, bytes(message.payload)
        )
        self._client = client
        where = f"{self._account.host}:{self._account.port}"
        try:
            client.connect(self._account.host, self._account.port)
        except ssl.SSLCertVerificationError as error:
            raise ServiceError("the broker's certificate is not trusted", where=where) from error
        except OSError:
            return False
        deadline = time.monotonic() + timeout_s
        while not self._ready and time.monotonic() < deadline:
            alive = self.wait(_POLL_S)
            if self._refused:
                what = f"the broker refuses account {self._account.user}: {self._refused}"
                raise ServiceError(what, where=where)
            if not alive:
                return False
        return self._ready

    def publish(self, topic: str, body: bytes) -> None:
        """Send a message, at least once while this connection lasts."""
        if self._client is not None:
            self._client.publish(topic, body, qos=_QOS)

    def wait(self, seconds: float) -> bool:
        """Send and receive; False when the connection is lost."""
        return self._client is not None and self._client.loop(seconds) == mqtt.MQTT_ERR_SUCCESS

    def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            self._client.disconnect()
            self._client = None

    def _connected(
        self, client: mqtt.Client, _data: object, _flags: object, code: ReasonCode, _more: object
    ) -> None:
        if code.is_failure:
            self._refused = str(code).lower()
        else:
            client.subscribe(self._topic, qos=_QOS)

    def _subscribed(
        self, _client: mqtt.Client, _data: object, _id: int, codes: list[ReasonCode], _more: object
    ) -> None:
        if any(code.is_failure for code in codes):
            self._refused = f"it may not read {self._topic}"
        self._ready = True
