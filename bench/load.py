"""`python -m bench.load`: a radio system in miniature that reports positions at a steady rate, through Kafka, as long as it is told to."""

import sys
import time
from typing import Annotated

import typer
from chassis.bus import client_config
from chassis.clock import set_seconds
from chassis.run import give_way
from chassis.settings import KafkaSettings
from confluent_kafka import Producer
from contracts.topics import LOCATION_REPORT, REGISTRY_DUTY, radio_key
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.location.v1.position_pb2 import Device, PositionReport
from sightline.registry.v1.duty_pb2 import DutyRecord

from bench.positions import officer, walking
from tools.roster import AGENCY, SYSTEM, WACN

_FIRST_UNIT, _TURNS_A_SECOND = 1_000_000, 20
_VERSION = 1
_NICE = 19  # the world outside has machines of its own


def radio_of(number: int) -> RadioIdentity:
    """The radio of an officer of the bench."""
    return RadioIdentity(wacn=WACN, system_id=SYSTEM, unit_id=_FIRST_UNIT + number)


def put_on_duty(producer: Producer, units: int) -> None:
    """Tell, in the registry's place, that so many officers are on duty."""
    now = time.time()
    for n in range(units):
        record = DutyRecord(radio=radio_of(n), agency_id=AGENCY, version=_VERSION)
        interval = record.intervals.add(officer_id=officer(n), unit_id=f"unit-{n // 2}", camera_ids=[f"bench-cam-{n:06d}"])
        set_seconds(getattr(interval, "from"), now - 3600)
        set_seconds(record.published_at, now)
        producer.produce(REGISTRY_DUTY.name, record.SerializeToString(), radio_key(record.radio), partition=-1)
        producer.poll(0)
    producer.flush()


def reports(units: int) -> list[PositionReport]:
    """A report of each, to be moved and sent again and again."""
    return [PositionReport(agency_id=AGENCY, device=Device(radio=radio_of(n))) for n in range(units)]


def main(
    bootstrap: str,
    units: Annotated[int, typer.Option(help="Officers on duty.")] = 20_000,
    rate: Annotated[float, typer.Option(help="Positions a second.")] = 20_000,
) -> None:
    """Report. Says `on duty` when all are, reports for as many seconds as a line tells, and waits for the next line."""
    give_way(_NICE)
    config = client_config(KafkaSettings(bootstrap=bootstrap, security="PLAINTEXT")) | {"partitioner": "murmur2_random"}
    producer = Producer(config | {"linger.ms": 20, "compression.type": "lz4", "queue.buffering.max.messages": 1_000_000})
    put_on_duty(producer, units)
    going, messages, keys = walking(units), reports(units), [radio_key(radio_of(n)) for n in range(units)]
    typer.echo("on duty")
    for told in sys.stdin:
        sent, began, seconds = 0, time.monotonic(), float(told)
        while (passed := time.monotonic() - began) < seconds:
            for _ in range(int(passed * rate) - sent):
                which = sent % units
                message = messages[which]
                message.fix.latitude, message.fix.longitude = going[which].go(units / rate)
                message.fix.accuracy_m = 8.0
                now = time.time()
                set_seconds(message.fix.fixed_at, now)
                set_seconds(message.reported_at, now)
                producer.produce(LOCATION_REPORT.name, message.SerializeToString(), keys[which])
                sent += 1
            producer.poll(0)
            time.sleep(1 / _TURNS_A_SECOND)
        producer.flush()


if __name__ == "__main__":
    typer.run(main)
