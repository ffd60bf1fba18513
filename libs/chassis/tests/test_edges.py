"""Identities, page tokens, settings: what comes in from outside."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from chassis.clock import Skew
from chassis.errors import InvalidRequest, Unauthenticated
from chassis.identity import Machine, parse_machine
from chassis.intake import settle, violations, with_text_repaired
from chassis.names import KeptEnum, readable, unprintable
from chassis.paging import page_cursor, page_token
from chassis.recent import Tally
from chassis.rpc import check
from chassis.settings import KafkaSettings, ServiceSettings, load
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sightline.common.v1.radio_pb2 import Position, RadioIdentity
from sightline.emergency.v1.emergency_service_pb2 import RaiseAlarmRequest
from sightline.streams.v1.camera_link_service_pb2 import CameraReport
from testkit.messages import messages

quickly = settings(deadline=None, suppress_health_check=list(HealthCheck))


class DemoSettings(ServiceSettings):
    """A service with one block."""

    kafka: KafkaSettings


def test_a_certificate_names_its_machine() -> None:
    assert parse_machine(["spiffe://td/agency/pd/camera/cam-1"], "td") == Machine("td", "pd", "camera", "cam-1")


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["spiffe://other/agency/pd/camera/cam-1"],
        ["spiffe://td/agency/pd/camera/cam-1", "spiffe://td/agency/pd/service/emergency"],
        ["spiffe://td/agency/pd/camera/cam-1/service/x"],
        ["spiffe://td/agency/../camera/cam-1"],
        ["spiffe://td/agency/pd/camera/cam-1?kind=service"],
        ["https://td/agency/pd/camera/cam-1"],
        ["spiffe://td/agency/PD/camera/cam-1"],
        ["spiffe://td@evil/agency/pd/camera/cam-1"],
    ],
)
def test_anything_else_names_nobody(uris: list[str]) -> None:
    with pytest.raises(Unauthenticated):
        parse_machine(uris, "td")


@given(st.text(max_size=50), st.text(max_size=50))
def test_a_page_token_brings_its_cursor_back(query: str, cursor: str) -> None:
    assert page_cursor(query, page_token(query, cursor)) == cursor


@given(st.text(min_size=1, max_size=200))
def test_no_text_is_a_page_token_by_accident(token: str) -> None:
    with pytest.raises(InvalidRequest):
        page_cursor("query", token)


def test_a_page_token_of_another_query_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        page_cursor("b", page_token("a", "x"))


@pytest.mark.parametrize(
    "message", [RadioIdentity(unit_id=0), RadioIdentity(unit_id=1, wacn=2**20), Position(latitude=91), Position(latitude=float("nan"))]
)
def test_the_rules_of_the_schema_are_kept(message: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(message)
    assert refused.value.violations


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "SIGHTLINE_KAFKA_BOOTSTRAP"),
        ({"SIGHTLINE_KAFKA_BOOTSTRAP": "a:1"}, "needs username and password_file"),
        ({"SIGHTLINE_KAFKA_BOOTSTRAP": "a:1", "SIGHTLINE_KAFKA_SECURITY": "PLAINTEXT"}, "production needs SSL or SASL_SSL"),
        (
            {"SIGHTLINE_KAFKA_BOOTSTRAP": "a:1", "SIGHTLINE_KAFKA_SECURITY": "TELNET", "SIGHTLINE_PROFILE": "laptop"},
            "SIGHTLINE_KAFKA_SECURITY",
        ),
    ],
)
def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str], says: str
) -> None:
    for name in ("SIGHTLINE_KAFKA_BOOTSTRAP", "SIGHTLINE_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        load(DemoSettings)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_process_that_gives_way_weighs_less_than_its_peers_and_so_does_its_session() -> None:
    program = "import os; from chassis.run import give_way; give_way(7); print(os.nice(0), open('/proc/self/autogroup').read())"
    if not Path("/proc/self/autogroup").exists():
        program = program.replace("open('/proc/self/autogroup').read()", "'nice 7'")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, start_new_session=True)  # noqa: S603
    assert int(done.stdout.split()[0]) == os.nice(0) + 7
    assert done.stdout.split()[-2:] == ["nice", "7"]


def _load(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name in [name for name in os.environ if name.startswith("SIGHTLINE_")]:
        monkeypatch.delenv(name)
    for name, value in {"KAFKA_BOOTSTRAP": "k:9092", "KAFKA_SECURITY": "PLAINTEXT", "PROFILE": "laptop", **environment}.items():
        monkeypatch.setenv(f"SIGHTLINE_{name}", value)
    load(DemoSettings)


def test_a_variable_that_no_service_knows_ends_the_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """W10: taken silently, a misspelt retention deletes evidence."""
    for wrong, right in (("KAFKA_BOOTSTRP", "KAFKA_BOOTSTRAP"), ("KAFKA_USERNAM", "KAFKA_USERNAME"), ("REPLCA", "REPLICA")):
        with pytest.raises(SystemExit) as ended:
            _load(monkeypatch, **{wrong: "x"})
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert f"SIGHTLINE_{wrong} is no setting of any service: did you mean SIGHTLINE_{right}?" in said
        assert len(said.splitlines()) == 2  # the heading, and it


def test_what_kubernetes_sets_for_services_is_no_setting_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    links = (
        "EMERGENCY_SERVICE_HOST",
        "EMERGENCY_SERVICE_PORT",
        "EMERGENCY_SERVICE_PORT_GRPC",
        "EMERGENCY_PORT",
        "EMERGENCY_PORT_8443_TCP_ADDR",
    )
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    _load(monkeypatch, **dict.fromkeys(links, "tcp://10.0.0.1:8443"))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("INGEST_PORT", "90", "SIGHTLINE_INGEST_PORT is no setting of any service"),  # looks like a link, and no Service has such a name
        (
            "KAFKA",
            '{"bootstrap": "k:1", "securty": "SSL"}',
            "SIGHTLINE_KAFKA_SECURTY is no setting: did you mean SIGHTLINE_KAFKA_SECURITY?",
        ),
        ("KAFKA", "{broken", "kafka"),
    ],
)
def test_whatever_is_wrong_with_settings_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, said: str
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(SystemExit):
        _load(monkeypatch, **{name: value})
    assert said in capsys.readouterr().err


# --- what is left out ------------------------------------------------------------------------------------------------------


def _reported(**fields: object) -> CameraReport:
    return CameraReport(boot_id=1, sequence=2, **fields)  # type: ignore[arg-type]


GOOD_ORDER = {"emergency_id": "0193a6f0-1111-7000-8000-000000000000", "epoch": 1, "result": 2}


def test_text_that_is_not_utf_8_makes_no_message_unreadable() -> None:
    """Raw bytes of a UUID, a Latin-1 name: the field's rule decides, like with any other value."""
    radio = RadioIdentity(wacn=1, system_id=2, unit_id=3)
    garbled = b"\x0a\x10" + bytes(range(0xF0, 0x100)) + RaiseAlarmRequest(radio=radio, talkgroup_id=7).SerializeToString()
    with pytest.raises(DecodeError):
        RaiseAlarmRequest.FromString(garbled)
    press = with_text_repaired(RaiseAlarmRequest.FromString, garbled)
    assert isinstance(press, RaiseAlarmRequest)
    assert list(settle(press, {"radio"})) == ["request_id"]
    assert (press.radio, press.talkgroup_id) == (radio, 7)
    report = CameraReport(boot_id=1, sequence=2, battery_percent=9)
    report.handled.add(emergency_id="x" * 36, epoch=1)
    report.handled.add(**GOOD_ORDER)
    mended = with_text_repaired(CameraReport.FromString, report.SerializeToString().replace(b"x" * 36, b"\xff" * 36))
    assert isinstance(mended, CameraReport)
    assert list(settle(mended, ())) == ["handled[0].emergency_id", "handled[0].result"]
    assert [each.emergency_id for each in mended.handled] == [GOOD_ORDER["emergency_id"]]
    assert with_text_repaired(RaiseAlarmRequest.FromString, b"\x0a\xff") is None  # cut off: nobody knows where


