"""The page in a real Chromium: what it shows, what it hashes, and what is left of it when it may not watch any more."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import jwt
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright
from sightline.streams.v1 import session_service_pb2 as pb
from sightline.streams.v1.session_pb2 import SessionState
from testkit.trial.rig import Rig

from tools.desk import fetch_token
from tools.local.browser import chromium
from tools.local.stack import Stack
from tools.roster import Member
from tools.simulator.footage import READ_CLOCK
from tools.world import World, until

Someone = Callable[..., Member]
LIVE = SessionState.SESSION_STATE_LIVE
_WITHIN_MS = 30_000


@pytest_asyncio.fixture(scope="module", loop_scope="session", name="world")
async def _world(stack: Stack) -> AsyncIterator[World]:
    async with World(stack, video=True) as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="session", name="browser")
async def _browser() -> AsyncIterator[Browser]:
    program, environment = await asyncio.to_thread(chromium)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], env=environment)
        yield browser
        await browser.close()


@dataclass
class Seat:
    """A person before the page."""

    page: Page
    complaints: list[str]

    async def state(self, *names: str) -> str:
        """What the page says, once it is in one of these states."""
        await self.page.wait_for_function("names => names.includes(document.body.dataset.state)", arg=list(names), timeout=_WITHIN_MS)
        return await self.page.inner_text("#state")

    async def painted(self) -> int:
        """Pictures painted so far."""
        return int(await self.page.evaluate("sightline.player()?.picture.painted ?? 0"))

    async def paints(self, count: int = 1) -> None:
        """Until so many more pictures are painted."""
        wanted = await self.painted() + count
        await self.page.wait_for_function("n => sightline.player().picture.painted >= n", arg=wanted, timeout=_WITHIN_MS)

    async def heads(self) -> list[tuple[int, str]]:
        """The chain's values as the page computed them, by piece."""
        await self.page.evaluate("sightline.player().chain.settled()")
        return [(n, value) for n, value in await self.page.evaluate("sightline.heads")]

    async def colours(self) -> int:
        """How many colours the canvas has: one if nothing is to be seen."""
        script = """() => { const c = document.getElementById("picture"), seen = new Set();
            const p = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            for (let at = 0; at < p.length; at += 400) seen.add(p[at] << 16 | p[at + 1] << 8 | p[at + 2]);
            return seen.size; }"""
        return int(await self.page.evaluate(script))


Sit = Callable[..., Any]


@pytest_asyncio.fixture(loop_scope="session", name="sit")
async def _sit(browser: Browser, stack: Stack) -> AsyncIterator[Sit]:
    contexts = []

    async def sit(emergency_id: str, camera_id: str, user: str = "supervisor", token: str = "", first_answer: object = None) -> Seat:
        context = await browser.new_context(viewport={"width": 1000, "height": 800})
        contexts.append(context)
        if first_answer:
            await context.route("**/api/watch", lambda route: route.fulfill(json=first_answer, status=404), times=1)
        page = await context.new_page()
        seat = Seat(page, [])
        page.on("console", lambda message: seat.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: seat.complaints.append(str(error)))
        await page.goto(f"http://{stack.console}/#emergency={emergency_id}&camera={camera_id}")
        await page.fill("#token", token or await asyncio.to_thread(fetch_token, stack, user))
        await page.click("button[type=submit]")
        return seat

    yield sit
    for context in contexts:
        await context.close()


