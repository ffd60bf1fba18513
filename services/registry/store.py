"""The registry's SQL."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import LiteralString

import psycopg
from chassis.db import Row, Transaction
from chassis.errors import AlreadyExists, WrongState
from psycopg.types.range import Range
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from services.registry.model import (
    Agency,
    Camera,
    Conflict,
    Duty,
    FixedCamera,
    Hold,
    Officer,
    OnDuty,
    Radio,
    RadioId,
    Span,
    Vehicle,
    intervals,
)

_CAMERA_HOLDS: LiteralString = """
SELECT o.officer_id, c.camera_id AS item, h.held FROM camera_hold h JOIN camera c USING (camera_key) JOIN officer o USING (officer_key)
 WHERE h.officer_key = ANY(%s) AND h.held && %s ORDER BY h.hold_id"""
_UNIT_HOLDS: LiteralString = """
SELECT o.officer_id, h.unit_id AS item, h.held FROM unit_hold h JOIN officer o USING (officer_key)
 WHERE h.officer_key = ANY(%s) AND h.held && %s ORDER BY h.hold_id"""
# Who holds radios, and what the holders have besides, within a window; a longer one for officers with a covert shift in it. Written so that
# radio_hold_one_holder finds the holds: it must not take a look at everybody on duty, for it is asked in every press.
_HOLDS: LiteralString = """
WITH radios AS (
    SELECT h.radio_key, h.officer_key, o.officer_id, h.held, h.visible_to, h.held && %(window)s AS is_recent
      FROM unnest(%(radios)s::bigint[]) AS asked
      JOIN radio_hold h ON int8range(h.radio_key, h.radio_key, '[]') && int8range(asked, asked, '[]') AND h.held && %(hidden_window)s
      JOIN officer o USING (officer_key)
     WHERE (h.held && %(window)s OR EXISTS (
        SELECT FROM radio_hold c WHERE c.officer_key = h.officer_key AND c.visible_to <> '' AND c.held && %(hidden_window)s)))
SELECT 'radio' AS kind, radio_key, officer_id, '' AS item, held, 0 AS hold_id, visible_to FROM radios
UNION ALL SELECT 'camera', 0, o.officer_id, c.camera_id, h.held, h.hold_id, ''
  FROM camera_hold h JOIN camera c USING (camera_key) JOIN officer o USING (officer_key)
 WHERE h.officer_key IN (SELECT officer_key FROM radios) AND h.held && %(hidden_window)s AND (h.held && %(window)s OR EXISTS (
    SELECT FROM radios r WHERE r.officer_key = h.officer_key AND NOT r.is_recent AND h.held && r.held))
UNION ALL SELECT 'unit', 0, o.officer_id, h.unit_id, h.held, h.hold_id, ''
  FROM unit_hold h JOIN officer o USING (officer_key)
 WHERE h.officer_key IN (SELECT officer_key FROM radios) AND h.held && %(hidden_window)s AND (h.held && %(window)s OR EXISTS (
    SELECT FROM radios r WHERE r.officer_key = h.officer_key AND NOT r.is_recent AND h.held && r.held))
