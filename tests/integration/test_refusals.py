"""Whatever is broken, oversized, unknown or not allowed gets a google.rpc.Status with a documented reason, and changes nothing."""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from chassis.rpc import connect, reason_of
from chassis.settings import RpcSettings
from cryptography.hazmat.primitives.asymmetric import ec
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.emergency.v1 import emergency_service_pb2 as pb
from sightline.emergency.v1.emergency_service_pb2_grpc import EmergencyServiceStub
from sightline.registry.v1 import registry_service_pb2 as registry_pb

from tools.desk import Desk
from tools.local.ca import LaptopCa
from tools.local.issuer import TokenMaker
from tools.local.stack import Stack, service_environment
from tools.roster import AGENCY, Member, create_agency
from tools.simulator.camera import Camera
from tools.world import World

Someone = Callable[..., Member]
RAISE = "/sightline.emergency.v1.EmergencyService/RaiseAlarm"


async def _refused(call: Any) -> tuple[str, str]:
    """Code and reason of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code().name, reason_of(error.value)


async def _raw(world: World, data: bytes) -> Any:
    """RaiseAlarm with these very bytes."""
    channel = connect(world.stack.targets["emergency"], world.stack.ca.rpc(AGENCY, "gateway", "gw-raw"))
    async with channel:
        raw: Any = channel.unary_unary(RAISE)
        await raw(data, timeout=5)


async def _count(world: World) -> int:
    """How many emergencies there are."""
    total, token = 0, ""
    while True:
        request = pb.ListEmergenciesRequest(page_size=500, page_token=token)
        page = await world.supervisor.call(world.supervisor.emergency.ListEmergencies, request)
        total += len(page.emergencies)
        token = page.next_page_token
        if not token:
            return total


async def test_broken_requests_get_a_reason_and_change_nothing(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    good = world.gateway.press(officer.radio)
    good.sent_at.CopyFrom(good.received_at)

    def broken(**changes: Any) -> bytes:
        request = pb.RaiseAlarmRequest.FromString(good.SerializeToString())
        for name, value in changes.items():
            request.ClearField(name)  # type: ignore[arg-type]
            if value is not None:
                setattr(request, name, value)
        return request.SerializeToString()

    no_radio, many = broken(radio=None), b"x" * 300_000
    wrong_unit = pb.RaiseAlarmRequest.FromString(good.SerializeToString())
    wrong_unit.radio.unit_id = 2**24
    cases = {
        "malformed": (b"\xff\xff\xff\x01 not protobuf", "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
        "truncated": (good.SerializeToString()[:-3], "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
        "oversized": (broken(radio_alias=many), "RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE"),
        "no radio": (no_radio, "INVALID_ARGUMENT", "INVALID_FIELD"),
        "unit id of 25 bits": (wrong_unit.SerializeToString(), "INVALID_ARGUMENT", "INVALID_FIELD"),
    }
    before = await _count(world)
    for name, (data, code, reason) in cases.items():
        assert (name, *await _refused(_raw(world, data))) == (name, code, reason)
    assert await _count(world) == before


async def test_a_call_without_a_deadline_is_refused(world: World) -> None:
    channel = connect(world.stack.targets["emergency"], world.stack.ca.rpc(AGENCY, "gateway", "gw-raw"))
    async with channel:
        press = world.gateway.press(RadioIdentity(wacn=1, system_id=1, unit_id=1))
        press.sent_at.CopyFrom(press.received_at)
        assert await _refused(EmergencyServiceStub(channel).RaiseAlarm(press)) == ("INVALID_ARGUMENT", "DEADLINE_REQUIRED")


async def test_a_gateway_of_an_unregistered_agency_is_refused(world: World) -> None:
    stranger = world.new_gateway("gw-x", "nowhere-pd")
    press = stranger.press(RadioIdentity(wacn=1, system_id=1, unit_id=77))
    assert await _refused(stranger.send(press)) == ("PERMISSION_DENIED", "AGENCY_UNKNOWN")


async def test_things_of_an_unknown_agency_are_not_registered(world: World) -> None:
    officer = registry_pb.Officer(officer_id="x-1", agency_id="nowhere-pd", display_name="X")
    call = world.admin.call(world.admin.registry.CreateOfficer, registry_pb.CreateOfficerRequest(officer=officer))
    assert await _refused(call) == ("NOT_FOUND", "AGENCY_UNKNOWN")


async def test_a_held_radio_cannot_be_checked_out_again(world: World, someone: Someone) -> None:
    officer, other = await world.duty(someone()), someone()
    await world.enrol([other])
    thief = registry_pb.CheckOutRequest(officer_id=other.officer_id, radios=[officer.radio])
    assert await _refused(world.admin.call(world.admin.registry.CheckOut, thief)) == ("FAILED_PRECONDITION", "DEVICE_HELD")


@pytest.mark.parametrize("kind", ["camera", "cli", "service", "gatewayx"])
async def test_a_certificate_of_the_wrong_kind_cannot_press(world: World, kind: str) -> None:
    async with connect(world.stack.targets["emergency"], world.stack.ca.rpc(AGENCY, kind, "wrong")) as channel:
        press = world.gateway.press(RadioIdentity(wacn=1, system_id=1, unit_id=78))
        press.sent_at.CopyFrom(press.received_at)
        code, reason = await _refused(EmergencyServiceStub(channel).RaiseAlarm(press, timeout=5))
        assert code in ("PERMISSION_DENIED", "UNAUTHENTICATED")
        assert reason in ("CALLER_NOT_ALLOWED", "TOKEN_INVALID")


async def test_bad_certificates_do_not_get_in(world: World, tmp_path: Path) -> None:
    ours = world.stack.ca
    foreign = LaptopCa(tmp_path / "foreign")
    press = world.gateway.press(RadioIdentity(wacn=1, system_id=1, unit_id=79))
    press.sent_at.CopyFrom(press.received_at)

    async def attempt(files: tuple[Path, Path]) -> tuple[str, str]:
        settings = RpcSettings(cert_file=files[0], key_file=files[1], ca_file=ours.certificate)
        async with connect(world.stack.targets["emergency"], settings) as channel:
            return await _refused(EmergencyServiceStub(channel).RaiseAlarm(press, timeout=5))

    assert (await attempt(foreign.issue(AGENCY, "gateway", "forged")))[0] == "UNAVAILABLE"
    assert (await attempt(ours.issue(AGENCY, "gateway", "expired", expired=True)))[0] == "UNAVAILABLE"
    other_domain = ours.issue(AGENCY, "gateway", "gw-1", trust_domain="evil.example")
    assert await attempt(other_domain) == ("UNAUTHENTICATED", "CERTIFICATE_INVALID")


async def test_without_a_certificate_there_is_no_connection(world: World) -> None:
    credentials = grpc.ssl_channel_credentials(world.stack.ca.certificate.read_bytes())
    options = [("grpc.ssl_target_name_override", "sightline")]
    async with grpc.aio.secure_channel(world.stack.targets["emergency"], credentials, options=options) as channel:
        raw: Any = channel.unary_unary(RAISE)
        assert (await _refused(raw(b"", timeout=5)))[0] == "UNAVAILABLE"


def _tokens(stack: Stack, tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Bad tokens by name, each with the reason that it must get."""
    maker = TokenMaker(stack.issuer, stack.data / "secrets" / "issuer.key")
    thief = TokenMaker(stack.issuer, tmp_path / "thief.key")
    claims, now = maker.claims("supervisor"), int(time.time())
    kid = {"kid": "laptop-1"}

    def signed(changes: dict[str, Any], headers: dict[str, str] = kid) -> str:
        return jwt.encode({k: v for k, v in (claims | changes).items() if v is not None}, maker.pem, "ES256", headers)

    def unsigned() -> str:
        parts = ({"alg": "none", "kid": "laptop-1"}, claims | {"iat": now, "exp": now + 60})
        return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts) + "."

    public = ec.generate_private_key(ec.SECP256R1())
    return {
        "none": ("", "TOKEN_INVALID"),
        "garbage": ("not.a.token", "TOKEN_INVALID"),
        "unsigned": (unsigned(), "TOKEN_INVALID"),
        "shared secret": (jwt.encode(claims, "public key as a secret, long enough", "HS256", kid), "TOKEN_INVALID"),
        "forged": (jwt.encode(claims, thief.pem, "ES256", kid), "TOKEN_INVALID"),
        "unknown key": (jwt.encode(claims, public, "ES256", {"kid": "../../etc/passwd"}), "TOKEN_INVALID"),
        "expired": (signed({"exp": now - 120}), "TOKEN_INVALID"),
        "from the future": (signed({"nbf": now + 600}), "TOKEN_INVALID"),
        "without expiry": (signed({"exp": None}), "TOKEN_INVALID"),
        "other audience": (signed({"aud": "payroll"}), "TOKEN_INVALID"),
        "other issuer": (signed({"iss": "https://evil.example"}), "TOKEN_INVALID"),
        "roles of a wrong type": (signed({"sightline_roles": "supervisor"}), "TOKEN_INVALID"),
        "huge": (signed({"pad": "x" * 20_000})[:7000] + "x" * 500, "TOKEN_INVALID"),
        "no second factor": (signed({"amr": ["pwd"]}), "SECOND_FACTOR_REQUIRED"),
        "officer": (signed({"sightline_roles": ["officer"]}), "CALLER_NOT_ALLOWED"),
    }