def test_out_goes_the_smallest_part_that_means_something() -> None:
    press = RaiseAlarmRequest(radio=RadioIdentity(wacn=1, system_id=2, unit_id=3), status=7)  # type: ignore[arg-type]
    press.position.CopyFrom(Position(latitude=52, longitude=200, accuracy_m=5))
    assert settle(press, {"radio"}) == {"request_id": "", "status": "7", "position.longitude": "200.0"}
    assert not press.HasField("position")  # half a place is another place
    press.position.CopyFrom(Position(latitude=52, longitude=4, accuracy_m=-1))
    assert settle(press, {"radio"}) == {"request_id": "", "position.accuracy_m": "-1.0"}
    assert (press.position.latitude, press.position.HasField("accuracy_m")) == (52, False)


def test_of_a_list_the_good_entries_stay() -> None:
    bad = [GOOD_ORDER | {"epoch": 0}, GOOD_ORDER | {"result": 9}, GOOD_ORDER | {"emergency_id": "x"}]
    report = _reported(handled=[bad[0], GOOD_ORDER, bad[1], GOOD_ORDER | {"result": 4, "refusal_reason": 6}, bad[2]], battery_percent=255)
    left_out = settle(report, ())
    assert [(order.result, order.refusal_reason) for order in report.handled] == [(2, 0), (4, 0)]
    assert not report.HasField("battery_percent")
    assert {"battery_percent", "handled[0].epoch", "handled[2].result", "handled[3].refusal_reason"} <= set(left_out)
    assert left_out["battery_percent"] == "255"


