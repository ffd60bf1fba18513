"""SIGKILL at named points of the path (F1, F3, F19): what was answered OK is there, what was not is there once after the retry."""

import asyncio
from collections.abc import Callable
from itertools import count

import pytest
from testkit.sabotage import PRESS_POINTS
from testkit.trial.faults import die_at
from testkit.trial.rig import Rig, until

from tools.roster import Member, member
from tools.world import World

_numbers = count(7000)
POINTS = [f"{name}.{side}" for name in PRESS_POINTS for side in ("before", "after")]
# One before the commit, one at it, one behind it; `make fault-nightly` goes through all.
SHARE = ["lock.after", "commit.before", "commit.after", "publish.after"]
Someone = Callable[[], Member]


@pytest.mark.parametrize("point", [pytest.param(p, marks=() if p in SHARE else pytest.mark.slow) for p in POINTS])
async def test_a_press_survives_the_death_of_who_takes_it(rig: Rig, world: World, point: str) -> None:
    officers = [await world.duty(member("point", next(_numbers))) for _ in range(3)]
    dying = asyncio.create_task(die_at(rig, "emergency-a", point, 1))
    await until(lambda: rig.holds_down("emergency-a"), "the replica that will die")
    answers = {}
    while not dying.done():
        for officer in officers:
            if officer.officer_id not in answers:
                press = world.gateway.press(officer.radio)
                answers[officer.officer_id] = await world.gateway.send(press)
        # The first ones may have gone to the other replica: press on until somebody has died of it.
        officers.append(await world.duty(member("point", next(_numbers))))
    await dying
    for officer in officers:
        if officer.officer_id in answers:
            emergency_id = answers[officer.officer_id].emergency_id
            assert await world.states(emergency_id) == {officer.camera_ids[0]: "RECORDING"}
            assert (await world.get(emergency_id)).emergency.repeat_count == 0
            assert len(world.cameras[officer.camera_ids[0]].starts) == 1
