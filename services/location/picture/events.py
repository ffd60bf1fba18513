"""What the map lives on: positions, and what cameras do."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from chassis.bus import Received, parse
from chassis.errors import PoisonError
from contracts.topics import LOCATION_POSITION, STREAM_CAMERA, STREAM_SESSION
from google.protobuf.message import DecodeError
from sightline.location.v1.position_pb2 import Position
from sightline.streams.v1.session_pb2 import SESSION_STATE_LIVE, SessionEvent
from sightline.streams.v1.stream_service_pb2 import CameraStatus

from services.location.events import from_position, is_sound
from services.location.picture.model import Picture
from services.location.picture.service import PictureService

SESSIONS_SINCE, CAMERAS_SINCE = timedelta(hours=24), timedelta(days=36_500)
_AT_ONCE = 250  # records that are taken before others get the loop


class PositionReader:
    """Takes all positions, on every replica. What cannot be read the writer of tracks sets aside."""

    topics = (LOCATION_POSITION,)

    def __init__(self, service: PictureService) -> None:
        self._service = service

    async def __call__(self, batch: Sequence[Any]) -> None:
        """Take records as they came from librdkafka."""
        for start in range(0, len(batch), _AT_ONCE):
            self.take((message.key() or b"", message.value() or b"") for message in batch[start : start + _AT_ONCE])
            await asyncio.sleep(0)

    def take(self, records: Any) -> None:
        """Take pairs of key and value."""
        for key, value in records:
            try:
                taken = from_position(Position.FromString(value))
            except DecodeError:
                continue
            if is_sound(taken):
                self._service.take(key, value, taken)


class CameraReader:
    """Learns what body-worn cameras do."""

    topics = (STREAM_CAMERA,)

    def __init__(self, picture: Picture) -> None:
        self._picture = picture

    async def __call__(self, received: Received) -> None:
        """Learn from one record."""
        status = parse(CameraStatus, received.value)
        if not status.camera_id:
            raise PoisonError("a camera's status without a camera")
        self._picture.learn_camera(status)


class SessionReader:
    """Learns which body-worn cameras stream."""

    topics = (STREAM_SESSION,)

    def __init__(self, picture: Picture) -> None:
        self._picture = picture

    async def __call__(self, received: Received) -> None:
        """Learn from one record."""
        session = parse(SessionEvent, received.value).session
        is_live = session.state == SESSION_STATE_LIVE
        self._picture.learn_session(session.agency_id, session.camera_id, session.session_id, is_live=is_live)
