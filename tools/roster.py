"""People and things for drills and demonstrations, registered through the registry's own API."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.registry.v1 import registry_service_pb2 as pb

from tools.desk import Desk

AGENCY = "demo-pd"
WACN, SYSTEM = 0xBEE00, 0x1A4
_AT_ONCE = 8


@dataclass(frozen=True)
class Member:
    """An officer with a radio and cameras."""

    officer_id: str
    radio: RadioIdentity
    camera_ids: tuple[str, ...]
    unit_id: str = ""


def radio(unit_id: int) -> RadioIdentity:
    """A radio of the demo system."""
    return RadioIdentity(wacn=WACN, system_id=SYSTEM, unit_id=unit_id)


def member(name: str, number: int, cameras: int = 1) -> Member:
    """An officer whose things are numbered like the officer."""
    ids = tuple(f"cam-{name}-{number:04d}" + (f"-{i}" if i else "") for i in range(cameras))
    return Member(f"{name}-{number:04d}", radio(number), ids, f"unit-{number // 2:03d}")


async def create_agency(desk: Desk, agency_id: str) -> None:
    """Register an agency; repeating it is harmless."""
    await desk.call(desk.registry.CreateAgency, pb.CreateAgencyRequest(agency=pb.Agency(agency_id=agency_id, display_name=agency_id)))


async def register(desk: Desk, agency_id: str, members: list[Member]) -> None:
    """Register an agency with its members and their things; repeating it is harmless."""
    await create_agency(desk, agency_id)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(each: Member) -> None:
        async with gate:
            officer = pb.Officer(officer_id=each.officer_id, agency_id=agency_id, display_name=each.officer_id)
            await desk.call(desk.registry.CreateOfficer, pb.CreateOfficerRequest(officer=officer))
            device = pb.Radio(identity=each.radio, agency_id=agency_id, alias=f"P{each.radio.unit_id}")
            await desk.call(desk.registry.RegisterRadio, pb.RegisterRadioRequest(radio=device))
            for camera_id in each.camera_ids:
                camera = pb.Camera(camera_id=camera_id, agency_id=agency_id, model="simulated")
                await desk.call(desk.registry.RegisterCamera, pb.RegisterCameraRequest(camera=camera))

    await asyncio.gather(*map(one, members))


async def check_out(desk: Desk, each: Member, ago: timedelta | None = None, *, take_over: bool = False) -> None:
    """Start a member's shift, now or some time ago; with `take_over` also what somebody still holds."""
    request = pb.CheckOutRequest(
        officer_id=each.officer_id, radios=[each.radio], camera_ids=each.camera_ids, unit_id=each.unit_id, take_over=take_over
    )
    if ago:
        getattr(request, "from").FromDatetime(datetime.now(UTC) - ago)
    await desk.call(desk.registry.CheckOut, request)


async def check_in(desk: Desk, each: Member) -> None:
    """End a member's shift."""
    await desk.call(desk.registry.CheckIn, pb.CheckInRequest(officer_id=each.officer_id))
