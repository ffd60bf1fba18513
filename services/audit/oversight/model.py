"""What is noticed: rules over pseudonyms, accounts that are compared, and alerts as tasks; no I/O.

Persons are keys here: ids of what their personal parts are sealed with. Who is forgotten cannot be found again.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import TypeVar

from chassis.names import PLATFORM, KeptEnum
from sightline.audit.v1.leaf_pb2 import AuditLeaf, AuditPersonal
from sightline.common.v1.actor_pb2 import ActorKind

T = TypeVar("T")
N = TypeVar("N")
WINDOW, DUE = timedelta(days=30), timedelta(days=3)
# Clocks of relay and streams may differ by so much; what was under way when a grant was revoked has left long before.
TOLERANCE = timedelta(seconds=5)
_NONE = frozenset({"FALSE_ACTIVATION", "EXERCISE"})  # dispositions that say: there was nothing
_LONG_IN_NONE = timedelta(minutes=15)
_SAME_TEXT, _SHORT_TEXT = 5, 12  # times in the window; characters of a text that many would write
_KNOWN_DAYS = 10  # of work, before hours can be unusual
_SAME_OFFICER = 4  # emergencies in the window
_MANY, _TIMES_THE_USUAL, _OTHER_DAYS = 20, 3, 10
_EVIDENCE_AT_MOST = 20
_NO_MORE = 10  # times what is waited before accounts are compared
_SPACE = re.compile(r"\s+")
# Details that people fill with words.
_TEXTS = ("note", "reason")


class Rule(KeptEnum):
    """What was noticed; names as in sightline.audit.v1.AlertRule, which describes them."""

    UNEXPLAINED_VIEWING = "UNEXPLAINED_VIEWING"
    SERVED_AFTER_END = "SERVED_AFTER_END"
    ACCOUNTS_DIFFER = "ACCOUNTS_DIFFER"
    ACCOUNT_MISSING = "ACCOUNT_MISSING"
    NUMBERS_MISSING = "NUMBERS_MISSING"
    PRODUCER_SILENT = "PRODUCER_SILENT"
    LOG_DISPUTED = "LOG_DISPUTED"
    NO_INCIDENT = "NO_INCIDENT"
    PASTED_REASON = "PASTED_REASON"
    UNUSUAL_HOUR = "UNUSUAL_HOUR"
    ONE_OFFICER = "ONE_OFFICER"
    UNUSUAL_VOLUME = "UNUSUAL_VOLUME"


class Outcome(KeptEnum):
    """What a reviewer found."""

    JUSTIFIED = "JUSTIFIED"
    MISUSE = "MISUSE"
    DEFECT = "DEFECT"


@dataclass(frozen=True)
class Suspicion:
    """Something to look at. Equal rule and key are one alert, however often it is noticed; `concerns` is a person's key, or empty."""

    rule: Rule
    key: str
    agency_id: str
    explanation: str
    evidence: Sequence[int] = ()
    concerns: str = ""


@dataclass(frozen=True)
class Alert:
    """A task."""

    alert_id: str
    rule: Rule
    agency_id: str
    explanation: str
    evidence: Sequence[int]
    concerns: str
    raised_at: datetime
    due_at: datetime
    reviewer: str = ""
    outcome: Outcome | None = None
    resolved_at: datetime | None = None
    resolved_by: str = ""


# --- what is looked at ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Observation:
    """What of an entry is looked at: `who` a person's key, `officer` and `text` pseudonyms; grant and session by their ids."""

    index: int
    at: datetime
    agency_id: str
    action: str
    who: str
    emergency_id: str
    grant_id: str = ""
    session_id: str = ""
    officer: str = ""
    text: str = ""
    disposition: str = ""
    bytes: int = 0


def is_looked_at(leaf: AuditLeaf) -> bool:
    """Whether an entry says something that is looked at: what people do, and what becomes of grants and sessions."""
    by_person = leaf.actor_kind == ActorKind.ACTOR_KIND_PERSON and leaf.action != "call.refused"
    return by_person or leaf.action.startswith("grant.") or leaf.action in ("session.begun", "emergency.cleared")


