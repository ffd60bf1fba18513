"""The gRPC face of oversight."""

from typing import Any

from chassis.errors import InvalidRequest
from chassis.names import is_uuid
from chassis.paging import page_cursor, page_token
from chassis.rpc import caller
from sightline.audit.v1 import oversight_service_pb2 as pb
from sightline.audit.v1.alert_pb2 import AlertOutcome
from sightline.audit.v1.oversight_service_pb2_grpc import OversightServiceServicer
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from services.audit.oversight.events import to_alert
from services.audit.oversight.model import Outcome
from services.audit.oversight.service import OversightService

_DEFAULT_PAGE = 50


class OversightApi(OversightServiceServicer):
    """Serves sightline.audit.v1.OversightService."""

    def __init__(self, service: OversightService) -> None:
        self._service = service

    async def ListAlerts(self, request: pb.ListAlertsRequest, context: Any) -> pb.ListAlertsResponse:
        """A page of alerts."""
        size = request.page_size or _DEFAULT_PAGE
        query = f"ListAlerts/{caller().agency_id}/{request.resolved_too}"
        before = page_cursor(query, request.page_token)
        if before and not is_uuid(before):
            raise InvalidRequest(Reason.ERROR_REASON_PAGE_TOKEN_INVALID, "the page token is not one that this query gave")
        found = await self._service.alerts(caller(), before or None, size, resolved_too=request.resolved_too)
        token = page_token(query, found[-1].alert_id) if len(found) == size else ""
        return pb.ListAlertsResponse(alerts=map(to_alert, found), next_page_token=token)

    async def GetAlert(self, request: pb.GetAlertRequest, context: Any) -> pb.GetAlertResponse:
        """One alert, and whom it concerns."""
        alert, concerns = await self._service.alert(caller(), request.alert_id)
        return pb.GetAlertResponse(alert=to_alert(alert), concerns=concerns)

    async def ResolveAlert(self, request: pb.ResolveAlertRequest, context: Any) -> pb.ResolveAlertResponse:
        """What it was."""
        outcome = Outcome(AlertOutcome.Name(request.outcome).removeprefix("ALERT_OUTCOME_"))
        alert = await self._service.resolve(caller(), request.alert_id, outcome, request.note)
        return pb.ResolveAlertResponse(alert=to_alert(alert))

    async def SetReviewers(self, request: pb.SetReviewersRequest, context: Any) -> pb.SetReviewersResponse:
        """Who looks at alerts."""
        await self._service.set_reviewers(caller(), list(request.reviewers))
        return pb.SetReviewersResponse()

    async def GetReviewers(self, request: pb.GetReviewersRequest, context: Any) -> pb.GetReviewersResponse:
        """Who looks at alerts."""
        return pb.GetReviewersResponse(reviewers=await self._service.reviewers(caller()))

    async def GetReport(self, request: pb.GetReportRequest, context: Any) -> pb.GetReportResponse:
        """What the public is told."""
        figures, note, checkpoint = await self._service.report(caller(), request.period)
        return pb.GetReportResponse(figures=figures, statement=note, checkpoint=checkpoint, key=self._service.key)
