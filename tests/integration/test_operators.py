"""What an operator uses: the doctor and the roster import."""

from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from chassis.settings import KafkaSettings
from sightline.registry.v1 import registry_service_pb2 as registry_pb

from tools.desk import Desk
from tools.doctor import Level, Patient, examine
from tools.importer import COLUMNS, RosterError, import_roster, open_roster, read_roster, write_report
from tools.world import World

HEADING = ",".join(COLUMNS) + "\n"


def _patient(world: World) -> Patient:
    stack = world.stack
    kafka = KafkaSettings(bootstrap=stack.kafka, security="PLAINTEXT")
    return Patient(kafka, stack.database, (stack.ca.certificate,), stack, laptop=True)


def test_the_doctor_finds_a_laptop_well(world: World) -> None:
    findings = list(examine(replace(_patient(world), database=None)))
    assert not [finding for finding in findings if finding.level == Level.FAILURE]
    assert {"brokers", "topics", "replication", "lane a", "lane b", "services"} <= {finding.what for finding in findings}


def test_the_doctor_asks_more_of_production(world: World) -> None:
    findings = {(f.what, f.level): f for f in examine(replace(_patient(world), laptop=False, stack=None))}
    assert "replication factor 3" in findings["replication", Level.FAILURE].fix
    assert "ANY 1" in findings["durability", Level.FAILURE].fix
    assert findings["brokers", Level.WARNING].fix


def test_the_doctor_says_what_does_not_answer_and_goes_on(world: World) -> None:
    nowhere = KafkaSettings(bootstrap="127.0.0.1:1", security="PLAINTEXT")
    dead = Patient(nowhere, "postgresql://nobody@127.0.0.1:1/none", (world.stack.ca.certificate,), laptop=True)
    findings = list(examine(dead))
    assert {f.what for f in findings if f.level == Level.FAILURE} >= {"brokers", "topics", "database", "durability", "clock"}
    assert all(f.fix for f in findings if f.level == Level.FAILURE)


async def test_a_roster_is_taken_but_for_its_wrong_rows(world: World, tmp_path: Path) -> None:
    file = tmp_path / "roster.csv"
    good = "".join(f"ro-{n},Officer {n},bee00-1a4-{0x70000 + n:06x},P{n},ro-cam-{n}a;ro-cam-{n}b,X\n" for n in range(250))
    taken = "ro-taken,Taken,bee00-1a4-070000,another alias,,\n"  # line 252: this radio is in line 2
    wrong = "Bad Id,x,,,,\nro-radio,x,nonsense,,,\nro-cam,x,,,not a camera,\nro-1,again,,,,\n"
    file.write_text(HEADING + good + taken + wrong)
    shown: list[tuple[int, int]] = []

    found = await import_roster(world.admin, world.agency_id, file, lambda done, total: shown.append((done, total)))

    assert found.rows == 255
    assert [problem.line for problem in found.problems] == [252, 253, 254, 255, 256]
    assert found.created == 250 * 4
    assert shown[-1] == (255, 255)
    report = write_report(file, found.problems).read_text()
    assert "'nonsense'" in report
    again = await import_roster(world.admin, world.agency_id, file, lambda done, total: None)
    assert (again.created, len(again.problems)) == (0, 5)


async def test_what_exists_with_other_content_is_reported_and_left_alone(world: World, tmp_path: Path) -> None:
    file = tmp_path / "roster.csv"
    file.write_text(HEADING + "ro-same,First,,,,\n")
    await import_roster(world.admin, world.agency_id, file, lambda done, total: None)
    file.write_text(HEADING + "ro-same,Second,,,ro-same-cam,\nro-other,Other,,,,\n")
    found = await import_roster(world.admin, world.agency_id, file, lambda done, total: None)
    assert [(p.line, "exists with other content" in p.text) for p in found.problems] == [(2, True)]
    assert found.created == 1  # the other officer; the first row's camera is not taken either


async def test_rows_that_are_too_large_for_one_request_go_in_several(world: World, tmp_path: Path) -> None:
    file = tmp_path / "roster.csv"
    cameras = [";".join(f"ro-large-{n}-{camera}-{'x' * 40}" for camera in range(16)) for n in range(60)]
    file.write_text(HEADING + "".join(f"ro-large-{n},{'L' * 60},,,{carried},X\n" for n, carried in enumerate(cameras)))
    found = await import_roster(world.admin, world.agency_id, file, lambda done, total: None)
    assert (found.problems, found.created) == ([], 60 * 17)


def test_a_radio_is_one_radio_however_it_is_written_and_no_officer(tmp_path: Path) -> None:
    file = tmp_path / "roster.csv"
    file.write_text(HEADING + "one,,BEE00-1A4-000070,,same,\nsame,,bee00-1a4-000070,,,\n")
    entries, problems = read_roster(file, "demo-pd")
    assert [entry.officer.officer_id for _, entry in entries] == ["one"]
    assert [problem.text for problem in problems] == ["radio bee00-1a4-000070 is in line 2 too"]


