"""Identities, page tokens, settings: what comes in from outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from chassis.errors import InvalidRequest, Unauthenticated
from chassis.identity import Machine, parse_machine
from chassis.paging import page_cursor, page_token
from chassis.rpc import check
from chassis.settings import KafkaSettings, ServiceSettings, load
from hypothesis import given
from hypothesis import strategies as st
from sightline.common.v1.radio_pb2 import Position, RadioIdentity


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
