"""What a lane does: topic → agent. Faust forgets an event whose handler raises, so no body here ever raises."""

import asyncio
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import faust
from activation import join
from chassis import telemetry
from chassis.bus import TRANSIENT, Publisher, Received, Record, Topic, parse
from chassis.errors import PoisonError
from chassis.reader import Handler, dead_letter
from chassis.recent import Recent
from contracts.topics import ACTIVATION_DECISION, EMERGENCY_EVENT, REGISTRY_DUTY, radio_key
from faust.types import EventT, StreamT
from sightline.emergency.v1.emergency_pb2 import Emergency, EmergencyEvent
from sightline.registry.v1.duty_pb2 import DutyRecord

from services.joiner.tables import Freshness, Parked, duty_table, newer
from services.joiner.watchdog import STUCK, Progress

_ATTEMPTS, _PAUSE_S = 40, 0.25  # ten seconds of refusals; a send that gets no answer takes five by itself
_IN_FLIGHT = 200
_LOOK_AGAIN_S, _CLOSE_S = 0.5, 2.0
# A press that the registry did not pin waits so long for its late pin, and for the record of a check-out of a moment before it.
_SETTLE = timedelta(seconds=1.5)
# So many records that fail one after the other, without being poison, are not to blame.
_OUR_FAULT = 5
_FAILURES = 3  # a handler that fails so often on one event will never manage it
_OF_USE = timedelta(minutes=35)  # the longest age gate, and a margin: an older event starts no camera