ORDER BY kind, hold_id"""

# Who holds devices, with their names as on their displays.
_RADIO_HOLDERS: LiteralString = (
    "SELECT 'radio' AS kind, lpad(to_hex(r.wacn), 5, '0') || '-' || lpad(to_hex(r.system_id), 3, '0') || '-'"
    " || lpad(to_hex(r.unit_id), 6, '0') AS name, o.officer_id AS holder, h.held"
    " FROM radio_hold h JOIN radio r USING (radio_key) JOIN officer o USING (officer_key)"
)
_CAMERA_HOLDERS: LiteralString = (
    "SELECT 'camera' AS kind, c.camera_id AS name, o.officer_id AS holder, h.held"
    " FROM camera_hold h JOIN camera c USING (camera_key) JOIN officer o USING (officer_key)"
)
# Tables and keys of what has a place on the map by itself.
_DEVICES: dict[type, tuple[LiteralString, LiteralString]] = {
    Vehicle: ("vehicle", "vehicle_id"), FixedCamera: ("fixed_camera", "camera_id"),
}  # fmt: skip


class Store:
    """All access to the registry's tables. Methods work inside the caller's transaction."""

    async def add_agency(self, tx: Transaction, agency: Agency) -> bool:
        """Insert; False if it is there already. AlreadyExists if there is another of that id."""
        insert: LiteralString = "INSERT INTO agency (agency_id, display_name) VALUES (%s, %s) ON CONFLICT DO NOTHING"
        if await tx.execute(insert, [agency.agency_id, agency.display_name]):
            return True
        row = await tx.one("SELECT agency_id, display_name FROM agency WHERE agency_id = %s", [agency.agency_id])
        return _same(row, Agency, agency, f"agency {agency.agency_id}")

    async def add_officer(self, tx: Transaction, officer: Officer) -> bool:
        """Insert; False if it is there already. AlreadyExists if there is another of that id."""
        values = [officer.officer_id, officer.agency_id, officer.display_name]
        if await tx.execute("INSERT INTO officer (officer_id, agency_id, display_name) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", values):
            return True
        row = await tx.one("SELECT officer_id, agency_id, display_name FROM officer WHERE officer_id = %s", values[:1])
        return _same(row, Officer, officer, f"officer {officer.officer_id}")

    async def add_camera(self, tx: Transaction, camera: Camera) -> bool:
        """Insert; False if it is there already. AlreadyExists if there is another of that id."""
        values = [camera.camera_id, camera.agency_id, camera.model]
        if await tx.execute("INSERT INTO camera (camera_id, agency_id, model) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", values):
            return True
        row = await tx.one("SELECT camera_id, agency_id, model FROM camera WHERE camera_id = %s", values[:1])
        return _same(row, Camera, camera, f"camera {camera.camera_id}")

    async def add_radio(self, tx: Transaction, radio: Radio) -> int | None:
        """Insert and return its key; None if it is there already. AlreadyExists if there is another of that identity."""
        identity = radio.identity
        row = await tx.one(
            "INSERT INTO radio (wacn, system_id, unit_id, agency_id, alias) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING RETURNING radio_key",
            [identity.wacn, identity.system_id, identity.unit_id, radio.agency_id, radio.alias],
        )
        if row:
            return int(row["radio_key"])
        kept = await self._radio(tx, identity)
        if kept is None or (kept["agency_id"], kept["alias"]) != (radio.agency_id, radio.alias):
            raise AlreadyExists(Reason.ERROR_REASON_ALREADY_EXISTS, "this radio is registered with other content")
        return None

    async def kept(self, tx: Transaction, thing: Officer | Radio | Camera) -> Officer | Radio | Camera | None:
        """What is registered under a thing's id."""
        if isinstance(thing, Officer):
            found = await self.officer(tx, thing.officer_id)
            return found[1] if found else None
        if isinstance(thing, Radio):
            row = await self._radio(tx, thing.identity)
            return Radio(thing.identity, row["agency_id"], row["alias"]) if row else None
        row = await tx.one("SELECT camera_id, agency_id, model FROM camera WHERE camera_id = %s", [thing.camera_id])
        return Camera(**row) if row else None

    async def rename(self, tx: Transaction, thing: Officer | Radio | Camera) -> None:
        """Give what is registered under a thing's id the thing's name, alias or model."""
        if isinstance(thing, Officer):
            await tx.execute("UPDATE officer SET display_name = %s WHERE officer_id = %s", [thing.display_name, thing.officer_id])
        elif isinstance(thing, Camera):
            await tx.execute("UPDATE camera SET model = %s WHERE camera_id = %s", [thing.model, thing.camera_id])
        else:
            identity = [thing.identity.wacn, thing.identity.system_id, thing.identity.unit_id]
            await tx.execute("UPDATE radio SET alias = %s WHERE wacn = %s AND system_id = %s AND unit_id = %s", [thing.alias, *identity])

    async def put_device(self, tx: Transaction, device: Vehicle | FixedCamera) -> int | None:
        """Keep what is new about it and return its version; None if nothing is. AlreadyExists if it is another agency's."""
        table, key = _DEVICES[type(device)]
        content = asdict(device)
        columns: LiteralString = (
            "agency_id, display_name, unit_id" if table == "vehicle" else "agency_id, display_name, latitude, longitude"
        )
        slots: LiteralString = ", ".join(["%s"] * len(content))
        insert: LiteralString = f"INSERT INTO {table} ({key}, {columns}) VALUES ({slots}) ON CONFLICT DO NOTHING"
        values = list(content.values())
        if await tx.execute(insert, values):
            return 1
        row = await tx.one(f"SELECT {key}, {columns}, version FROM {table} WHERE {key} = %s FOR UPDATE", values[:1])
        if row is None or row["agency_id"] != device.agency_id:
            raise AlreadyExists(Reason.ERROR_REASON_ALREADY_EXISTS, f"{table.replace('_', ' ')} {values[0]} is another agency's")
        version = row.pop("version") + 1
        if row == content:
            return None
        update: LiteralString = f"UPDATE {table} SET version = %s, ({columns}) = ROW ({slots.removesuffix(', %s')}) WHERE {key} = %s"
        await tx.execute(update, [version, *values[1:], values[0]])
        return int(version)

    async def agency_exists(self, tx: Transaction, agency_id: str) -> bool:
        """Whether the agency is registered."""
        return await tx.one("SELECT 1 FROM agency WHERE agency_id = %s", [agency_id]) is not None

    async def officer(self, tx: Transaction, officer_id: str, *, lock: bool = False) -> tuple[int, Officer] | None:
        """An officer with its key; `lock` makes changes to one officer's holds take turns."""
        row = await tx.one("SELECT * FROM officer WHERE officer_id = %s" + (" FOR UPDATE" if lock else ""), [officer_id])
        return (row["officer_key"], Officer(row["officer_id"], row["agency_id"], row["display_name"])) if row else None

    async def radio_keys(self, tx: Transaction, identities: Sequence[RadioId]) -> list[tuple[int, str] | None]:
        """Key and agency of each radio; None for an unknown one."""
        rows = [await self._radio(tx, identity) for identity in identities]
        return [(row["radio_key"], row["agency_id"]) if row else None for row in rows]

    async def camera_keys(self, tx: Transaction, camera_ids: Sequence[str]) -> dict[str, tuple[int, str]]:
        """Key and agency of each known camera."""
        rows = await tx.all("SELECT camera_key, camera_id, agency_id FROM camera WHERE camera_id = ANY(%s)", [list(camera_ids)])
        return {row["camera_id"]: (row["camera_key"], row["agency_id"]) for row in rows}

    async def hold(
        self, tx: Transaction, officer: int, radios: Sequence[int], cameras: Sequence[int], unit: str, span: Span, visible_to: str = ""
    ) -> None:
        """Give things to an officer for a span; WrongState says which of them is held during part of it, by whom."""
        held = Range(span.start, span.end, "[)")
        try:
            async with tx.part():
                for radio in radios:
                    await tx.execute(
                        "INSERT INTO radio_hold (radio_key, officer_key, held, visible_to) VALUES (%s, %s, %s, %s)",
                        [radio, officer, held, visible_to],
                    )
                for camera in cameras:
                    await tx.execute("INSERT INTO camera_hold (camera_key, officer_key, held) VALUES (%s, %s, %s)", [camera, officer, held])
                if unit:
                    await tx.execute("INSERT INTO unit_hold (unit_id, officer_key, held) VALUES (%s, %s, %s)", [unit, officer, held])
        except psycopg.errors.ExclusionViolation as error:
            found = await self._conflicts(tx, officer, radios, cameras, held)
            raise _is_held(found[0] if found else Conflict("device", "", "", span)) from error

    async def _conflicts(
        self, tx: Transaction, officer: int, radios: Sequence[int], cameras: Sequence[int], held: Range[datetime]
    ) -> list[Conflict]:
        """Devices that somebody holds during part of a span, and the officer's unit, the longest held first."""
        rows = await tx.all(
            f"SELECT * FROM ({_RADIO_HOLDERS} WHERE h.radio_key = ANY(%(radios)s) AND h.held && %(held)s"
            f" UNION ALL {_CAMERA_HOLDERS} WHERE h.camera_key = ANY(%(cameras)s) AND h.held && %(held)s"
            " UNION ALL SELECT 'unit', u.unit_id, o.officer_id, u.held FROM unit_hold u JOIN officer o USING (officer_key)"
            " WHERE u.officer_key = %(officer)s AND u.held && %(held)s) AS found ORDER BY kind DESC, lower(held)",
            {"radios": list(radios), "cameras": list(cameras), "officer": officer, "held": held},
        )
        return [_conflict(row) for row in rows]

    async def lock_officers(self, tx: Transaction, officers: Sequence[int]) -> None:
        """Changes of these officers' holds take turns; all lock them in this order."""
        await tx.execute("SELECT FROM officer WHERE officer_key = ANY(%s) ORDER BY officer_key FOR UPDATE", [list(officers)])

    async def holders(self, tx: Transaction, radios: Sequence[int], cameras: Sequence[int], at: datetime) -> list[int]:
        """Officers who hold one of these devices at an instant."""
        rows = await tx.all(
            "SELECT officer_key FROM radio_hold WHERE radio_key = ANY(%(radios)s) AND held @> %(at)s"
            " UNION SELECT officer_key FROM camera_hold WHERE camera_key = ANY(%(cameras)s) AND held @> %(at)s",
            {"radios": list(radios), "cameras": list(cameras), "at": at},
        )
        return [row["officer_key"] for row in rows]

    async def take_over(self, tx: Transaction, officer: int, radios: Sequence[int], cameras: Sequence[int], at: datetime) -> list[Conflict]:
        """End at `at` the holds of these devices that began earlier, and the officer's place in a unit; returns what was held, by whom."""
        values = {"radios": list(radios), "cameras": list(cameras), "officer": officer, "at": at}
        taken = await tx.all(
            f"{_RADIO_HOLDERS} WHERE h.radio_key = ANY(%(radios)s) AND h.held @> %(at)s AND lower(h.held) < %(at)s"
            f" UNION ALL {_CAMERA_HOLDERS} WHERE h.camera_key = ANY(%(cameras)s) AND h.held @> %(at)s AND lower(h.held) < %(at)s",
            values,
        )
        for table, condition in (
            ("radio_hold", "radio_key = ANY(%(radios)s)"), ("camera_hold", "camera_key = ANY(%(cameras)s)"),
            ("unit_hold", "officer_key = %(officer)s"),
        ):  # fmt: skip
            end: LiteralString = f"UPDATE {table} SET held = tstzrange(lower(held), %(at)s) WHERE {condition}"
            await tx.execute(end + " AND held @> %(at)s AND lower(held) < %(at)s", values)
        return [_conflict(row) for row in taken]

    async def release(self, tx: Transaction, officer: int, at: datetime) -> tuple[list[int], list[str]]:
        """End at `at` all that the officer holds then; returns keys of radios and ids of cameras."""
        radios = await tx.all(
            "UPDATE radio_hold SET held = tstzrange(lower(held), %s) WHERE officer_key = %s AND held @> %s AND lower(held) < %s"
            " RETURNING radio_key",
            [at, officer, at, at],
        )
        cameras = await tx.all(
            "UPDATE camera_hold h SET held = tstzrange(lower(held), %s) FROM camera c"
            " WHERE c.camera_key = h.camera_key AND officer_key = %s AND held @> %s AND lower(held) < %s RETURNING c.camera_id",
            [at, officer, at, at],
        )
        await tx.execute(
            "UPDATE unit_hold SET held = tstzrange(lower(held), %s) WHERE officer_key = %s AND held @> %s AND lower(held) < %s",
            [at, officer, at, at],
        )
        return [row["radio_key"] for row in radios], [row["camera_id"] for row in cameras]

    async def touch(self, tx: Transaction, officers: Sequence[int], since: datetime, also: Sequence[int] = ()) -> list[int]:
        """Raise the duty version of every radio that the officers hold after `since`, and of `also`; returns their keys.

        The row lock makes a concurrent change of the same radio wait, and so see this one when it reads the holds.
        """
        rows = await tx.all(
            "SELECT radio_key FROM radio WHERE radio_key = ANY(%s) OR radio_key IN"
            " (SELECT radio_key FROM radio_hold WHERE officer_key = ANY(%s) AND held && tstzrange(%s, NULL)) ORDER BY radio_key FOR UPDATE",
            [list(also), list(officers), since],
        )
        keys = [row["radio_key"] for row in rows]
        await tx.execute("UPDATE radio SET duty_version = duty_version + 1 WHERE radio_key = ANY(%s)", [keys])
        return keys

    async def duties(self, tx: Transaction, radio_keys: Sequence[int], since: datetime, hidden_since: datetime | None = None) -> list[Duty]:
        """The duty of each radio, of spans that end after `since`; of officers with a covert one, after `hidden_since`."""
        radios = await tx.all("SELECT * FROM radio WHERE radio_key = ANY(%s) ORDER BY radio_key", [list(radio_keys)])
        return await self._duties_of(tx, radios, since, hidden_since or since)

    async def duty_of(self, tx: Transaction, radio: RadioId, agency_id: str, since: datetime) -> tuple[Duty | None, bool]:
        """The duty of one radio, None if it is not registered; and whether an agency is registered."""
        [row] = await tx.all(
            "SELECT EXISTS (SELECT 1 FROM agency WHERE agency_id = %s) AS agency_known, r.* FROM (VALUES (1)) AS one"
            " LEFT JOIN radio r ON r.wacn = %s AND r.system_id = %s AND r.unit_id = %s",
            [agency_id, radio.wacn, radio.system_id, radio.unit_id],
        )
        duties = await self._duties_of(tx, [row], since, since) if row["radio_key"] is not None else [None]
        return duties[0], row["agency_known"]

    async def _duties_of(self, tx: Transaction, radios: Sequence[Row], since: datetime, hidden_since: datetime) -> list[Duty]:
        windows = {"window": Range(since, None), "hidden_window": Range(hidden_since, None)}
        holds = await tx.all(_HOLDS, {"radios": [row["radio_key"] for row in radios]} | windows)
        cameras, units = ([_hold(row) for row in holds if row["kind"] == kind] for kind in ("camera", "unit"))
        by_radio: dict[int, list[Hold]] = {row["radio_key"]: [] for row in radios}
        for row in holds:
            if row["kind"] == "radio":
                by_radio[row["radio_key"]].append(_hold(row))
        return [Duty(_identity(r), r["agency_id"], r["duty_version"], intervals(by_radio[r["radio_key"]], cameras, units)) for r in radios]

    async def due(self, tx: Transaction, before: datetime, limit: int) -> list[int]:
        """Radios whose record has not been trickled since `before`; marks them. Replicas share the work."""
        rows = await tx.all(
            "UPDATE radio SET trickled_at = now() WHERE radio_key IN (SELECT radio_key FROM radio WHERE trickled_at < %s"
            " ORDER BY trickled_at LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING radio_key",
            [before, limit],
        )
        return [row["radio_key"] for row in rows]

    async def carried(self, tx: Transaction, officer: int, at: datetime) -> tuple[tuple[str, ...], str]:
        """Cameras and unit of an officer at an instant."""
        window = Range(at, at, "[]")
        cameras = await tx.all(_CAMERA_HOLDS, [[officer], window])
        units = await tx.all(_UNIT_HOLDS, [[officer], window])
        return tuple(row["item"] for row in cameras), units[0]["item"] if units else ""

    async def on_duty(self, tx: Transaction, agency_id: str, after: str, limit: int, at: datetime) -> list[OnDuty]:
        """A page of an agency's officers with what they hold at an instant, ordered by officer id."""
        rows = await tx.all(
            "SELECT * FROM officer WHERE agency_id = %s AND officer_id > %s ORDER BY officer_id LIMIT %s", [agency_id, after, limit]
        )
        found = []
        for row in rows:
            cameras, unit = await self.carried(tx, row["officer_key"], at)
            radios = await tx.all(
                "SELECT r.* FROM radio_hold h JOIN radio r USING (radio_key) WHERE officer_key = %s AND held @> %s ORDER BY hold_id",
                [row["officer_key"], at],
            )
            officer = Officer(row["officer_id"], row["agency_id"], row["display_name"])
            found.append(OnDuty(officer, tuple(map(_identity, radios)), cameras, unit))
        return found

    async def _radio(self, tx: Transaction, identity: RadioId) -> Row | None:
        return await tx.one(
            "SELECT * FROM radio WHERE wacn = %s AND system_id = %s AND unit_id = %s", [identity.wacn, identity.system_id, identity.unit_id]
        )


