"""A police force in miniature on a running stack: officers on shift, cameras with links, a gateway, people at desks."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeVar

import grpc
from sightline.activation.v1.activation_pb2 import ActivationResult, ActivationState
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.emergency.v1 import emergency_service_pb2 as pb
from sightline.emergency.v1.emergency_pb2 import DISPOSITION_EXERCISE, EMERGENCY_STATE_OPEN, Emergency, SubjectState
from sightline.streams.v1 import session_service_pb2 as sessions_pb
from sightline.streams.v1.session_pb2 import Session, SessionState

from tools.desk import Desk
from tools.local.stack import Stack
from tools.roster import AGENCY, Member, check_in, check_out, register
from tools.simulator.camera import Camera
from tools.simulator.footage import Footage
from tools.simulator.gateway import PAUSE_S, Gateway
from tools.simulator.viewer import Viewer

T = TypeVar("T")
# How long anything may take before a scenario calls it a failure; ten times what is usual, and more.
WITHIN_S = 30.0
_POLL_S = 0.03


async def until(attempt: Callable[[], Awaitable[T | None]], what: str, within_s: float = WITHIN_S) -> T:
    """Repeat until there is an answer that is not None or False; TimeoutError says what did not come."""
    deadline = time.monotonic() + within_s
    while True:
        found = await attempt()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within_s:.0f} s")
        await asyncio.sleep(_POLL_S)


async def surely(attempt: Callable[[], Awaitable[object]], *fine: grpc.StatusCode, within_s: float = 2 * WITHIN_S) -> None:
    """Repeat a call until it is done; some answers mean that it was done already. The last error if that takes too long."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            await attempt()
            return
        except grpc.aio.AioRpcError as error:
            if error.code() in fine:
                return
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(PAUSE_S)


def name_of(state: ActivationState.ValueType) -> str:
    """Short name of an activation's state."""
    return ActivationState.Name(state).removeprefix("ACTIVATION_STATE_")


async def grant_to_watch(desk: Desk, emergency_id: str, camera_id: str) -> sessions_pb.WatchCameraResponse:
    """A grant, as soon as there is something to watch; TimeoutError says why there is not."""
    refused: list[str] = []

    async def given() -> sessions_pb.WatchCameraResponse | None:
        request = sessions_pb.WatchCameraRequest(emergency_id=emergency_id, camera_id=camera_id)
        try:
            answer: sessions_pb.WatchCameraResponse = await desk.call(desk.sessions.WatchCamera, request)
        except grpc.aio.AioRpcError as error:
            # The press is known to its service a moment before the session is.
            if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND):
                refused[:] = [str(error.details())]
                return None
            raise
        return answer

    try:
        return await until(given, f"a grant to watch {camera_id}")
    except TimeoutError as error:
        raise TimeoutError(f"{error}; refused: {refused}") from error