@pytest.mark.parametrize("content", ["", "name,badge\nx,1\n", HEADING + '"open quote\n', "\xff\xfe"])
def test_a_file_that_is_no_roster_says_so(tmp_path: Path, content: str) -> None:
    file = tmp_path / "roster.csv"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(RosterError, match="roster"):
        read_roster(file, "demo-pd")


ODD = {
    "a comma too many": ("o1,Jane Doe,bee00-1a4-002328,P12,spare,cam-1,bwc3", "7 cells where the first line names 6"),
    "a cell too few": ("o1,Jane Doe,bee00-1a4-002328,P12", "4 cells where the first line names 6: is the file cut off here?"),
    "cut off in the radio": ("o1,Jane Doe,bee00-1a4-0023,,,", "not all of WACN-system-unit in hexadecimal"),
    "a unit in decimal": ("o1,Jane Doe,bee00-1a4-9000,,,", "decimal ids have a column of their own, radio_decimal"),
    "a radio of other digits": ("o1,Jane Doe,bee00-1a4-00232８,,,", "not all of WACN-system-unit"),
    "cells moved by an empty one": ("o1,Jane Doe,,bee00-1a4-002328,P12,cam-1", "radio_alias: bee00-1a4-002328 is a radio"),
    "an alias without its radio": ("o1,Jane Doe,,P12,cam-1,bwc3", "radio_alias: there is no radio for it"),
    "a model without its camera": ("o1,Jane Doe,bee00-1a4-002328,P12,,bwc3", "camera_model: there is no camera for it"),
    "writing turned round": ("o1,Jane\u202eeoD,,,,", "right-to-left override (U+202E)"),
    "a line break": ('o1,"Jane\nDoe",,,,', "a line break (U+000A)"),
    "an invisible space": ("o1,Jane\u200bDoe,,,,", "zero width space (U+200B)"),
}


@pytest.mark.parametrize(("row", "says"), ODD.values(), ids=ODD.keys())
def test_a_row_that_would_be_taken_for_another_is_a_problem_of_its_line(tmp_path: Path, row: str, says: str) -> None:
    """I14 to I17: nothing is guessed."""
    file = tmp_path / "roster.csv"
    file.write_text(HEADING + "ok,Fine,bee00-1a4-000001,,,\n" + row, encoding="utf-8")
    entries, problems = read_roster(file, "demo-pd")
    assert [entry.officer.officer_id for _, entry in entries] == ["ok"]
    assert [problem.line for problem in problems] in ([3], [4])  # of a text over two lines the last
    assert says in problems[0].text


@pytest.mark.parametrize(("last", "cell"), [("radio_decimal", "781824-420-90"), ("cameras", "cam-1"), ("officer_id", "o1")])
def test_a_file_that_ends_within_an_id_is_cut_off_there(tmp_path: Path, last: str, cell: str) -> None:
    """I15: the beginning of an id is somebody else's, and only the end of the line shows that it is whole."""
    file, columns = tmp_path / "roster.csv", [column for column in (*COLUMNS, "radio_decimal") if column != last]
    heading = ",".join([*columns, last])
    row = ",".join([*("whole" if column == "officer_id" else "" for column in columns), cell])
    for text, lines in ((f"{heading}\n{row}", [2]), (f"{heading}\n{row}\n", []), (f"{heading}\r\n{row}\r\n", [])):
        file.write_text(text, newline="")
        _, problems = read_roster(file, "demo-pd")
        assert [problem.line for problem in problems] == lines
        assert all(f"is {last} cut off here?" in problem.text for problem in problems)


def test_what_excel_says_of_its_separator_is_no_heading(tmp_path: Path) -> None:
    file = tmp_path / "roster.csv"
    file.write_text("sep=;\n" + HEADING.replace(",", ";") + "o1;Jane;;;;\n;bad;;;;\n")
    entries, problems = read_roster(file, "demo-pd")
    assert ([line for line, _ in entries], [problem.line for problem in problems]) == ([3], [4])


def test_one_wrong_byte_makes_no_other_names(tmp_path: Path) -> None:
    file = tmp_path / "roster.csv"
    file.write_bytes((HEADING + "o1,Jané,,,,\no2,Andr").encode() + b"\xe9,,,,\n")
    with pytest.raises(RosterError, match="line 3 has bytes that are not"):
        read_roster(file, "demo-pd")