class Lane:
    """One lane: a table of duty records, a stream of emergencies, decisions out.

    Decisions go out through the chassis's publisher: Faust's own producer costs three times as much a record (measured).
    """

    def __init__(self, app: faust.App, lane: str, trickle: timedelta, progress: Progress, publisher: Publisher) -> None:
        self._lane, self._publisher = lane, publisher
        self._duty, self._progress = duty_table(app), progress
        self._parked, self._fresh = Parked(), Freshness(trickle)
        # (emergency, epoch) answered lately: later versions are not answered again.
        self._decided: Recent[tuple[str, int], bool] = Recent()
        self._in_flight, self._sending = asyncio.Semaphore(_IN_FLIGHT), set[asyncio.Task[None]]()
        self._fails_in_a_row = 0
        app.agent(_topic(app, REGISTRY_DUTY), name="duty")(self._read_duty)
        app.agent(_topic(app, EMERGENCY_EVENT), name="emergencies")(self._read_emergencies)
        app.timer(_LOOK_AGAIN_S)(self.look_again)

    async def _read_duty(self, stream: StreamT[bytes]) -> None:
        async for event in stream.events():
            await self._guard(event, self._take_duty)

    async def _read_emergencies(self, stream: StreamT[bytes]) -> None:
        async for event in stream.events():
            await self._guard(event, self._take_emergency)

    async def _take_duty(self, received: Received) -> None:
        """A newer record replaces the known one, and may be what parked presses wait for."""
        record = parse(DutyRecord, received.value)
        self._fresh.heard(received.partition, received.time)
        if newer(record, self._duty.get(received.key)):
            self._duty[received.key] = received.value
        for emergency, traceparent in self._parked.of(received.key):
            await self._decide(received.key, received.partition, emergency, traceparent)

    async def _take_emergency(self, received: Received) -> None:
        """Each open (emergency, epoch) is answered once."""
        emergency = parse(EmergencyEvent, received.value).emergency
        if not emergency.emergency_id:
            raise PoisonError("an event without an emergency")
        if datetime.now(UTC) - received.time > _OF_USE:
            return  # a new lane reads a week of history: `reconcile` answers what of it is still open
        await self._decide(radio_key(emergency.radio), received.partition, emergency, received.traceparent)

    async def _decide(
        self, radio: bytes, partition: int, emergency: Emergency, traceparent: str | None, *, duty_is_fresh: bool = False
    ) -> None:
        """Join and publish, or park until the radio's record arrives."""
        if (emergency.emergency_id, emergency.epoch) in self._decided:
            return
        known = self._duty.get(radio)
        duty = DutyRecord.FromString(known) if known is not None else None
        with telemetry.span("joiner join", parent=traceparent, attributes={"emergency.id": emergency.emergency_id}):
            decision = join(emergency, duty, duty_is_fresh=duty_is_fresh)
            if decision is not None:
                subject = f"emergencies/{emergency.emergency_id}"
                await self._send(Record.of(ACTIVATION_DECISION, radio, decision, source=f"joiner/{self._lane}", subject=subject))
                self._decided.put((emergency.emergency_id, emergency.epoch), True)
        if decision is not None or emergency.HasField("cleared"):
            self._parked.remove(radio, emergency)
        else:
            telemetry.log().info("parked", emergency=emergency.emergency_id, have=duty.version if duty else None)
            self._parked.put(radio, partition, emergency, traceparent, datetime.now(UTC))

    async def look_again(self) -> None:
        """Decide presses that the registry did not pin in time, nor since, once we know all that it has said."""
        for radio, partition, emergency, traceparent in self._parked.unpinned(datetime.now(UTC) - _SETTLE):
            if self._knows_all(partition):
                try:
                    await self._decide(radio, partition, emergency, traceparent, duty_is_fresh=True)
                except Exception:  # a timer that raises ends the lane
                    telemetry.log().exception("a parked press stays parked", emergency=emergency.emergency_id)

    async def close(self) -> None:
        """Let what is on its way arrive."""
        if self._sending:
            await asyncio.wait(self._sending, timeout=_CLOSE_S)
        await self._publisher.close()

    def _knows_all(self, partition: int) -> bool:
        """Whether a change in this duty partition would have been heard of by now."""
        return self._fresh.is_fresh(partition, datetime.now(UTC)) and self._progress.is_current(REGISTRY_DUTY.name, partition)

    async def _guard(self, event: EventT[bytes], handle: Handler) -> None:
        """Handle an event. What the event itself makes fail goes to the DLQ; what Kafka makes fail is tried again.

        If neither works the process ends at once: the event is not acknowledged, so the next process reads it again.
        """
        received, failures = _received(event), 0
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await handle(received)
                self._fails_in_a_row = 0
                return self._progress.passed(received.topic, received.partition, received.offset)
            except TRANSIENT as error:
                telemetry.log().warning("trying again", attempt=attempt, error=repr(error))
            except Exception as error:
                failures += 1
                telemetry.log().exception("handler failed", topic=received.topic, offset=received.offset, attempt=attempt)
                if failures == _FAILURES or isinstance(error, PoisonError):
                    return await self._give_up(received, error)
            await asyncio.sleep(_PAUSE_S)
        os._exit(STUCK)

    async def _give_up(self, received: Received, error: Exception) -> None:
        """Dead-letter an event, unless so many in a row have failed that the fault must be ours."""
        self._fails_in_a_row += not isinstance(error, PoisonError)
        if self._fails_in_a_row >= _OUR_FAULT:
            telemetry.log().error("every record fails: it is us, not them")
            os._exit(STUCK)
        await self._deliver(dead_letter(f"joiner-{self._lane}", received, error))
        self._progress.passed(received.topic, received.partition, received.offset)

    async def _send(self, record: Record) -> None:
        """Send without waiting for the brokers, or one join would take as long as they do; only so many at a time.

        What is on its way when the process dies is answered by the other lane, or by `reconcile`.
        """
        await self._in_flight.acquire()
        task = asyncio.create_task(self._deliver(record))
        self._sending.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._in_flight.release()

    async def _deliver(self, record: Record) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._publisher.publish(record)
            except Exception as error:
                telemetry.log().warning("sending again", attempt=attempt, error=repr(error))
                await asyncio.sleep(_PAUSE_S)
        os._exit(STUCK)


def _topic(app: faust.App, topic: Topic) -> faust.types.TopicT:
    return app.topic(topic.name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")


def _received(event: EventT[bytes]) -> Received:
    """The event in the chassis's form."""
    message = event.message
    headers = message.headers or {}
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return Received(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        time=datetime.fromtimestamp(message.timestamp, UTC),
        key=message.key or b"",
        value=message.value or b"",
        headers={name: value or b"" for name, value in pairs},
    )
