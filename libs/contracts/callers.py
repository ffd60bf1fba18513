"""Who may call what: every gRPC method with the kinds of machines and the roles of people. What is not listed is refused."""

from collections.abc import Mapping

from chassis.rpc import Allowed

# Machines that people sit behind: the console's backend and the command line.
_DESKS = frozenset({"console", "cli"})


def _machines(*kinds: str, identity: tuple[str, ...] | None = None) -> Allowed:
    """`identity`: a life hangs on these messages, and nothing but these fields can make one be refused."""
    return Allowed(frozenset(kinds), identity=None if identity is None else frozenset(identity))


def _people(*roles: str, also: tuple[str, ...] = ()) -> Allowed:
    return Allowed(frozenset(also), frozenset(roles), _DESKS)


_REGISTRY = "/sightline.registry.v1.RegistryService/"
_EMERGENCY = "/sightline.emergency.v1.EmergencyService/"
_STREAMS = "/sightline.streams.v1.StreamService/"
_SESSIONS = "/sightline.streams.v1.SessionService/"
_AUDIT = "/sightline.audit.v1.AuditService/"
_OVERSIGHT = "/sightline.audit.v1.OversightService/"
_EVIDENCE = "/sightline.evidence.v1.EvidenceService/"
_SHELF = "/sightline.evidence.v1.ShelfLinkService/"
_LOCATION = "/sightline.location.v1.LocationService/"
_MAP = "/sightline.location.v1.MapService/"
_RELAY = "/sightline.streams.v1.RelayLinkService/"

ALLOWED: Mapping[str, Allowed] = {
    _REGISTRY + "CreateAgency": _people("platform-admin"),
    _REGISTRY + "CreateOfficer": _people("admin", "platform-admin"),
    _REGISTRY + "RegisterRadio": _people("admin", "platform-admin"),
    _REGISTRY + "RegisterCamera": _people("admin", "platform-admin"),
    _REGISTRY + "RegisterVehicle": _people("admin", "platform-admin", "supervisor"),
    _REGISTRY + "RegisterFixedCamera": _people("admin", "platform-admin"),
    _REGISTRY + "ImportRoster": _people("admin", "platform-admin"),
    _REGISTRY + "PreviewRoster": _people("admin", "platform-admin"),
    _REGISTRY + "CheckOut": _people("admin", "platform-admin", "supervisor"),
    _REGISTRY + "CheckIn": _people("admin", "platform-admin", "supervisor"),
    _REGISTRY + "ListOfficers": _people("admin", "supervisor", "analyst", "platform-admin"),
    _REGISTRY + "ResolveRadio": _machines("service"),
    _REGISTRY + "ResolveOfficer": _machines("service"),
    _EMERGENCY + "RaiseAlarm": _machines("gateway", "cad", identity=("radio",)),
    _EMERGENCY + "CancelAlarm": _machines("gateway", "cad", identity=("radio",)),
    _EMERGENCY + "Acknowledge": _people("supervisor", "analyst"),
    _EMERGENCY + "Clear": _people("supervisor"),
    _EMERGENCY + "BindSubject": _people("supervisor", "analyst"),
    _EMERGENCY + "MarkNotInvolved": _people("supervisor"),
    _EMERGENCY + "GetEmergency": _people("supervisor", "analyst", "auditor", also=("service", "cad")),
    _EMERGENCY + "ListEmergencies": _people("supervisor", "analyst", "auditor", also=("service",)),
    _EMERGENCY + "ScanOpenEmergencies": _machines("service"),
    _EMERGENCY + "WatchEmergencies": _people("supervisor", "analyst"),
    "/sightline.streams.v1.CameraLinkService/Connect": _machines("camera", identity=()),
    _RELAY + "Report": _machines("service", identity=("relay_id", "ingest_url", "view_url")),
    _RELAY + "Admit": _machines("service"),
    _RELAY + "Redeem": _machines("service"),
    _RELAY + "Renew": _machines("service"),
    _RELAY + "EndGrants": _machines("service"),
    _RELAY + "WatchRevocations": _machines("service"),
    _SESSIONS + "ListSessions": _people("supervisor", "analyst", "auditor"),
    _SESSIONS + "WatchCamera": _people("supervisor", "analyst"),
    _SESSIONS + "ExtendGrant": _people("supervisor", "analyst"),
    _SESSIONS + "RevokeGrant": _people("supervisor"),
    _AUDIT + "GetLog": _people("auditor", "supervisor", "admin"),
    _AUDIT + "GetEntry": _people("auditor"),
    _AUDIT + "SearchEntries": _people("auditor"),
    _AUDIT + "ProveConsistency": _people("auditor", "supervisor", "admin"),
    _AUDIT + "ReadLeaves": _people("auditor"),
    _AUDIT + "WatchEntries": _people("auditor"),
    _AUDIT + "ForgetActor": _people("admin"),
    _AUDIT + "GetHealth": _people("auditor", "supervisor", "admin", also=("service",)),
    _OVERSIGHT + "ListAlerts": _people("auditor"),
    _OVERSIGHT + "GetAlert": _people("auditor"),
    _OVERSIGHT + "ResolveAlert": _people("auditor"),
    _OVERSIGHT + "SetReviewers": _people("admin"),
    _OVERSIGHT + "GetReviewers": _people("admin", "auditor"),
    _OVERSIGHT + "GetReport": _people("admin", "auditor"),
    _EVIDENCE + "ListRecordings": _people("supervisor", "analyst", "auditor", "admin"),
    _EVIDENCE + "GetRecording": _people("supervisor", "analyst", "auditor", "admin"),
    _EVIDENCE + "PlaceHold": _people("supervisor", "analyst", "auditor"),
    _EVIDENCE + "ReleaseHold": _people("supervisor", "admin"),
    _EVIDENCE + "SetRetention": _people("admin"),
    _EVIDENCE + "GetRetention": _people("supervisor", "analyst", "auditor", "admin"),
    _SHELF + "ListDeletions": _machines("service"),
    _SHELF + "ConfirmDeletion": _machines("service"),
    _LOCATION + "ReportPositions": _machines("gateway", "cad", "avl", "camera", identity=()),
    _MAP + "GetUnit": _people("supervisor", "analyst"),
    _LOCATION + "GetTrack": _people("supervisor", "analyst", "auditor"),
    _MAP + "FindNearest": _people("supervisor", "analyst"),
    _MAP + "WatchArea": _people("supervisor", "analyst"),
    _LOCATION + "SetPrivacy": _people("admin"),
    _LOCATION + "GetPrivacy": _people("admin", "supervisor", "analyst", "auditor"),
    _STREAMS + "GetActivation": _people("supervisor", "analyst", "auditor"),
    _STREAMS + "ListCameras": _people("supervisor", "analyst"),
}