async def test_a_dry_run_of_a_new_agency_shows_its_roster(world: World, tmp_path: Path) -> None:
    file = tmp_path / "roster.csv"
    file.write_text(HEADING + "new-1,One,,,,\nnew-2,T\u202ewo,,,,\n", encoding="utf-8")
    async with Desk(world.stack, "platform-admin") as desk:
        found = await import_roster(desk, "not-there-yet", file, lambda done, total: None, dry_run=True)
    assert [(each.what, each.before) for each in found.differences] == [("officers/new-1", None)]
    assert (found.created, [problem.line for problem in found.problems]) == (1, [3])


def test_ids_in_decimal_have_a_column_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "roster.csv"
    file.write_text(
        HEADING.replace("radio_alias", "radio_alias,radio_decimal")
        + "one,,,P1,781824-420-9000,,\nboth,,bee00-1a4-002329,,781824-420-9001,,\n"
        + "odd,,bee00-1a4-000005,,781824-420-6,,\nhex,,,,bee00-1a4-9000,,\n"
    )
    entries, problems = read_roster(file, "demo-pd")
    assert [entry.radio.identity.unit_id for _, entry in entries] == [9000, 0x2329]
    assert [problem.line for problem in problems] == [4, 5]
    assert "two radios" in problems[0].text
    assert "781824-420-9000" in problems[1].text


@pytest.mark.parametrize(
    ("encoding", "delimiter", "recognised"),
    [
        ("utf-8", ",", "UTF-8, separated by commas"), ("utf-8-sig", ";", "UTF-8, separated by semicolons"),
        ("utf-16", "\t", "UTF-16, separated by tabs"), ("utf-16-le", ";", "UTF-16, separated by semicolons"),
        ("utf-16-be", ",", "UTF-16, separated by commas"), ("cp1252", ";", "Windows-1252, separated by semicolons"),
    ],
)  # fmt: skip
def test_what_spreadsheets_write_is_read(tmp_path: Path, encoding: str, delimiter: str, recognised: str) -> None:
    """I18: Excel in half of Europe."""
    file = tmp_path / "roster.csv"
    rows = (HEADING + 'o1,Jürgen Groß,bee00-1a4-002328,P1,"cam-1;cam-2",BWC\n').replace(",", delimiter)
    file.write_bytes(rows.replace("\n", "\r\n").encode(encoding))
    ((line, entry),), problems = read_roster(file, "demo-pd")
    assert (line, problems, open_roster(file).recognised) == (2, [], recognised)
    assert (entry.officer.display_name, [camera.camera_id for camera in entry.cameras]) == ("Jürgen Groß", ["cam-1", "cam-2"])


async def test_a_dry_run_shows_what_would_come_of_it_and_changes_nothing(world: World, tmp_path: Path) -> None:
    file, nobody = tmp_path / "roster.csv", lambda done, total: None
    file.write_text(HEADING + "dr-1,One,bee00-1a4-060001,P1,dr-cam-1,X\ndr-2,Two,,,,\n")
    await import_roster(world.admin, world.agency_id, file, nobody)
    file.write_text(HEADING + "dr-1,Uno,bee00-1a4-060001,P9,dr-cam-1,Y\ndr-3,Three,,,dr-cam-3,X\n")
    for _ in range(2):  # nothing came of the first time
        found = await import_roster(world.admin, world.agency_id, file, nobody, dry_run=True)
        shown = [(each.what, each.before, each.after) for each in found.differences if each.line]
        assert shown == [
            ("officers/dr-1", "One", "Uno"), ("radios/bee00-1a4-060001", "P1", "P9"), ("cameras/dr-cam-1", "X", "Y"),
            ("officers/dr-3", None, "Three"), ("cameras/dr-cam-3", None, "X"),
        ]  # fmt: skip
        missing = {each.what: each.before for each in found.differences if each.after is None}
        assert missing["officers/dr-2"] == "Two"
        assert "officers/dr-1" not in missing
        assert (found.created, [problem.line for problem in found.problems]) == (2, [2])

    updated = await import_roster(world.admin, world.agency_id, file, nobody, update=True)

    assert (updated.created, updated.problems) == (2, [])
    again = await import_roster(world.admin, world.agency_id, file, nobody, dry_run=True)
    assert [each for each in again.differences if each.line] == []


async def test_the_registry_takes_no_such_name_from_anybody(world: World) -> None:
    """I17, behind every door: what a person sees is what is there."""
    for name in ("Jane\u202eeoD", "Jane\nDoe", "Jane\u2028Doe", "Jane\x07"):
        request = registry_pb.CreateOfficerRequest(officer=registry_pb.Officer(officer_id="odd-1", agency_id="demo-pd", display_name=name))
        with pytest.raises(grpc.aio.AioRpcError, match="display_name: has control characters, line breaks"):
            await world.admin.call(world.admin.registry.CreateOfficer, request)
    joined = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"  # needs its joiner
    request.officer.display_name = joined
    await world.admin.call(world.admin.registry.CreateOfficer, request)