async def test_bad_tokens_are_refused(world: World, tmp_path: Path) -> None:
    stub, found = world.supervisor.emergency, {}
    request = pb.ListEmergenciesRequest()
    tokens = _tokens(world.stack, tmp_path)
    for name, (token, _) in tokens.items():
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        found[name] = (await _refused(stub.ListEmergencies(request, timeout=5, metadata=metadata)))[1]
    assert found == {name: reason for name, (_, reason) in tokens.items()}


async def test_another_agency_sees_and_changes_nothing(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    pressed = await world.press(officer.radio)
    async with Desk(world.stack, "partner") as partner:
        get = pb.GetEmergencyRequest(emergency_id=pressed.emergency_id)
        assert await _refused(partner.call(partner.emergency.GetEmergency, get)) == ("NOT_FOUND", "NOT_FOUND")
        clear = pb.ClearRequest(emergency_id=pressed.emergency_id, disposition=1)  # type: ignore[arg-type]
        assert await _refused(partner.call(partner.emergency.Clear, clear)) == ("NOT_FOUND", "NOT_FOUND")
        listed = await partner.call(partner.emergency.ListEmergencies, pb.ListEmergenciesRequest(page_size=500))
        assert {e.agency_id for e in listed.emergencies} <= {"partner-pd"}


async def test_a_gateway_of_another_agency_starts_no_camera_of_ours(world: World, someone: Someone) -> None:
    """Without an agreement a foreign gateway's word is not enough; the emergency is theirs, and visible to them."""
    officer = await world.duty(someone())
    await create_agency(world.admin, "partner-pd")
    foreign = world.new_gateway("gw-p", "partner-pd")
    pressed = await foreign.send(foreign.press(officer.radio))
    async with Desk(world.stack, "partner") as partner:
        shown = await partner.call(partner.emergency.GetEmergency, pb.GetEmergencyRequest(emergency_id=pressed.emergency_id))
    assert shown.emergency.subject.home_agency_id == AGENCY
    assert not world.cameras[officer.camera_ids[0]].starts


async def test_a_camera_of_another_agency_cannot_take_a_cameras_place(world: World, someone: Someone) -> None:
    """The same camera id under another agency's certificate is another camera, and gets none of our orders."""
    officer = someone()
    name, target = officer.camera_ids[0], world.stack.targets["streams"]
    impostor = Camera(name, world.stack.ca.rpc("partner-pd", "camera", name), target)
    await world.power_on(impostor)
    await world.duty(officer)

    pressed = await world.press(officer.radio)

    assert await world.states(pressed.emergency_id) == {name: "RECORDING"}
    assert len(world.cameras[name].starts) == 1
    assert not impostor.starts
    await impostor.power_off()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"SIGHTLINE_KAFKA_BOOTSTRAP": None}, "SIGHTLINE_KAFKA_BOOTSTRAP"),
        ({"SIGHTLINE_KAFKA_BOOTSTRAP": "nonsense"}, "SIGHTLINE_KAFKA_BOOTSTRAP"),
        ({"SIGHTLINE_RPC_CERT_FILE": "/nowhere.pem"}, "SIGHTLINE_RPC_CERT_FILE"),
        ({"SIGHTLINE_DATABASE_URL": None}, "SIGHTLINE_DATABASE_URL"),
        (
            {"SIGHTLINE_KAFKA_BOOTSTRP": "x"},
            "SIGHTLINE_KAFKA_BOOTSTRP is no setting of any service: did you mean SIGHTLINE_KAFKA_BOOTSTRAP?",
        ),
        ({"SIGHTLINE_RETENTION_DAY": "90"}, "SIGHTLINE_RETENTION_DAY is no setting of any service: did you mean SIGHTLINE_RETENTION_DAYS?"),
        ({"SIGHTLINE_PROFILE": "production"}, "laptop CA"),
    ],
)
def test_a_service_with_a_wrong_setting_says_which_and_exits(stack: Stack, change: dict[str, str | None], says: str) -> None:
    environment = service_environment(stack, "registry-a") | {"PYTHONPATH": "libs:."}
    for name, value in change.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    done = _start(environment)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def _start(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A registry that cannot start: it ends by itself."""
    command = [sys.executable, "-m", "services.registry"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_another_services_setting_is_told_and_stops_nothing(stack: Stack) -> None:
    """W10: the chart gives common ones to all. It goes on to what is really wrong."""
    environment = service_environment(stack, "registry-a") | {"PYTHONPATH": "libs:.", "SIGHTLINE_RETENTION_DAYS": "90"}
    done = _start(environment | {"SIGHTLINE_PROFILE": "production"})
    assert "SIGHTLINE_RETENTION_DAYS is a setting of evidence" in done.stderr
    assert "laptop CA" in done.stderr


def test_a_certificate_that_no_peer_would_believe_ends_the_start(stack: Stack) -> None:
    """W6: as values.yaml had described it, with a URI SAN only: all pods ready, and every press fails."""
    certificate, key = stack.ca.issue("platform", "service", "nameless", dns=())
    environment = service_environment(stack, "registry-a") | {
        "PYTHONPATH": "libs:.", "SIGHTLINE_RPC_CERT_FILE": str(certificate), "SIGHTLINE_RPC_KEY_FILE": str(key),
        "SIGHTLINE_RPC_LISTEN": "127.0.0.1:0", "SIGHTLINE_RPC_HEALTH_LISTEN": "127.0.0.1:0",
    }  # fmt: skip
    done = _start(environment)
    assert done.returncode == 1
    assert "has no DNS SAN 'sightline'" in done.stderr
    assert "Traceback" not in done.stderr
