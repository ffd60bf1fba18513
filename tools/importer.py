"""`sightline roster import`: officers with radios and cameras from a CSV file, with a report of every row that is wrong."""

import asyncio
import contextlib
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import protovalidate
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.registry.v1 import registry_service_pb2 as pb

from tools.desk import Desk
from tools.roster import create_agency

COLUMNS = ("officer_id", "display_name", "radio", "radio_alias", "cameras", "camera_model")
# A batch is one transaction and one request of the registry, which takes 64 KiB.
_BATCH, _BATCH_BYTES, _AT_ONCE = 100, 48 * 1024, 4
# A roster is at most this many officers; a longer file is not a roster.
_ROWS_AT_MOST = 200_000


Row = tuple[int, pb.RosterEntry]  # with its line in the file


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row; `line` counts from 1, the heading."""

    line: int
    text: str


@dataclass
class Imported:
    """What came of a file."""

    rows: int = 0
    created: int = 0
    problems: list[Problem] = field(default_factory=list)


class RosterError(Exception):
    """The file cannot be read as a roster at all."""


def read_roster(path: Path, agency_id: str) -> tuple[list[Row], list[Problem]]:
    """The usable rows with their line numbers, and what is wrong with the others; RosterError if it is no roster."""
    entries: list[Row] = []
    problems: list[Problem] = []
    seen: dict[tuple[str, str], int] = {}
    for line, row in _rows(path):
        try:
            entry = _entry(row, agency_id)
        except ValueError as error:
            problems.append(Problem(line, str(error)))
            continue
        wrong = [f"{_column(v.proto)}: {v.proto.message or v.proto.rule_id}" for v in protovalidate.collect_violations(entry)]
        names = list(_names(entry))
        wrong += [f"{kind} {name} is in line {seen[kind, name]} too" for kind, name in names if (kind, name) in seen]
        seen.update(dict.fromkeys(names, line))
        if wrong:
            problems.append(Problem(line, "; ".join(wrong)))
        else:
            entries.append((line, entry))
    return entries, problems


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise RosterError(f"{path}: the first line must name the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
            for count, row in enumerate(reader):
                if count >= _ROWS_AT_MOST:
                    raise RosterError(f"{path} has more than {_ROWS_AT_MOST} rows")
                yield reader.line_num, {name: (row[name] or "").strip() for name in COLUMNS}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RosterError(f"{path} cannot be read as CSV in UTF-8: {error}") from error


def _entry(row: dict[str, str], agency_id: str) -> pb.RosterEntry:
    """One row; ValueError says what cannot be understood."""
    officer = pb.Officer(officer_id=row["officer_id"], agency_id=agency_id, display_name=row["display_name"] or row["officer_id"])
    entry = pb.RosterEntry(officer=officer)
    if row["radio"]:
        entry.radio.CopyFrom(pb.Radio(identity=_radio(row["radio"]), agency_id=agency_id, alias=row["radio_alias"]))
    for camera_id in filter(None, (name.strip() for name in row["cameras"].split(";"))):
        entry.cameras.add(camera_id=camera_id, agency_id=agency_id, model=row["camera_model"])
    return entry


def _names(entry: pb.RosterEntry) -> Iterator[tuple[str, str]]:
    """What may be in a roster only once, by kind; a radio as the number that it is, however it is written."""
    yield "officer", entry.officer.officer_id
    if entry.HasField("radio"):
        identity = entry.radio.identity
        yield "radio", f"{identity.wacn:05x}-{identity.system_id:03x}-{identity.unit_id:06x}"
    for camera in entry.cameras:
        yield "camera", camera.camera_id


def _batches(entries: Sequence[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for line, entry in entries:
        if batch and (len(batch) == _BATCH or size + entry.ByteSize() > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((line, entry))
        size += entry.ByteSize()
    if batch:
        yield batch


def _radio(text: str) -> RadioIdentity:
    try:
        wacn, system, unit = (int(part, 16) for part in text.split("-"))
        return RadioIdentity(wacn=wacn, system_id=system, unit_id=unit)
    except ValueError as error:
        raise ValueError(f"radio: {text!r} is not WACN-system-unit in hexadecimal, like bee00-1a4-002328") from error


def _column(violation: object) -> str:
    path = ".".join(element.field_name for element in violation.field.elements)  # type: ignore[attr-defined]
    known = {"officer.officer_id": "officer_id", "officer.display_name": "display_name", "radio.alias": "radio_alias"}
    return known.get(path, "cameras" if path.startswith("cameras") else "radio" if path.startswith("radio") else path)


async def import_roster(desk: Desk, agency_id: str, path: Path, progress: Callable[[int, int], None]) -> Imported:
    """Send the usable rows in batches, a few at a time; `progress` gets (done, all)."""
    entries, problems = await asyncio.to_thread(read_roster, path, agency_id)
    result = Imported(len(entries) + len(problems), 0, problems)
    with contextlib.suppress(grpc.aio.AioRpcError):  # there with its proper name, or not ours to make: the import itself will tell
        await create_agency(desk, agency_id)
    gate, done = asyncio.Semaphore(_AT_ONCE), len(problems)
    progress(done, result.rows)

    async def send(batch: list[Row]) -> None:
        nonlocal done
        async with gate:
            request = pb.ImportRosterRequest(agency_id=agency_id, entries=[entry for _, entry in batch])
            try:
                answer = await desk.call(desk.registry.ImportRoster, request, timeout=60)
                result.created += answer.created
                result.problems.extend(Problem(batch[each.index][0], each.problem) for each in answer.problems)
            except grpc.aio.AioRpcError as error:
                why = f"not sent ({error.code().name}: {error.details()}); import the file again"
                result.problems.extend(Problem(line, why) for line, _ in batch)
        done += len(batch)
        progress(done, result.rows)

    async with asyncio.TaskGroup() as sending:
        for batch in _batches(entries):
            sending.create_task(send(batch))
    result.problems.sort(key=lambda problem: problem.line)
    return result


def write_report(path: Path, problems: list[Problem]) -> Path:
    """All problems as CSV beside the file; returns its path."""
    report = path.with_suffix(".errors.csv")
    with report.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["line", "problem"])
        writer.writerows((problem.line, problem.text) for problem in problems)
    return report
