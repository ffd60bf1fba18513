"""What an operator uses: the doctor and the roster import."""

from dataclasses import replace
from pathlib import Path

import pytest
from chassis.settings import KafkaSettings

from tools.doctor import Level, Patient, examine
from tools.importer import COLUMNS, RosterError, import_roster, read_roster, write_report
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
    good = "".join(f"ro-{n},Officer {n},bee00-1a4-{0x70000 + n:x},P{n},ro-cam-{n}a;ro-cam-{n}b,X\n" for n in range(250))
    taken = "ro-taken,Taken,bee00-1a4-70000,another alias,,\n"  # line 252: this radio is in line 2
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
    file.write_text(HEADING + "one,,BEE00-1A4-70,,same,\nsame,,bee00-1a4-000070,,,\n")
    entries, problems = read_roster(file, "demo-pd")
    assert [entry.officer.officer_id for _, entry in entries] == ["one"]
    assert [problem.text for problem in problems] == ["radio bee00-1a4-000070 is in line 2 too"]


@pytest.mark.parametrize("content", ["", "name,badge\nx,1\n", HEADING + '"open quote\n', "\xff\xfe"])
def test_a_file_that_is_no_roster_says_so(tmp_path: Path, content: str) -> None:
    file = tmp_path / "roster.csv"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(RosterError, match="roster"):
        read_roster(file, "demo-pd")