def observe(index: int, leaf: AuditLeaf, personal: AuditPersonal, who: str, at: datetime, tag: Callable[[str, str], str]) -> Observation:
    """What is looked at of an entry; `tag` makes a pseudonym of a kind and a name."""
    facts = {fact.key: fact.value for fact in (*personal.details, *leaf.facts)}
    kind, _, name = personal.target.partition("/")
    words = next((facts[key] for key in _TEXTS if facts.get(key)), "")
    text = _SPACE.sub(" ", words).strip().casefold()
    is_person = leaf.actor_kind == ActorKind.ACTOR_KIND_PERSON
    return Observation(
        index, at, leaf.agency_id or PLATFORM, leaf.action, who if is_person else "", leaf.emergency_id,
        grant_id=name if kind == "grants" else "",
        session_id=name if kind == "sessions" else facts.get("session", ""),
        officer=tag("officer", facts["officer"]) if leaf.action == "session.begun" and facts.get("officer") else "",
        text=tag("text", text) if is_person and len(text) >= _SHORT_TEXT else "",
        disposition=facts.get("disposition", ""), bytes=int(facts["bytes"]) if facts.get("bytes", "").isdecimal() else 0,
    )  # fmt: skip


@dataclass(frozen=True)
class Viewing:
    """Somebody watched: from `at` to `until` (None: still does, or only has leave to), because of an emergency that ended so."""

    index: int
    agency_id: str
    who: str
    officer: str
    emergency_id: str
    at: datetime
    until: datetime | None
    disposition: str


def viewings(observations: Iterable[Observation]) -> list[Viewing]:
    """Who watched whom, by the entries of grants, sessions and emergencies, in any order; those that were used, by time."""
    by_action: dict[str, dict[str, Observation]] = defaultdict(dict)
    officers, dispositions = {}, {}
    for each in observations:
        if each.grant_id:
            by_action[each.action][each.grant_id] = each
        if each.officer:
            officers[each.session_id] = each.officer
        if each.disposition:
            dispositions[each.emergency_id] = each.disposition
    ended = by_action["grant.ended"]
    found = [
        Viewing(
            issued.index, issued.agency_id, issued.who, officers.get(issued.session_id, ""), issued.emergency_id,
            by_action["grant.redeemed"][grant_id].at, ended[grant_id].at if grant_id in ended else None,
            dispositions.get(issued.emergency_id, ""),
        )
        for grant_id, issued in by_action["grant.issued"].items() if grant_id in by_action["grant.redeemed"]
    ]  # fmt: skip
    return sorted(found, key=lambda each: each.at)


# --- rules of unauthorised use ----------------------------------------------------------------------------------------


def no_incident(seen: Sequence[Viewing]) -> list[Suspicion]:
    """Watched for long in an alarm that turned out to be none: an alarm that is left open is a window."""
    by_alarm = _grouped((each for each in seen if each.disposition in _NONE and each.until), lambda each: (each.who, each.emergency_id))
    found = []
    for (who, emergency_id), some in by_alarm.items():
        watched = sum((each.until - each.at for each in some if each.until), timedelta())
        if watched >= _LONG_IN_NONE:
            words = f"watched for {_minutes(watched)} in an alarm that was cleared as {some[0].disposition}"
            found.append(_suspect(Rule.NO_INCIDENT, f"{who}/{emergency_id}", words, some))
    return found


def pasted_reason(observations: Sequence[Observation]) -> list[Suspicion]:
    """The same words again and again: a reason that fits everything is none."""
    by_text = _grouped((each for each in observations if each.who and each.text), lambda each: (each.who, each.text))
    found = []
    for (who, text), some in by_text.items():
        things = {each.emergency_id or each.grant_id or str(each.index) for each in some}
        if len(things) >= _SAME_TEXT:
            words = f"gave the same words for {len(things)} different things within {WINDOW.days} days"
            found.append(_suspect(Rule.PASTED_REASON, f"{who}/{text}", words, some))
    return found