def _kept(stack: Stack, session_id: str) -> list[tuple[int, str]]:
    """The chain's values as they are kept, by piece."""
    files = sorted(stack.data.glob(f"relay-*/{session_id}/*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()[1:]]
    return [(line["n"], line["chain"]) for line in lines if "end" not in line]


async def test_a_press_is_seen_and_what_the_page_hashed_is_what_was_kept(world: World, someone: Someone, stack: Stack, sit: Sit) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    pressed = await world.press(officer.radio)
    first = await sit(pressed.emergency_id, camera_id)
    await first.state("live", "delayed")
    await first.paints(10)
    late = await sit(pressed.emergency_id, camera_id, "analyst")
    await late.paints(5)
    assert await first.colours() > 5
    assert officer.officer_id in await first.page.inner_text("#who")
    assert await first.page.inner_text("#sound") == "no sound"
    session = await world.session(pressed.emergency_id, LIVE)
    for seat in (first, late):
        heads, kept = await seat.heads(), _kept(stack, session.session_id)
        assert len(heads) >= 5
        assert set(heads) <= set(kept)
        await seat.page.wait_for_selector("#proof[data-fits=yes]:has-text('received as they were kept')", timeout=_WITHIN_MS)
        assert not seat.complaints


async def test_a_revoked_page_is_wiped_and_the_other_goes_on(world: World, someone: Someone, sit: Sit) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    pressed = await world.press(officer.radio)
    stays, goes = await sit(pressed.emergency_id, camera_id), await sit(pressed.emergency_id, camera_id, "analyst")
    await stays.paints(3)
    await goes.paints(3)
    (grant_id,) = await _grants(goes)
    await world.supervisor.call(world.supervisor.sessions.RevokeGrant, pb.RevokeGrantRequest(grant_id=grant_id))
    assert await goes.state("ended") == "Ended because your permission was taken back."
    painted = await goes.painted()
    assert await goes.colours() == 1
    await stays.paints(10)
    assert await goes.painted() == painted
    assert await stays.state("live", "delayed")
    assert not stays.complaints


async def _grants(seat: Seat) -> list[str]:
    """Grants that this page has been given."""
    return [str(each) for each in await seat.page.evaluate("sightline.grants")]


async def test_a_clear_ends_what_is_shown(world: World, someone: Someone, sit: Sit) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    pressed = await world.press(officer.radio)
    seat = await sit(pressed.emergency_id, camera_id)
    await seat.paints(3)
    await world.clear(pressed.emergency_id)
    assert await seat.state("ended") == "Ended because the emergency was cleared."
    assert await seat.colours() == 1


async def test_a_frozen_picture_never_looks_live(world: World, someone: Someone, sit: Sit) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    pressed = await world.press(officer.radio)
    seat, back = await sit(pressed.emergency_id, camera_id), asyncio.Event()
    await seat.paints(3)
    cut = asyncio.create_task(world.cameras[camera_id].cut_media(back))
    assert (await seat.state("interrupted")).startswith("Interrupted since ")
    assert await seat.page.is_visible("#cover")
    back.set()
    await cut
    await seat.paints(3)
    await seat.state("live", "delayed")
    assert not await seat.page.is_visible("#cover")


async def test_the_page_sees_on_after_its_relay_was_killed(world: World, someone: Someone, stack: Stack, sit: Sit) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    pressed = await world.press(officer.radio)
    seat = await sit(pressed.emergency_id, camera_id)
    await seat.paints(3)
    session = await world.session(pressed.emergency_id, LIVE)
    async with Rig(stack) as rig:
        await rig.kill(f"relay-{session.relay_id}")
        await seat.paints(10)
        await seat.state("live", "delayed")
    assert len(await _grants(seat)) >= 2  # the first one died with the relay
    assert set(await seat.heads()) <= set(_kept(stack, session.session_id))
    await seat.page.wait_for_selector("#proof[data-fits=yes]:has-text('received as they were kept')", timeout=_WITHIN_MS)


async def test_a_microphone_that_is_off_is_shown(world: World, someone: Someone, sit: Sit) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    pressed = await world.press(officer.radio)
    seat = await sit(pressed.emergency_id, camera_id)
    await seat.paints(3)
    assert await seat.page.inner_text("#sound") == "no sound"
    for muted, shown in ((True, "microphone off"), (False, "no sound")):
        world.cameras[camera_id].muted = muted
        world.cameras[camera_id].changed()
        await seat.page.wait_for_selector(f"#sound:has-text('{shown}')", timeout=_WITHIN_MS)
        assert (await world.session(pressed.emergency_id, LIVE)).audio_muted == muted


async def test_an_expired_token_of_a_person_is_refused_in_words(world: World, someone: Someone, stack: Stack, sit: Sit) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    pressed = await world.press(officer.radio)
    await world.session(pressed.emergency_id, LIVE)
    key = (stack.data / "secrets" / "issuer.key").read_bytes()
    content = jwt.decode(await asyncio.to_thread(fetch_token, stack, "supervisor"), options={"verify_signature": False})
    header = jwt.get_unverified_header(await asyncio.to_thread(fetch_token, stack, "supervisor"))
    old = jwt.encode(content | {"iat": content["iat"] - 90_000, "exp": content["exp"] - 90_000}, key, "ES256", {"kid": header["kid"]})
    seat = await sit(pressed.emergency_id, camera_id, token=old)
    assert await seat.state("ended") == "Ended because your permission is not valid any more."
    assert await seat.painted() == 0


async def test_who_may_not_watch_is_told_why_and_sees_nothing(world: World, someone: Someone, sit: Sit) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    pressed = await world.press(officer.radio)
    await world.session(pressed.emergency_id, LIVE)
    for user, why in (("officer", "you may not watch this camera"), ("partner", "there is no such emergency")):
        seat = await sit(pressed.emergency_id, camera_id, user)
        assert why in await seat.state("ended")
        assert await seat.painted() == 0


async def test_who_comes_before_the_camera_sees_it_as_soon_as_it_comes(world: World, someone: Someone, sit: Sit) -> None:
    officer = someone()
    await world.enrol([officer])
    await world.begin_shift(officer)
    pressed = await world.press(officer.radio)
    too_soon = {"reason": "NOT_FOUND", "message": "what is asked in the moment of the press"}
    seat = await sit(pressed.emergency_id, officer.camera_ids[0], first_answer=too_soon)
    await seat.state("connecting")
    await seat.page.wait_for_selector("#state:has-text('Waiting for the camera')", timeout=_WITHIN_MS)
    await world.link(officer)
    await seat.paints(3)


async def test_the_page_takes_nothing_from_elsewhere(stack: Stack, browser: Browser) -> None:
    page = await browser.new_page()
    answer = await page.goto(f"http://{stack.console}/")
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    blocked = await page.evaluate("fetch('http://127.0.0.1:1/').then(() => 'went out', (error) => error.name)")
    assert blocked == "TypeError"
    await page.close()


async def test_the_latency_is_what_the_burnt_in_clock_says(world: World, someone: Someone, sit: Sit) -> None:
    """The clock in the picture can be read back by the page: what the bench measures with."""
    officer = await world.duty(someone())
    pressed = await world.press(officer.radio)
    seat = await sit(pressed.emergency_id, officer.camera_ids[0])
    await seat.paints(3)

    async def read() -> bool:
        return bool(await seat.page.evaluate(READ_CLOCK))

    await until(read, "a clock that can be read")
    ages = [age for age in [await seat.page.evaluate(READ_CLOCK) for _ in range(20)] if age is not None]
    assert ages
    assert all(0 <= age < 30_000 for age in ages)
