"""What the public is told, counted from leaves of the audit log; pure, so that anybody who has the leaves can count it again.

Only what leaves say in the open is counted: codes, numbers and times, never a person. Exercises are one number and in no other.
"""

import hashlib
import json
import re
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median, quantiles
from typing import Any

from sightline.audit.v1.leaf_pb2 import AuditLeaf
from sightline.audit.v1.record_pb2 import AuditOutcome

FORMAT = "sightline transparency report 1"
# A count below this, other than none, could point at somebody.
FEWEST = 5
_P95_FROM = 20
_HALF = re.compile(r"(2\d{3})H([12])", re.ASCII)
_STARTED = frozenset({"RECORDING", "ALREADY_RECORDING"})
_FAILED = frozenset({"REFUSED", "UNREACHABLE", "TIMED_OUT", "NO_CAMERA"})
Table = dict[str, int]


def half_year(text: str) -> tuple[datetime, datetime]:
    """Beginning and end of a half year like 2026H2 (UTC); ValueError if it is none."""
    found = _HALF.fullmatch(text)
    if not found:
        raise ValueError(f"{text} is no half year like 2026H2")
    year, begin = int(found[1]), 1 if found[2] == "1" else 7
    return datetime(year, begin, 1, tzinfo=UTC), datetime(year, 7, 1, tzinfo=UTC) if begin == 1 else datetime(year + 1, 1, 1, tzinfo=UTC)


class WrongFigures(Exception):
    """Figures are not what they are said to be; the text says in what."""


@dataclass
class _Emergency:
    """What leaves say of one."""

    raised_at: datetime | None = None
    status: str = ""
    stale: bool = False
    disposition: str = ""
    started_at: datetime | None = None
    live_at: datetime | None = None
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)


class Tally:
    """Counts an agency's leaves of a time, in whatever order they come."""

    def __init__(self, agency_id: str, since: datetime, until: datetime) -> None:
        self._agency_id, self._since, self._until = agency_id, since, until
        self._emergencies: dict[str, _Emergency] = defaultdict(_Emergency)
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, leaf: AuditLeaf) -> None:
        """One leaf; another agency's, or of another time, changes nothing."""
        at = leaf.at.ToDatetime(UTC)
        if leaf.agency_id != self._agency_id or not self._since <= at < self._until:
            return
        facts = {fact.key: fact.value for fact in leaf.facts}
        found = [(table, row or "OTHER") for table, row in _counted(leaf, facts)]
        if not leaf.emergency_id:
            self._counts.update(found)
            return
        emergency = self._emergencies[leaf.emergency_id]
        emergency.counts.update(found)
        if leaf.action == "emergency.raised":
            emergency.raised_at, emergency.status = at, facts.get("status", "")
            emergency.stale = facts.get("stale") == "True"
        elif leaf.action == "emergency.cleared":
            emergency.disposition = facts.get("disposition", "")
            emergency.status = emergency.status or facts.get("status", "")  # it may have been raised before the time that is counted
        elif leaf.action == "activation.outcome" and facts.get("state") in _STARTED:
            emergency.started_at = min(filter(None, (emergency.started_at, at)))
        elif leaf.action == "session.live":
            emergency.live_at = min(filter(None, (emergency.live_at, at)))

    def figures(self) -> dict[str, Any]:
        """All of it, small counts left out (None): {"tables": {name: {row: count}}, "times": {name: {...}}, "months": {...}}."""
        drills = [each for each in self._emergencies.values() if each.status == "EXERCISE"]
        real = [each for each in self._emergencies.values() if each.status != "EXERCISE"]
        raised = [each for each in real if each.raised_at]
        tables: dict[str, Table] = {
            "emergencies": {"all": len(raised), "too old to start a camera": sum(each.stale for each in raised)},
            "exercises": {"all": sum(each.raised_at is not None for each in drills)},
            "how emergencies ended": dict(Counter(each.disposition for each in real if each.disposition)),
        }
        counts = self._counts + sum((each.counts for each in real), Counter())
        for (table, row), count in counts.items():
            tables.setdefault(table, {})[row] = count
        starts = [(each.started_at - each.raised_at).total_seconds() for each in raised if each.started_at and each.raised_at]
        pictures = [(each.live_at - each.raised_at).total_seconds() for each in raised if each.live_at and each.raised_at]
        months = Counter(f"{each.raised_at:%Y-%m}" for each in raised if each.raised_at)
        return {
            "format": FORMAT,
            "agency": self._agency_id,
            "since": _text(self._since),
            "until": _text(self._until),
            "fewest": FEWEST,
            "tables": {name: suppressed(tables[name], are_parts=name != "emergencies") for name in sorted(tables)},
            "times": {"from press to a camera that records": _times(starts), "from press to pictures": _times(pictures)},
            "months": suppressed(dict(months)),
        }