class World:
    """Use as an async context manager. Everything it starts ends with it; shifts and emergencies included."""

    def __init__(self, stack: Stack, agency_id: str = AGENCY, *, video: bool = False) -> None:
        """With `video` cameras that record have something to see, and stream it."""
        self.stack, self.agency_id = stack, agency_id
        self.footage = Footage() if video else None
        self.admin, self.supervisor = Desk(stack, "platform-admin"), Desk(stack, f"supervisor@{agency_id}")
        self.cameras: dict[str, Camera] = {}
        self._on_shift: list[Member] = []
        self._resources = AsyncExitStack()
        self.gateway = self.new_gateway("gw-1")

    def new_gateway(self, name: str, agency_id: str = "") -> Gateway:
        """A gateway with a certificate and a channel of its own."""
        agency = agency_id or self.agency_id
        gateway = Gateway(name, self.stack.ca.rpc(agency, "gateway", name), self.stack.targets["emergency"])
        self._resources.push_async_callback(gateway.close)
        return gateway

    async def __aenter__(self) -> Self:
        await self._resources.enter_async_context(self.admin)
        await self._resources.enter_async_context(self.supervisor)
        if self.footage:
            await self._resources.enter_async_context(self.footage)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await asyncio.gather(*(camera.finish() for camera in self.cameras.values()))
        await asyncio.gather(*(camera.power_off() for camera in self.cameras.values()))
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            for member in self._on_shift:
                await self.end_shift(member)
        await self._resources.aclose()

    async def enrol(self, members: list[Member]) -> None:
        """Register members with the registry and make their cameras, still powered off."""
        await register(self.admin, self.agency_id, members)
        for member in members:
            for camera_id in member.camera_ids:
                self.new_camera(camera_id)

    def new_camera(self, camera_id: str) -> Camera:
        """A camera with a certificate of its own, powered off."""
        rpc = self.stack.ca.rpc(self.agency_id, "camera", camera_id)
        camera = self.cameras[camera_id] = Camera(camera_id, rpc, self.stack.targets["streams"], footage=self.footage)
        return camera

    async def begin_shift(self, member: Member, ago: timedelta | None = None) -> None:
        """Check a member out; what an earlier run left behind is ended first."""
        await self.end_shift(member)
        await check_out(self.admin, member, ago)
        self._on_shift.append(member)

    async def end_shift(self, member: Member) -> None:
        """Check a member in, if he or she is out."""
        try:
            await check_in(self.admin, member)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                raise

    async def link(self, member: Member) -> None:
        """Power the member's cameras on, and wait until each has its first orders."""
        for camera_id in member.camera_ids:
            await self.power_on(self.cameras[camera_id])

    async def power_on(self, camera: Camera) -> None:
        """Power a camera on and wait until it has orders of the new link."""
        camera.orders = None
        camera.power_on()

        async def linked() -> bool:
            return camera.orders is not None

        await until(linked, f"link of {camera.camera_id}")

    async def duty(self, member: Member) -> Member:
        """Enrol a member, begin the shift, link the cameras."""
        await self.enrol([member])
        await self.begin_shift(member)
        await self.link(member)
        return member

    async def press(self, radio: RadioIdentity) -> pb.RaiseAlarmResponse:
        """One press, sent until it is taken."""
        return await self.gateway.send(self.gateway.press(radio))

    async def get(self, emergency_id: str) -> pb.GetEmergencyResponse:
        """An emergency as the supervisor sees it."""
        answer: pb.GetEmergencyResponse = await self.supervisor.call(
            self.supervisor.emergency.GetEmergency, pb.GetEmergencyRequest(emergency_id=emergency_id)
        )
        return answer

    async def pinned(self, emergency_id: str) -> Emergency:
        """An emergency once the registry has said who held the radio; a busy machine may take longer than a press waits."""

        async def answered() -> Emergency | None:
            emergency = (await self.get(emergency_id)).emergency
            return emergency if emergency.subject.state != SubjectState.SUBJECT_STATE_UNPINNED else None

        return await until(answered, f"holder of {emergency_id}")

    async def sessions(self, emergency_id: str) -> list[Session]:
        """The stream sessions of an emergency's cameras, the newest first."""
        request = sessions_pb.ListSessionsRequest(emergency_id=emergency_id)
        answer = await self.supervisor.call(self.supervisor.sessions.ListSessions, request)
        return list(answer.sessions)

    async def session(self, emergency_id: str, *states: SessionState.ValueType) -> Session:
        """The newest session of an emergency's cameras, once it is in one of these states."""

        async def there() -> Session | None:
            found = await self.sessions(emergency_id)
            return found[0] if found and found[0].state in states else None

        return await until(there, f"a session of {emergency_id} in {[SessionState.Name(state) for state in states]}")

    async def grant(self, emergency_id: str, camera_id: str, desk: Desk | None = None) -> sessions_pb.WatchCameraResponse:
        """A grant for the supervisor, or somebody else, to watch a camera, as soon as there is something to watch."""
        return await grant_to_watch(desk or self.supervisor, emergency_id, camera_id)

    async def watch(self, emergency_id: str, camera_id: str, desk: Desk | None = None) -> Viewer:
        """A viewer of a camera, to be entered."""
        given = await self.grant(emergency_id, camera_id, desk)
        return Viewer(given.view_url, given.token, given.grant.grant_id, ca=self.stack.ca.certificate)

    async def outcome(self, emergency_id: str, *, epoch: int = 1, without: tuple[str, ...] = ("REQUESTED",)) -> dict[str, ActivationResult]:
        """Results by camera, once there are some and none is in a state of `without`."""

        async def settled() -> dict[str, ActivationResult] | None:
            results = [a for a in (await self.get(emergency_id)).activations if a.epoch == epoch]
            if not results or any(name_of(a.state) in without for a in results):
                return None
            return {a.camera_id: a for a in results}

        return await until(settled, f"outcome of {emergency_id} epoch {epoch}")

    async def states(self, emergency_id: str, *, epoch: int = 1, without: tuple[str, ...] = ("REQUESTED",)) -> dict[str, str]:
        """Names of the states by camera, once settled."""
        found = await self.outcome(emergency_id, epoch=epoch, without=without)
        return {camera_id: name_of(result.state) for camera_id, result in found.items()}

    async def clear(self, emergency_id: str, disposition: int = DISPOSITION_EXERCISE) -> None:
        """The supervisor ends an emergency."""
        request = pb.ClearRequest(emergency_id=emergency_id, disposition=disposition)  # type: ignore[arg-type]
        await self.supervisor.call(self.supervisor.emergency.Clear, request)

    async def clear_all(self) -> int:
        """The supervisor ends all open emergencies; returns how many there were."""
        request = pb.ListEmergenciesRequest(page_size=500, state=EMERGENCY_STATE_OPEN)
        found = await self.supervisor.call(self.supervisor.emergency.ListEmergencies, request)
        for emergency in found.emergencies:
            await self.clear(emergency.emergency_id)
        return len(found.emergencies)