def unusual_hour(observations: Sequence[Observation], seen: Sequence[Viewing]) -> list[Suspicion]:
    """Watched at an hour at, before and after which this person never works. Shifts of the RTCC are in no register: habit stands in."""
    days: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for each in observations:
        if each.who:
            days[each.who][each.at.date().isoformat()].add(each.at.hour)
    found = []
    for viewing in seen:
        today = viewing.at.date().isoformat()
        before = [hours for day, hours in days[viewing.who].items() if day < today]
        near = {(viewing.at.hour + offset) % 24 for offset in (-1, 0, 1)}
        if len(before) >= _KNOWN_DAYS and not any(near & hours for hours in before):
            words = f"watched at {viewing.at:%H:%M} UTC; on the {len(before)} days of work before, this person did nothing near that hour"
            found.append(_suspect(Rule.UNUSUAL_HOUR, f"{viewing.who}/{today}", words, [viewing]))
    return found


def one_officer(seen: Sequence[Viewing]) -> list[Suspicion]:
    """Comes back to one officer: several emergencies, and half or more of all that this person watched."""
    of_person = _grouped(seen, lambda each: (each.who,))
    found = []
    for (who, officer), some in _grouped((each for each in seen if each.officer), lambda each: (each.who, each.officer)).items():
        emergencies = {each.emergency_id for each in some}
        all_of_them = {each.emergency_id for each in of_person[who,]}
        if len(emergencies) >= _SAME_OFFICER and 2 * len(emergencies) >= len(all_of_them):
            words = f"watched one officer in {len(emergencies)} of the {len(all_of_them)} emergencies watched within {WINDOW.days} days"
            found.append(_suspect(Rule.ONE_OFFICER, f"{who}/{officer}/{some[-1].at:%Y-%m}", words, some))
    return found


def unusual_volume(seen: Sequence[Viewing]) -> list[Suspicion]:
    """Watched far more often in a day than is usual in the agency, by all its people's days."""
    by_day = _grouped(seen, lambda each: (each.who, each.at.date().isoformat()))
    counts = Counter({name: len(some) for name, some in by_day.items()})
    found = []
    for (who, day), count in counts.items():
        others = [number for name, number in counts.items() if name != (who, day)]
        if count >= _MANY and len(others) >= _OTHER_DAYS and count > _TIMES_THE_USUAL * median(others):
            words = f"watched {count} times on {day}; the usual number in this agency is {median(others):g} a day"
            found.append(_suspect(Rule.UNUSUAL_VOLUME, f"{who}/{day}", words, by_day[who, day]))
    return found


def suspicions(observations: Sequence[Observation]) -> list[Suspicion]:
    """What the rules find in an agency's observations of the window."""
    seen = viewings(observations)
    return [
        *no_incident(seen), *pasted_reason(observations), *unusual_hour(observations, seen), *one_officer(seen), *unusual_volume(seen),
    ]  # fmt: skip


def _grouped(items: Iterable[T], name: Callable[[T], N]) -> dict[N, list[T]]:
    groups: dict[N, list[T]] = defaultdict(list)
    for each in items:
        groups[name(each)].append(each)
    return groups


def _suspect(rule: Rule, key: str, words: str, some: Sequence[Observation | Viewing]) -> Suspicion:
    evidence = sorted(each.index for each in some)[-_EVIDENCE_AT_MOST:]
    return Suspicion(rule, key, some[0].agency_id, words, evidence, some[0].who)


def _minutes(span: timedelta) -> str:
    return f"{span.total_seconds() / 60:.0f} minutes"


# --- accounts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A relay's own word on a grant."""

    grant_id: str
    bytes: int
    last_byte_at: datetime | None
    is_over: bool


@dataclass(frozen=True)
class Granted:
    """What the service that gives grants says of one."""

    grant_id: str
    version: int
    agency_id: str
    bytes: int
    revoked_at: datetime | None
    end_cause: str
    ended_at: datetime | None


@dataclass(frozen=True)
class Account:
    """A grant by three witnesses: its relay, its giver, the log. `*_since` are when we first heard of it so, `*_index` leaves."""

    grant_id: str
    served: Served | None = None
    served_since: datetime | None = None
    granted: Granted | None = None
    ended_since: datetime | None = None
    issued_index: int | None = None
    issued_by: str = ""
    ended_index: int | None = None
    recorded_bytes: int = 0


