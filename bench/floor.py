"""The floor: the same durable steps with bare clients and nothing else. Three processes, as `python -m bench.floor <role>`.

press ─▶ accept ─RPC▶ lookup (one SELECT)
           │ one transaction: five rows, commit; then OK
           └▶ Kafka ─▶ join (reads, writes) ─▶ Kafka ─▶ deliver: one transaction, commit ─▶ stream to the camera
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import uvloop
from confluent_kafka import Consumer, Producer, TopicPartition
from psycopg_pool import AsyncConnectionPool

from bench.measure import ACCEPTED, COMMANDED, DECIDED, Line, line
from tools.local.process import free_ports, start, stop
from tools.local.stack import ROOT, Stack

EVENT, DECISION = "bench.floor.event", "bench.floor.decision"
TABLES = """
CREATE SCHEMA IF NOT EXISTS floor;
CREATE TABLE IF NOT EXISTS floor.radio (unit bigint PRIMARY KEY, officer text NOT NULL);
CREATE TABLE IF NOT EXISTS floor.row (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, kind text NOT NULL, value bytea NOT NULL);
INSERT INTO floor.radio SELECT n, 'officer-' || n FROM generate_series(0, 999) n ON CONFLICT DO NOTHING;
"""
_SIZE = 600  # bytes of an emergency's snapshot
_WITHIN_S = 60.0


def _config(**more: Any) -> dict[str, Any]:
    return {"bootstrap.servers": os.environ["FLOOR_KAFKA"], "socket.nagle.disable": True, "log_level": 0} | more


def _producer() -> Producer:
    producer = Producer(_config(**{"acks": "all", "linger.ms": 0, "enable.idempotence": True}))
    threading.Thread(target=lambda: [producer.poll(0.1) for _ in iter(int, 1)], daemon=True).start()
    return producer


def _consumer(topic: str) -> Consumer:
    consumer = Consumer(_config(**{"group.id": "floor", "enable.auto.commit": False, "fetch.wait.max.ms": 100}))
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    ends = [(p, consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1]) for p in partitions]
    consumer.assign([TopicPartition(topic, p, end) for p, end in ends])
    return consumer


async def _pool() -> AsyncConnectionPool:
    pool = AsyncConnectionPool(os.environ["FLOOR_DATABASE"], min_size=4, max_size=10, open=False)
    await pool.open(wait=True)
    return pool


async def _rows(pool: AsyncConnectionPool, kinds: tuple[str, ...], value: bytes) -> None:
    """One transaction."""
    async with pool.connection() as connection:
        for kind in kinds:
            await connection.execute("INSERT INTO floor.row (kind, value) VALUES (%s, %s)", [kind, value])


async def _serve(port: str, **methods: Any) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", methods),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def lookup(port: str) -> None:
    """The registry's place: one SELECT."""
    pool = await _pool()

    async def who(unit: bytes, _: Any) -> bytes:
        async with pool.connection() as connection:
            row = await (await connection.execute("SELECT officer FROM floor.radio WHERE unit = %s", [int(unit)])).fetchone()
        return str(row[0] if row else "").encode()

    await _serve(port, who=grpc.unary_unary_rpc_method_handler(who))


async def accept(port: str) -> None:
    """The emergency service's place: ask, commit, answer, publish."""
    pool, producer = await _pool(), _producer()
    ask: Any = grpc.aio.insecure_channel(f"127.0.0.1:{os.environ['FLOOR_LOOKUP']}").unary_unary("/floor/who")

    async def press(request: bytes, _: Any) -> bytes:
        number, _, unit = request.partition(b"/")
        officer = await ask(unit, timeout=5)
        value = (number + b"/" + officer).ljust(_SIZE, b" ")
        await _rows(pool, ("emergency", "press", "outbox", "audit"), value)
        producer.produce(EVENT, value, unit)
        return number

    await _serve(port, press=grpc.unary_unary_rpc_method_handler(press))


async def join(_: str) -> None:
    """A lane's place: read, write."""
    consumer, producer = _consumer(EVENT), _producer()
    print("ready", flush=True)

    def work() -> None:
        while True:
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                producer.produce(DECISION, message.value(), message.key())

    await asyncio.to_thread(work)