def test_what_identity_lacks_is_refused_by_name() -> None:
    for radio in (None, RadioIdentity(), RadioIdentity(wacn=1, unit_id=2**24)):
        with pytest.raises(InvalidRequest, match="radio"):
            settle(RaiseAlarmRequest(radio=radio, request_id="nonsense"), {"radio"})


@quickly
@given(messages(CameraReport))
def test_whatever_is_in_a_report_something_is_left(data: bytes) -> None:
    report = with_text_repaired(CameraReport.FromString, data)
    assert report is not None
    settle(report, ())
    assert not violations(report)


# --- clocks, counts, text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead_s", [0, 0.05, 0.2, 120, -120, 86_400])
def test_how_far_another_clock_is_ahead_is_found_out_by_asking(ahead_s: float) -> None:
    now, ahead = datetime(2026, 12, 1, tzinfo=UTC), timedelta(seconds=ahead_s)
    skew = Skew()
    for _ in range(3):
        skew.measured(now, now + timedelta(milliseconds=5) + ahead, now + timedelta(milliseconds=10))
    assert skew.ahead == (ahead if abs(ahead_s) > 0.1 else timedelta(0))
    skew.measured(now, now, now)  # set right
    assert skew.ahead == timedelta(0)


def test_a_slow_answer_is_no_other_clock() -> None:
    now, skew = datetime(2026, 12, 1, tzinfo=UTC), Skew()
    skew.measured(now, now + timedelta(seconds=3), now + timedelta(seconds=4))
    assert skew.ahead == timedelta(0)


def test_what_comes_again_and_again_is_counted_by_the_minute() -> None:
    now, tally = datetime(2026, 12, 1, tzinfo=UTC), Tally[str](at_most=2)
    assert [tally.count("a", 5, now), tally.count("a", 1, now), tally.count("b", 1, now)] == [True, False, True]
    assert [tally.count("c", 1, now), tally.count("d", 7, now)] == [True, False]  # beyond its size they are one
    assert tally.take(now + timedelta(seconds=59)) == []
    assert tally.take(now + timedelta(seconds=60)) == [("a", 1), (None, 7)]
    assert tally.take(now + timedelta(seconds=60)) == []
    assert tally.count("a", 1, now + timedelta(seconds=61))


@pytest.mark.parametrize(
    ("raw", "text", "whole"),
    [
        (b"P12", "P12", True), (b"P12\0\0\0", "P12", True), ("Müller".encode(), "Müller", True), (b"M\xfcller", "M\ufffdller", False),
        (b"x" * 9, "xxxxxxxx", False), ("a\u202eb".encode(), "a\ufffdb", False), (b"a\nb", "a\ufffdb", False), (b"", "", True),
    ],
)  # fmt: skip
def test_text_of_a_device_can_be_shown(raw: bytes, text: str, whole: bool) -> None:
    assert readable(raw, 8) == (text, whole)


@given(st.binary(max_size=300))
def test_any_bytes_can_be_shown(raw: bytes) -> None:
    text, _ = readable(raw, 64)
    assert len(text) <= 64
    assert not unprintable(text.replace("\ufffd", ""))
    text.encode()


def test_a_value_of_another_release_is_kept() -> None:
    class Colour(KeptEnum):
        RED = "RED"

    mauve = Colour("MAUVE")
    assert (mauve, mauve.value, str(mauve), f"{mauve}", mauve == Colour.RED) == ("MAUVE", "MAUVE", "MAUVE", "MAUVE", False)
    assert Colour("RED") is Colour.RED
    assert hash(mauve) == hash("MAUVE")
    with pytest.raises(ValueError, match="7"):
        Colour(7)  # type: ignore[arg-type]
