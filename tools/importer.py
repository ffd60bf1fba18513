"""`sightline roster import`: officers with radios and cameras from a CSV file, with a report of every row that is wrong."""

import asyncio
import contextlib
import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import protovalidate
from chassis.names import unprintable
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.registry.v1 import registry_service_pb2 as pb

from tools.desk import Desk
from tools.roster import create_agency

COLUMNS = ("officer_id", "display_name", "radio", "radio_alias", "cameras", "camera_model")
# For those who have their radios' ids in decimal.
RADIO_DECIMAL = "radio_decimal"
# A batch is one transaction and one request of the registry, which takes 256 KiB.
_BATCH, _BATCH_BYTES, _AT_ONCE = 100, 48 * 1024, 4
# A roster is at most this many officers; a longer file is not a roster.
_ROWS_AT_MOST, _BYTES_AT_MOST, _HEADING_AT_MOST = 200_000, 64 * 2**20, 10_000
_FULL = re.compile(r"([0-9a-fA-F]{5})-([0-9a-fA-F]{3})-([0-9a-fA-F]{6})")
_DECIMAL = re.compile(r"([0-9]{1,7})-([0-9]{1,4})-([0-9]{1,8})")
# What Excel writes, and reads, as a first line.
_HINT = re.compile(r"sep=.\r?\n", re.IGNORECASE)
# Columns of which a part is somebody else's.
_CUT_SHORT = frozenset({"officer_id", "cameras", RADIO_DECIMAL})
_UTF_8 = re.compile(rb"[\xc3-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


Row = tuple[int, pb.RosterEntry]  # with its line in the file


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row; `line` counts from 1, the heading."""

    line: int
    text: str


@dataclass(frozen=True)
class Difference:
    """What a file adds or changes; `before` is None for what is new, `after` for an officer whom the file does not name."""

    line: int
    what: str
    before: str | None
    after: str | None


@dataclass
class Imported:
    """What came of a file, or would come; `recognised` is how it was read."""

    rows: int = 0
    created: int = 0
    problems: list[Problem] = field(default_factory=list)
    recognised: str = ""
    differences: list[Difference] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A file's text, and how it was read."""

    path: Path
    text: str
    encoding: str
    delimiter: str

    @property
    def recognised(self) -> str:
        """How it was read, in words."""
        return f"{self.encoding}, separated by {_DELIMITERS[self.delimiter]}"


class RosterError(Exception):
    """The file cannot be read as a roster at all."""


def open_roster(path: Path) -> Source:
    """Find out how a file is written; RosterError if it is no roster."""
    text, encoding = _text(path)
    return Source(path, text, encoding, _delimiter(path, text))


def read_roster(path: Path, agency_id: str, source: Source | None = None) -> tuple[list[Row], list[Problem]]:
    """The usable rows with their line numbers, and what is wrong with the others; RosterError if it is no roster."""
    entries: list[Row] = []
    problems: list[Problem] = []
    seen: dict[tuple[str, str], int] = {}
    for line, row in _rows(source or open_roster(path)):
        try:
            if isinstance(row, str):
                raise ValueError(row)
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


def _text(path: Path) -> tuple[str, str]:
    """The file's text, and in what it is written: UTF-8, UTF-16 with or without a mark, or what Excel writes in half of Europe."""
    try:
        with path.open("rb") as file:
            data = file.read(_BYTES_AT_MOST + 1)
    except OSError as error:
        raise RosterError(f"{path} cannot be read as a roster: {error}") from error
    if len(data) > _BYTES_AT_MOST:
        raise RosterError(f"{path} is larger than {_BYTES_AT_MOST // 2**20} MiB: that is no roster")
    zeros = data[:1000:2].count(0), data[1:1000:2].count(0)
    utf_16 = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le" if zeros[1] else ""
    for encoding, name in ((utf_16, "UTF-16"), ("utf-8-sig", "UTF-8"), ("cp1252", "Windows-1252")):
        try:
            text = data.decode(encoding) if encoding else ""
        except UnicodeDecodeError as error:
            if name == "UTF-8" and _UTF_8.search(data):
                line = data.count(b"\n", 0, error.start) + 1
                raise RosterError(f"{path} is written in UTF-8, but line {line} has bytes that are not: save it again in UTF-8") from error
            continue
        if text and "\0" not in text:
            return text.removeprefix("\ufeff"), name
    raise RosterError(f"{path} cannot be read as a roster: it is no text in UTF-8, UTF-16 or Windows-1252; save it as CSV in UTF-8")


def _delimiter(path: Path, text: str) -> str:
    """What separates the columns: whatever lets the first line name them all."""
    lines = text[:_HEADING_AT_MOST].splitlines()[1 if _HINT.match(text) else 0 :]
    first = lines[0] if lines else ""
    found = {each: _heading(next(csv.reader([first], delimiter=each), [])) for each in _DELIMITERS}
    best = max(found, key=lambda each: len(set(COLUMNS) & set(found[each])))
    if missing := [name for name in COLUMNS if name not in found[best]]:
        raise RosterError(f"{path}: the first line of a roster must name the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    if twice := sorted({name for name in found[best] if name and found[best].count(name) > 1}):
        raise RosterError(f"{path}: the first line of the roster names {', '.join(twice)} twice")
    return best


def _heading(cells: Sequence[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def _rows(source: Source) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Each row's cells by their columns, or what is wrong with it as a row, with its line."""
    path = source.path
    try:
        text = io.StringIO(source.text, newline="")
        reader = csv.reader(text, delimiter=source.delimiter, strict=True)
        if _HINT.match(source.text):
            next(reader)
        heading = _heading(next(reader))
        may_be_cut = heading[-1] in _CUT_SHORT and not source.text.endswith(("\n", "\r"))
        count = 0
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            count += 1
            if count > _ROWS_AT_MOST:
                raise RosterError(f"{path} has more than {_ROWS_AT_MOST} rows: that is no roster")
            if len(cells) != len(heading):
                hint = "put a text with a separator in it in quotes" if len(cells) > len(heading) else "is the file cut off here?"
                yield reader.line_num, f"{len(cells)} cells where the first line names {len(heading)}: {hint}"
                continue
            if may_be_cut and text.tell() == len(source.text):
                yield reader.line_num, f"the file ends within its last line: is {heading[-1]} cut off here? End the line, if it is whole"
                continue
            row = dict(zip(heading, (cell.strip() for cell in cells), strict=True))
            odd = [f"{column}: {_character(bad)}" for column, cell in row.items() if (bad := unprintable(cell))]
            yield reader.line_num, "; ".join(odd) or row
    except csv.Error as error:
        raise RosterError(f"{path} cannot be read as a roster, line {reader.line_num}: {error}") from error


def _character(bad: str) -> str:
    """What no name has, in words."""
    names = {"\n": "a line break", "\r": "a line break", "\t": "a tab"}
    return f"has {names.get(bad, unicodedata.name(bad, 'a control character').lower())} (U+{ord(bad):04X}) in it, which no name has"


def _entry(row: dict[str, str], agency_id: str) -> pb.RosterEntry:
    """One row; ValueError says what cannot be understood."""
    officer = pb.Officer(officer_id=row["officer_id"], agency_id=agency_id, display_name=row["display_name"] or row["officer_id"])
    entry = pb.RosterEntry(officer=officer)
    if (radio := _radio(row["radio"], row.get(RADIO_DECIMAL, ""))) is not None:
        entry.radio.CopyFrom(pb.Radio(identity=radio, agency_id=agency_id, alias=row["radio_alias"]))
    _check_places(row)
    for camera_id in filter(None, (name.strip() for name in row["cameras"].split(";"))):
        entry.cameras.add(camera_id=camera_id, agency_id=agency_id, model=row["camera_model"])
    return entry


def _check_places(row: dict[str, str]) -> None:
    """ValueError if cells seem to have moved: what is taken out of the next column would be somebody else's."""
    for column in ("radio_alias", "cameras", "camera_model"):
        if _FULL.fullmatch(row[column]):
            raise ValueError(f"{column}: {row[column]} is a radio: have the cells moved?")
    if row["radio_alias"] and not (row["radio"] or row.get(RADIO_DECIMAL)):
        raise ValueError("radio_alias: there is no radio for it: have the cells moved?")
    if row["camera_model"] and not row["cameras"]:
        raise ValueError("camera_model: there is no camera for it: have the cells moved?")


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


def _radio(full: str, decimal: str) -> RadioIdentity | None:
    """A radio by its id in full, as on its display, or in decimal; None if there is neither. Half an id is somebody else's radio."""
    found = []
    for text, form, base, example in (
        (full, _FULL, 16, f"radio: {full!r} is not all of WACN-system-unit in hexadecimal, 5, 3 and 6 digits, like bee00-1a4-002328"),
        (decimal, _DECIMAL, 10, f"{RADIO_DECIMAL}: {decimal!r} is not WACN-system-unit in decimal, like 781824-420-9000"),
    ):
        if not text:
            continue
        if (parts := form.fullmatch(text)) is None:
            raise ValueError(example + (f"; decimal ids have a column of their own, {RADIO_DECIMAL}" if base == 16 else ""))
        wacn, system, unit = (int(part, base) for part in parts.groups())
        found.append(RadioIdentity(wacn=wacn, system_id=system, unit_id=unit))
    if len(found) == 2 and found[0] != found[1]:
        raise ValueError(f"radio {full} and {RADIO_DECIMAL} {decimal} are two radios")
    return found[0] if found else None


def _column(violation: object) -> str:
    path = ".".join(element.field_name for element in violation.field.elements)  # type: ignore[attr-defined]
    known = {"officer.officer_id": "officer_id", "officer.display_name": "display_name", "radio.alias": "radio_alias"}
    return known.get(path, "cameras" if path.startswith("cameras") else "radio" if path.startswith("radio") else path)


async def import_roster(
    desk: Desk, agency_id: str, path: Path, progress: Callable[[int, int], None], *, dry_run: bool = False, update: bool = False
) -> Imported:
    """Send the usable rows in batches, a few at a time; `progress` gets (done, all).

    With `dry_run` nothing is changed, and what would be different is told; `update` gives what is there the file's names.
    """
    source = await asyncio.to_thread(open_roster, path)
    entries, problems = await asyncio.to_thread(read_roster, path, agency_id, source)
    result = Imported(len(entries) + len(problems), 0, problems, source.recognised)
    named = await asyncio.to_thread(_officers, source)
    if not dry_run:
        with contextlib.suppress(grpc.aio.AioRpcError):  # there with its proper name, or not ours to make: the import itself will tell
            await create_agency(desk, agency_id)
    gate, done = asyncio.Semaphore(_AT_ONCE), len(problems)
    progress(done, result.rows)

    async def send(batch: list[Row]) -> None:
        nonlocal done
        async with gate:
            sent = [entry for _, entry in batch]
            try:
                if dry_run:
                    preview = pb.PreviewRosterRequest(agency_id=agency_id, entries=sent, update=update)
                    answer = await desk.call(desk.registry.PreviewRoster, preview, timeout=60)
                    result.created += sum(not each.HasField("before") for each in answer.changes)
                    result.differences.extend(_difference(batch[each.index][0], each) for each in answer.changes)
                else:
                    request = pb.ImportRosterRequest(agency_id=agency_id, entries=sent, update=update)
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
    result.differences.sort(key=lambda difference: difference.line)
    if dry_run:
        result.differences += [Difference(0, f"officers/{name}", shown, None) for name, shown in await _others(desk, agency_id, named)]
    return result


def _difference(line: int, change: Any) -> Difference:
    return Difference(line, change.what, change.before if change.HasField("before") else None, change.after)


def _officers(source: Source) -> set[str]:
    """Officers whom the file names, be their rows right or wrong."""
    return {row["officer_id"] for _, row in _rows(source) if not isinstance(row, str)}


async def _others(desk: Desk, agency_id: str, named: set[str]) -> list[tuple[str, str]]:
    """Officers of an agency whom a roster does not name, with their names."""
    found: list[tuple[str, str]] = []
    token = ""
    while True:
        request = pb.ListOfficersRequest(page_size=1000, page_token=token, agency_id=agency_id)
        try:
            page = await desk.call(desk.registry.ListOfficers, request, timeout=60)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return found  # the import will make the agency
            raise
        officers = [duty.officer for duty in page.officers]
        found += [(officer.officer_id, officer.display_name) for officer in officers if officer.officer_id not in named]
        if not (token := page.next_page_token):
            return found


def write_report(path: Path, problems: list[Problem]) -> Path:
    """All problems as CSV beside the file; returns its path."""
    report = path.with_suffix(".errors.csv")
    with report.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["line", "problem"])
        writer.writerows((problem.line, problem.text) for problem in problems)
    return report