def _counted(leaf: AuditLeaf, facts: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """Tables and rows that a leaf counts in."""
    match leaf.action:
        case "activation.outcome" if facts.get("state") in _STARTED:
            yield "cameras", "started"
        case "activation.outcome" if facts.get("state") in _FAILED:
            yield "cameras", "did not start"
            yield "why cameras did not start", facts.get("refusal") or facts["state"]
        case "session.begun":
            yield "streams", "begun"
        case "session.live":
            yield "streams", "with pictures"
        case "session.not_kept":
            yield "streams", "not kept for want of room"
        case "session.ended":
            yield "why streams ended", facts.get("cause", "")
        case "grant.issued":
            # What a person may watch for; an operational reason names itself.
            yield "reasons for watching", facts.get("reason") or "EMERGENCY"
        case "grant.redeemed":
            yield "views", "all"
        case "grant.ended":
            yield "why views ended", facts.get("cause", "")
        case "hold.placed":
            yield "recordings kept as evidence", facts.get("reason", "")
        case "recording.deleted":
            yield "deletions", "segments of recordings"
        case "alert.raised":
            yield "alerts of unauthorised use", facts.get("rule", "")
        case "alert.resolved":
            yield "what reviewers found", facts.get("outcome", "")
        case _ if leaf.outcome == AuditOutcome.AUDIT_OUTCOME_REFUSED:
            yield "refusals", facts.get("reason", "") or leaf.action
        case _:
            pass


def suppressed(table: Table, *, are_parts: bool = True) -> dict[str, int | None]:
    """The same without small counts. Were one part left out alone, whoever knows the sum could tell it: the next smallest goes, too."""
    hidden = {row for row, count in table.items() if 0 < count < FEWEST}
    shown = [row for row, count in table.items() if count >= FEWEST]
    if are_parts and len(hidden) == 1 and shown:
        hidden.add(min(shown, key=lambda row: (table[row], row)))
    return {row: None if row in hidden else table[row] for row in sorted(table)}


def _times(seconds: list[float]) -> dict[str, float | int | None]:
    """How many, their median and 95th percentile in seconds; None for too few."""
    count = len(seconds)
    return {
        "count": count if count == 0 or count >= FEWEST else None,
        "median_s": round(median(seconds), 2) if count >= FEWEST else None,
        "p95_s": round(quantiles(seconds, n=20, method="inclusive")[-1], 2) if count >= _P95_FROM else None,
    }


def canonical(figures: Mapping[str, Any]) -> bytes:
    """The bytes that are signed."""
    return (json.dumps(figures, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def statement(figures: bytes, origin: str, size: int, root: bytes) -> str:
    """The text of the note that signs them. Its first line has spaces, and so can be no log's name: it is no checkpoint."""
    content = json.loads(figures)
    lines = (
        FORMAT, f"agency {content['agency']}", f"since {content['since']}", f"until {content['until']}", f"log {origin}",
        f"checkpoint {size} {b64encode(root).decode()}", f"figures sha256 {hashlib.sha256(figures).hexdigest()}",
    )  # fmt: skip
    return "\n".join(lines) + "\n"


def recount(leaves: Iterable[bytes], figures: bytes) -> None:
    """Count leaves' bytes again; WrongFigures if it comes out otherwise."""
    try:
        said = json.loads(figures)
        tally = Tally(said["agency"], datetime.fromisoformat(said["since"]), datetime.fromisoformat(said["until"]))
    except (ValueError, KeyError, TypeError) as error:
        raise WrongFigures(f"these are no figures of a report: {error!r}") from error
    for leaf in leaves:
        tally.add(AuditLeaf.FromString(leaf[1:]))
    counted = tally.figures()
    if canonical(counted) == figures:
        return
    for part in ("tables", "times", "months"):
        for name, rows in counted[part].items():
            if (there := said.get(part, {}).get(name)) != rows:
                raise WrongFigures(f"{name}: the leaves come to {rows}, and the report says {there}")
    raise WrongFigures("the report says more than the leaves do")


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()
