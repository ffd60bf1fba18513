"""The registry's gRPC face: protobuf in, use case, protobuf out."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from chassis.clock import Clock
from chassis.paging import page_cursor, page_token
from chassis.rpc import caller
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.registry.v1 import registry_service_pb2 as pb
from sightline.registry.v1.registry_service_pb2_grpc import RegistryServiceServicer

from services.registry.events import to_duty, to_fixed_camera, to_interval, to_vehicle
from services.registry.model import Agency, Camera, FixedCamera, Officer, Radio, RadioId, RosterEntry, Vehicle
from services.registry.service import RegistryService

_DEFAULT_PAGE = 50


class RegistryApi(RegistryServiceServicer):
    """Serves sightline.registry.v1.RegistryService."""

    def __init__(self, service: RegistryService, clock: Clock) -> None:
        self._service, self._clock = service, clock

    async def CreateAgency(self, request: pb.CreateAgencyRequest, context: Any) -> pb.CreateAgencyResponse:
        """Register an agency."""
        agency = Agency(request.agency.agency_id, request.agency.display_name)
        await self._service.create_agency(caller(), agency)
        return pb.CreateAgencyResponse(agency=request.agency)

    async def CreateOfficer(self, request: pb.CreateOfficerRequest, context: Any) -> pb.CreateOfficerResponse:
        """Register an officer."""
        officer = request.officer
        await self._service.create_officer(caller(), Officer(officer.officer_id, officer.agency_id, officer.display_name))
        return pb.CreateOfficerResponse(officer=officer)

    async def RegisterRadio(self, request: pb.RegisterRadioRequest, context: Any) -> pb.RegisterRadioResponse:
        """Register a radio."""
        radio = request.radio
        await self._service.register_radio(caller(), Radio(_radio_id(radio.identity), radio.agency_id, radio.alias))
        return pb.RegisterRadioResponse(radio=radio)

    async def RegisterCamera(self, request: pb.RegisterCameraRequest, context: Any) -> pb.RegisterCameraResponse:
        """Register a camera."""
        camera = request.camera
        await self._service.register_camera(caller(), Camera(camera.camera_id, camera.agency_id, camera.model))
        return pb.RegisterCameraResponse(camera=camera)

    async def RegisterVehicle(self, request: pb.RegisterVehicleRequest, context: Any) -> pb.RegisterVehicleResponse:
        """Register a vehicle, or which unit drives it."""
        asked = request.vehicle
        vehicle = Vehicle(asked.vehicle_id, asked.agency_id, asked.display_name, asked.unit_id)
        await self._service.register_device(caller(), vehicle)
        return pb.RegisterVehicleResponse(vehicle=to_vehicle(vehicle))

    async def RegisterFixedCamera(self, request: pb.RegisterFixedCameraRequest, context: Any) -> pb.RegisterFixedCameraResponse:
        """Register a fixed camera, or where it hangs."""
        asked = request.fixed_camera
        camera = FixedCamera(asked.camera_id, asked.agency_id, asked.display_name, asked.latitude, asked.longitude)
        await self._service.register_device(caller(), camera)
        return pb.RegisterFixedCameraResponse(fixed_camera=to_fixed_camera(camera))

    async def ImportRoster(self, request: pb.ImportRosterRequest, context: Any) -> pb.ImportRosterResponse:
        """Register a part of a roster."""
        entries = list(map(_entry, request.entries))
        problems, created = await self._service.import_roster(caller(), request.agency_id, entries, update=request.update)
        return pb.ImportRosterResponse(problems=_problems(problems), created=created)

    async def PreviewRoster(self, request: pb.PreviewRosterRequest, context: Any) -> pb.PreviewRosterResponse:
        """What would come of a part of a roster."""
        entries = list(map(_entry, request.entries))
        problems, changes = await self._service.preview_roster(caller(), request.agency_id, entries, update=request.update)
        response = pb.PreviewRosterResponse(problems=_problems(problems))
        for place, change in changes:
            response.changes.add(index=place, what=change.what, before=change.before, after=change.after)
        return response

    async def CheckOut(self, request: pb.CheckOutRequest, context: Any) -> pb.CheckOutResponse:
        """Start a shift."""
        start = _time(getattr(request, "from")) if request.HasField("from") else None
        end = _time(request.to) if request.HasField("to") else None
        radios = [_radio_id(radio) for radio in request.radios]
        versions, taken = await self._service.check_out(
            caller(), request.officer_id, radios, list(request.camera_ids), request.unit_id, (start, end), request.visible_to,
            take_over=request.take_over,
        )  # fmt: skip
        taken_over = [pb.TakenOver(officer_id=each.holder, kind=each.kind, device_id=each.name) for each in taken]
        return pb.CheckOutResponse(duty_versions=versions, taken_over=taken_over)

    async def CheckIn(self, request: pb.CheckInRequest, context: Any) -> pb.CheckInResponse:
        """End a shift."""
        at = _time(request.at) if request.HasField("at") else None
        radios, cameras = await self._service.check_in(caller(), request.officer_id, at)
        return pb.CheckInResponse(radios=map(_radio, radios), camera_ids=cameras)

    async def ListOfficers(self, request: pb.ListOfficersRequest, context: Any) -> pb.ListOfficersResponse:
        """A page of an agency's officers."""
        agency, size = request.agency_id or caller().agency_id, request.page_size or _DEFAULT_PAGE
        query = f"ListOfficers/{agency}"
        found = await self._service.list_officers(caller(), agency, page_cursor(query, request.page_token), size)
        response = pb.ListOfficersResponse()
        for duty in found:
            officer = pb.Officer(
                officer_id=duty.officer.officer_id, agency_id=duty.officer.agency_id, display_name=duty.officer.display_name
            )
            response.officers.add(officer=officer, radios=map(_radio, duty.radios), camera_ids=duty.camera_ids, unit_id=duty.unit_id)
        if len(found) == size:
            response.next_page_token = page_token(query, found[-1].officer.officer_id)
        return response

    async def ResolveRadio(self, request: pb.ResolveRadioRequest, context: Any) -> pb.ResolveRadioResponse:
        """Who held a radio."""
        at = _time(request.at)
        duty, agency_known = await self._service.resolve_radio(_radio_id(request.radio), at, request.agency_id)
        response = pb.ResolveRadioResponse(agency_known=agency_known)
        if duty is not None:
            response.duty.CopyFrom(to_duty(duty, self._clock.now()))
            if held := duty.at(at):
                response.held.CopyFrom(to_interval(held))
                response.held_since.FromDatetime(held.held_since or held.span.start)
        return response

    async def ResolveOfficer(self, request: pb.ResolveOfficerRequest, context: Any) -> pb.ResolveOfficerResponse:
        """What an officer carried."""
        officer, cameras, unit = await self._service.resolve_officer(request.officer_id, _time(request.at))
        message = pb.Officer(officer_id=officer.officer_id, agency_id=officer.agency_id, display_name=officer.display_name)
        return pb.ResolveOfficerResponse(officer=message, camera_ids=cameras, unit_id=unit)


def _problems(problems: Mapping[int, str]) -> Iterator[pb.RosterProblem]:
    return (pb.RosterProblem(index=place, problem=problem) for place, problem in problems.items())


def _entry(message: pb.RosterEntry) -> RosterEntry:
    officer, radio = message.officer, message.radio
    return RosterEntry(
        Officer(officer.officer_id, officer.agency_id, officer.display_name) if message.HasField("officer") else None,
        Radio(_radio_id(radio.identity), radio.agency_id, radio.alias) if message.HasField("radio") else None,
        tuple(Camera(camera.camera_id, camera.agency_id, camera.model) for camera in message.cameras),
    )


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)


def _radio_id(radio: RadioIdentity) -> RadioId:
    return RadioId(radio.wacn, radio.system_id, radio.unit_id)


def _radio(radio: RadioId) -> RadioIdentity:
    return RadioIdentity(wacn=radio.wacn, system_id=radio.system_id, unit_id=radio.unit_id)