def _identity(row: Row) -> RadioId:
    return RadioId(row["wacn"], row["system_id"], row["unit_id"])


def _conflict(row: Row) -> Conflict:
    return Conflict(row["kind"], row["name"], row["holder"], Span(row["held"].lower, row["held"].upper))


def _is_held(found: Conflict) -> WrongState:
    """The refusal that says what to do."""
    since = found.span.start.isoformat(timespec="seconds")
    if found.kind == "unit":
        text = f"officer {found.holder} is in unit {found.name} since {since}: check the officer in first, or check out with take_over"
        return WrongState(Reason.ERROR_REASON_SHIFT_STATE, text)
    text = f"{found.kind} {found.name} is held by officer {found.holder} since {since}: check that officer in, or check out with take_over"
    about = {"device": found.kind, "device_id": found.name, "holder": found.holder, "since": since}
    return WrongState(Reason.ERROR_REASON_DEVICE_HELD, text, metadata=about)


def _hold(row: Row) -> Hold:
    return Hold(row["item"], row["officer_id"], Span(row["held"].lower, row["held"].upper), row.get("visible_to", ""))


def _same(row: Row | None, kind: type, wanted: object, what: str) -> bool:
    """False for an equal row; AlreadyExists for a different one."""
    if row is None or kind(**row) != wanted:
        raise AlreadyExists(Reason.ERROR_REASON_ALREADY_EXISTS, f"{what} exists with other content")
    return False