async def deliver(port: str) -> None:
    """The place of `streams`: commit what was decided, send it on."""
    pool, consumer = await _pool(), _consumer(DECISION)
    orders: asyncio.Queue[bytes] = asyncio.Queue(10_000)
    loop = asyncio.get_running_loop()

    async def decide(value: bytes) -> None:
        await _rows(pool, ("decision", "activation", "outbox", "audit"), value)
        await orders.put(value[:40].partition(b"/")[0] + b"/" + str(time.monotonic()).encode())

    def read() -> None:
        while True:
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                asyncio.run_coroutine_threadsafe(decide(message.value() or b""), loop)

    threading.Thread(target=read, daemon=True).start()

    async def link(_: bytes, __: Any) -> AsyncIterator[bytes]:
        while True:
            yield await orders.get()

    await _serve(port, link=grpc.unary_stream_rpc_method_handler(link))


async def measure(stack: Stack, presses: int, rate: float) -> list[Line]:
    """Run the three processes and press."""
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    with psycopg.connect(stack.database, autocommit=True) as connection:
        connection.execute(TABLES)
    admin = AdminClient({"bootstrap.servers": stack.kafka})
    for answer in admin.create_topics([NewTopic(name, 12, 1) for name in (EVENT, DECISION)]).values():
        answer.exception(30)
    ports = dict(zip(("lookup", "accept", "join", "deliver"), map(str, free_ports(4)), strict=True))
    environment = {
        "FLOOR_KAFKA": stack.kafka, "FLOOR_DATABASE": stack.database, "FLOOR_LOOKUP": ports["lookup"],
        "PYTHONPATH": f"{ROOT / 'libs'}{os.pathsep}{ROOT}",
    }  # fmt: skip
    logs = stack.data / "logs"
    roles = [
        start(f"floor-{role}", [sys.executable, "-m", "bench.floor", role, port], logs / f"floor-{role}.log", environment, cwd=ROOT)
        for role, port in ports.items()
    ]
    try:
        return await _press(ports, logs / "floor-join.log", presses, rate)
    finally:
        await asyncio.to_thread(stop, roles)
        with psycopg.connect(stack.database, autocommit=True) as connection:
            connection.execute("DROP SCHEMA floor CASCADE")


async def _press(ports: dict[str, str], joined: Path, presses: int, rate: float) -> list[Line]:
    due: dict[int, float] = {}
    found: dict[str, list[float]] = {ACCEPTED: [], DECIDED: [], COMMANDED: []}
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{ports['accept']}") as channel,
        grpc.aio.insecure_channel(f"127.0.0.1:{ports['deliver']}") as camera,
    ):
        await asyncio.wait_for(asyncio.gather(channel.channel_ready(), camera.channel_ready()), _WITHIN_S)
        async with asyncio.timeout(_WITHIN_S):
            while not (joined.exists() and "ready" in joined.read_text()):
                await asyncio.sleep(0.05)
        send: Any = channel.unary_unary("/floor/press")

        async def follow() -> None:
            link: Any = camera.unary_stream("/floor/link")
            async for order in link(b""):
                number, _, at = order.partition(b"/")
                if (was := due.get(int(number))) is not None:
                    found[DECIDED].append((float(at) - was) * 1000)
                    found[COMMANDED].append((time.monotonic() - was) * 1000)

        async def one(number: int) -> None:
            await send(f"{number}/{number % 1000}".encode(), timeout=30)
            found[ACCEPTED].append((time.monotonic() - due[number]) * 1000)

        following = asyncio.create_task(follow())
        begun = time.monotonic() + 0.5
        async with asyncio.TaskGroup() as running:
            for number in range(presses):
                at = begun + number / rate
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                due[number] = at
                running.create_task(one(number))
        async with asyncio.timeout(_WITHIN_S):
            while len(found[COMMANDED]) < presses:
                await asyncio.sleep(0.02)
        following.cancel()
    return [line(name, values) for name, values in found.items()]


if __name__ == "__main__":
    role, port = sys.argv[1:]
    uvloop.run({"lookup": lookup, "accept": accept, "join": join, "deliver": deliver}[role](port))
