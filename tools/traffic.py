"""A force that moves through Ravensford: on foot and in cars, with shifts that begin and end, and dead zones that come and go."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from sightline.location.v1.position_pb2 import Device, Refusal
from sightline.registry.v1 import registry_service_pb2 as registry_pb
from sightline.registry.v1.device_pb2 import FixedCamera, Vehicle

from tools.local.stack import Stack
from tools.roster import AGENCY, Member, member
from tools.simulator.city import City, ravensford, walkers
from tools.simulator.mover import Mover, Reporter, drive, radio_device
from tools.world import World

_FIRST_UNIT, _ON_FOOT_MPS, _BY_CAR_MPS, _RESERVE = 7000, 1.4, 11.0, 4
_CAMERAS_EVERY = 389  # crossings; no multiple of a row


@dataclass
class Told:
    """What became of the fixes so far."""

    taken: int = 0
    refused: dict[str, int] = field(default_factory=dict)


@asynccontextmanager
async def force(stack: Stack, officers: int, say: Callable[[str], None]) -> AsyncIterator[tuple[World, list[Member], City]]:
    """Officers on duty, a car for every two, fixed cameras at some crossings; some more wait for the next shift."""
    city = ravensford()
    async with World(stack) as world:
        members = [member("patrol", _FIRST_UNIT + n) for n in range(officers + min(_RESERVE, officers))]
        say(f"registering {len(members)} officers")
        await world.enrol(members)
        desk = world.admin
        for unit_id in sorted({each.unit_id for each in members}):
            car = Vehicle(vehicle_id=f"car-{unit_id}", agency_id=AGENCY, display_name=f"Car {unit_id}", unit_id=unit_id)
            await desk.call(desk.registry.RegisterVehicle, registry_pb.RegisterVehicleRequest(vehicle=car))
        for number, (latitude, longitude) in list(enumerate(city.crossings))[::_CAMERAS_EVERY]:
            eye = FixedCamera(
                camera_id=f"crossing-{number}", agency_id=AGENCY, display_name=f"Crossing {number}", latitude=latitude, longitude=longitude
            )
            await desk.call(desk.registry.RegisterFixedCamera, registry_pb.RegisterFixedCameraRequest(fixed_camera=eye))
        for each in members[:officers]:
            await world.begin_shift(each)
        yield world, members, city


async def traffic(stack: Stack, officers: int, every_s: float, shift_s: float, told: Told, say: Callable[[str], None]) -> None:
    """Until cancelled: everybody moves; now and then one goes home and another comes. Counts are kept in `told`."""
    dice = random.Random(42)  # noqa: S311
    async with force(stack, officers, say) as (world, members, city), AsyncExitStack() as resources:
        rpc, target = stack.ca.rpc(AGENCY, "avl", "traffic"), stack.targets["location"]
        reporter = await resources.enter_async_context(Reporter(rpc, target))
        on_foot = walkers(city, len(members), _ON_FOOT_MPS, dice)
        movers = [Mover(AGENCY, radio_device(each.radio), walker) for each, walker in zip(members, on_foot, strict=True)]
        units = sorted({each.unit_id for each in members})
        in_cars = walkers(city, len(units), _BY_CAR_MPS, dice)
        movers += [Mover(AGENCY, Device(vehicle_id=f"car-{unit}"), walker) for unit, walker in zip(units, in_cars, strict=True)]
        working, resting = members[:officers], members[officers:]

        async def shifts() -> None:
            while resting:
                await asyncio.sleep(shift_s)
                goes, comes = working.pop(0), resting.pop(0)
                await world.end_shift(goes)
                await world.begin_shift(comes)
                working.append(comes)
                resting.append(goes)

        changing = asyncio.create_task(shifts())
        try:
            async for answer in drive(reporter, movers, every_s):
                told.taken += answer.taken
                for each in answer.refused:
                    name = Refusal.Name(each.refusal).removeprefix("REFUSAL_").lower().replace("_", " ")
                    told.refused[name] = told.refused.get(name, 0) + 1
        finally:
            changing.cancel()
            await asyncio.gather(changing, return_exceptions=True)