def discrepancies(account: Account, now: datetime, settled: timedelta) -> tuple[list[Suspicion], bool]:
    """Where the three do not agree, `settled` after each was heard of; and whether that was the last word on it."""
    served, granted = account.served, account.granted
    agency = granted.agency_id if granted else PLATFORM
    found: list[tuple[Rule, str]] = []
    served_long = account.served_since is not None and now - account.served_since >= settled
    ended_long = account.ended_since is not None and now - account.ended_since >= settled
    if served and served.bytes and served_long:
        if granted is None:
            found.append((Rule.UNEXPLAINED_VIEWING, f"a relay gave out {served.bytes:,} bytes for a grant that nobody gave"))
        elif account.issued_index is None:
            found.append((Rule.UNEXPLAINED_VIEWING, f"a relay gave out {served.bytes:,} bytes for a grant that is not in the log"))
    if served and granted and served.last_byte_at and granted.revoked_at:
        late = served.last_byte_at - granted.revoked_at
        if late > TOLERANCE:
            found.append((Rule.SERVED_AFTER_END, f"pictures left for {late.total_seconds():.0f} s after the end ({granted.end_cause})"))
    if granted and granted.ended_at and ended_long:
        found += _at_the_end(account, granted)
    # A relay that was killed after it told what the grant came to never tells its own end of it.
    waited = account.ended_since is not None and now - account.ended_since >= _NO_MORE * settled
    # What nobody gave has been noticed by then; should somebody say something of it after all, it is looked at again.
    is_over = (granted is None and served_long) or (ended_long and (served is None or served.is_over or waited))
    evidence = [index for index in (account.issued_index, account.ended_index) if index is not None]
    suspects = [Suspicion(rule, account.grant_id, agency, words, evidence, account.issued_by) for rule, words in found]
    return suspects, is_over


def _at_the_end(account: Account, granted: Granted) -> list[tuple[Rule, str]]:
    served, found = account.served, []
    if account.ended_index is None:
        found.append((Rule.ACCOUNT_MISSING, "the end of the grant is not in the log"))
    elif granted.end_cause != "RELAY_LOST" and account.recorded_bytes != granted.bytes:
        found.append((Rule.ACCOUNTS_DIFFER, f"the log has {account.recorded_bytes:,} bytes, and the grant {granted.bytes:,}"))
    # A relay that died has told what it could; a grant that it still served is then more than nothing.
    if granted.end_cause == "RELAY_LOST" and not granted.bytes:
        return found
    if granted.bytes and served is None:
        found.append((Rule.ACCOUNT_MISSING, f"the grant came to {granted.bytes:,} bytes, and no relay says that it gave them"))
    elif served and served.is_over and served.bytes != granted.bytes:
        found.append((Rule.ACCOUNTS_DIFFER, f"the relay gave out {served.bytes:,} bytes, and the grant came to {granted.bytes:,}"))
    return found


# --- producers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How a producer's records come: `gap_since` when a number was first missed, the first that are missing, when it was last heard."""

    producer: str
    highest: int
    missing: int
    gap_since: datetime | None
    gaps: Sequence[tuple[int, int]]
    heard_at: datetime


def troubles(progress: Progress, now: datetime, gap: timedelta, silence: timedelta) -> list[Suspicion]:
    """Numbers that do not come, and producers that say nothing."""
    found = []
    if progress.missing and progress.gaps and progress.gap_since and now - progress.gap_since >= gap:
        named = ", ".join(f"{since}" if since == until else f"{since} to {until}" for since, until in progress.gaps)
        words = f"{progress.missing} numbers of {progress.producer} below {progress.highest} are in no leaf: {named}"
        found.append(Suspicion(Rule.NUMBERS_MISSING, f"{progress.producer}/{progress.gaps[0][0]}", PLATFORM, words))
    if now - progress.heard_at >= silence:
        words = f"{progress.producer} has said nothing for {_minutes(now - progress.heard_at)}"
        found.append(Suspicion(Rule.PRODUCER_SILENT, f"{progress.producer}/{progress.heard_at.isoformat()}", PLATFORM, words))
    return found


# --- reviewers --------------------------------------------------------------------------------------------------------


def choose_reviewer(loads: Mapping[str, int], concerned: frozenset[str]) -> str:
    """Who looks at an alert: the one with the least to do, never somebody whom it concerns; empty if there is nobody."""
    return min((name for name in loads if name not in concerned), key=lambda name: (loads[name], name), default="")
