"""Each rule finds what it is for, says why, names its leaves, and leaves everyday work alone."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sightline.audit.v1.leaf_pb2 import AuditDetail, AuditLeaf, AuditPersonal
from sightline.common.v1.actor_pb2 import ActorKind

from services.audit.oversight.model import (
    Account,
    Granted,
    Observation,
    Progress,
    Rule,
    Served,
    Suspicion,
    choose_reviewer,
    discrepancies,
    is_looked_at,
    observe,
    suspicions,
    troubles,
    viewings,
)

MORNING = datetime(2026, 11, 2, 9, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
_NUMBERS = count(1)


def entry(action: str, at: datetime, who: str = "", **more: str) -> Observation:
    return Observation(next(_NUMBERS), at, "pd", action, who, more.pop("emergency", ""), **more)  # type: ignore[arg-type]


def watch(
    who: str, officer: str, at: datetime, lasts: timedelta = MINUTE, emergency: str = "", disposition: str = "RESOLVED"
) -> list[Observation]:
    """All that the log says of one view of one officer's emergency."""
    n = str(next(_NUMBERS))
    emergency = emergency or f"e{n}"
    return [
        entry("session.begun", at, session_id=f"s{n}", officer=officer),
        entry("grant.issued", at, who, grant_id=n, session_id=f"s{n}", emergency=emergency),
        entry("grant.redeemed", at, grant_id=n, session_id=f"s{n}", emergency=emergency),
        entry("grant.ended", at + lasts, grant_id=n, session_id=f"s{n}", emergency=emergency),
        entry("emergency.cleared", at + lasts, "chief", emergency=emergency, disposition=disposition),
    ]


def everyday() -> list[Observation]:
    """Three people's month: each watches some emergencies a day, of many officers, in their hours."""
    return [
        each
        for day in range(20) for person in range(3) for n in range(3)
        for each in watch(f"p{person}", f"o{(day * 9 + person * 3 + n) % 57}", MORNING + day * DAY + n * HOUR + person * MINUTE)
    ]  # fmt: skip


def found(observations: list[Observation]) -> list[Suspicion]:
    return suspicions(observations)


def test_everyday_work_is_left_alone() -> None:
    assert found(everyday()) == []


def test_long_in_an_alarm_that_was_none() -> None:
    some = watch("eve", "o1", MORNING, 9 * MINUTE, "e", "FALSE_ACTIVATION")
    assert found(some) == []
    some += watch("eve", "o1", MORNING + HOUR, 7 * MINUTE, "e", "FALSE_ACTIVATION")
    [alert] = found(some)
    assert (alert.rule, alert.concerns, alert.key) == (Rule.NO_INCIDENT, "eve", "eve/e")
    assert alert.explanation == "watched for 16 minutes in an alarm that was cleared as FALSE_ACTIVATION"
    assert alert.evidence == [each.index for each in some if each.action == "grant.issued"]
    assert found(watch("eve", "o1", MORNING, 5 * HOUR)) == []  # where there was something


def test_the_same_words_pasted() -> None:
    some = [entry("emergency.cleared", MORNING + n * HOUR, "eve", emergency=f"e{n}", text="t") for n in range(4)]
    again = [entry("emergency.acknowledged", MORNING + n * HOUR, "eve", emergency=f"e{n}", text="t") for n in range(4)]
    assert found(some + again) == []  # of the same four things
    [alert] = found([*some, entry("hold.placed", MORNING, "eve", text="t")])
    assert (alert.rule, alert.concerns, len(alert.evidence)) == (Rule.PASTED_REASON, "eve", 5)
    assert "for 5 different things" in alert.explanation
    assert found([replace(each, text=f"t{n}") for n, each in enumerate(some * 2)]) == []


def test_an_hour_at_which_nobody_expects_her() -> None:
    weeks = [entry("emergency.acknowledged", MORNING + n * DAY + h * HOUR, "eve") for n in range(10) for h in range(8)]
    night = watch("eve", "o1", MORNING + 10 * DAY + 18 * HOUR)
    [alert] = found(weeks + night)
    assert (alert.rule, alert.concerns) == (Rule.UNUSUAL_HOUR, "eve")
    assert alert.explanation.startswith("watched at 03:00 UTC; on the 10 days of work before")
    assert found(weeks + watch("eve", "o1", MORNING + 10 * DAY - HOUR)) == []  # an hour early is no news
    assert found(weeks[:40] + night) == []  # too little is known of her


def test_the_same_officer_again_and_again() -> None:
    some = [each for n in range(4) for each in watch("eve", "ex", MORNING + n * DAY)]
    [alert] = found(some)
    assert (alert.rule, alert.concerns) == (Rule.ONE_OFFICER, "eve")
    assert "one officer in 4 of the 4 emergencies" in alert.explanation
    others = [each for n in range(5) for each in watch("eve", f"o{n}", MORNING + n * DAY)]
    assert found(some + others) == []  # who watches everybody watches him, too
    assert found([each for n in range(9) for each in watch("eve", "ex", MORNING + n * DAY, emergency="e")]) == []  # one emergency


def test_far_more_than_people_do() -> None:
    many = [each for n in range(25) for each in watch("eve", f"x{n}", MORNING + 20 * DAY + n * MINUTE)]
    [alert] = found(everyday() + many)
    assert (alert.rule, alert.concerns, len(alert.evidence)) == (Rule.UNUSUAL_VOLUME, "eve", 20)
    assert "watched 25 times on 2026-11-22; the usual number in this agency is 3 a day" in alert.explanation
    assert found(many) == []  # nothing is usual yet


def test_a_grant_that_nobody_used_is_no_viewing_and_order_does_not_matter() -> None:
    some = watch("eve", "o1", MORNING)
    assert viewings(each for each in some if each.action != "grant.redeemed") == []
    assert viewings(reversed(some)) == viewings(some) != []


@given(st.lists(st.sampled_from(everyday()), max_size=60))
def test_any_part_of_the_log_can_be_looked_at(some: list[Observation]) -> None:
    for alert in found(some):
        assert alert.evidence
        assert alert.explanation


def test_an_observation_holds_no_names() -> None:
    leaf = AuditLeaf(action="emergency.cleared", agency_id="pd", actor_kind=ActorKind.ACTOR_KIND_PERSON, emergency_id="e")
    details = [AuditDetail(key="note", value="  Officer Doe\n is  FINE today ")]
    personal = AuditPersonal(target="emergencies/e", details=details)
    seen = observe(7, leaf, personal, "key-1", MORNING, lambda kind, name: f"{kind}:{len(name)}")
    assert (seen.who, seen.text, seen.index) == ("key-1", "text:25", 7)
    begun = AuditLeaf(action="session.begun", agency_id="pd", actor_kind=ActorKind.ACTOR_KIND_SERVICE)
    of_doe = AuditPersonal(target="sessions/s1", details=[AuditDetail(key="officer", value="doe")])
    seen = observe(8, begun, of_doe, "key-2", MORNING, lambda kind, name: f"{kind}:{len(name)}")
    assert (seen.who, seen.officer, seen.session_id) == ("", "officer:3", "s1")
    assert not is_looked_at(AuditLeaf(action="call.refused", actor_kind=ActorKind.ACTOR_KIND_PERSON))


# --- accounts ---------------------------------------------------------------------------------------------------------

NOW, SETTLED = MORNING + HOUR, timedelta(seconds=60)
AGREED = Account(
    "g",
    Served("g", 5000, MORNING + 20 * MINUTE, is_over=True), MORNING,
    Granted("g", 4, "pd", 5000, MORNING + 20 * MINUTE, "EMERGENCY_CLEARED", MORNING + 20 * MINUTE), MORNING + 20 * MINUTE,
    issued_index=3, issued_by="eve", ended_index=9, recorded_bytes=5000,
)  # fmt: skip
assert AGREED.served
assert AGREED.granted


def test_three_that_agree_are_nothing_and_the_last_word() -> None:
    assert discrepancies(AGREED, NOW, SETTLED) == ([], True)
    not_used = replace(AGREED, served=None, served_since=None, recorded_bytes=0, granted=replace(AGREED.granted, bytes=0))  # type: ignore[type-var]
    assert discrepancies(not_used, NOW, SETTLED) == ([], True)
    lost = replace(AGREED, recorded_bytes=0, granted=replace(AGREED.granted, bytes=0, end_cause="RELAY_LOST"))  # type: ignore[type-var]
    assert discrepancies(lost, NOW, SETTLED) == ([], True)


@pytest.mark.parametrize(
    ("account", "rule", "words"),
    [
        (replace(AGREED, granted=None, ended_since=None), Rule.UNEXPLAINED_VIEWING, "for a grant that nobody gave"),
        (replace(AGREED, issued_index=None), Rule.UNEXPLAINED_VIEWING, "that is not in the log"),
        (replace(AGREED, served=replace(AGREED.served, last_byte_at=MORNING + 21 * MINUTE)), Rule.SERVED_AFTER_END, "60 s after the end"),
        (replace(AGREED, served=replace(AGREED.served, bytes=5001)), Rule.ACCOUNTS_DIFFER, "the relay gave out 5,001 bytes"),
        (replace(AGREED, recorded_bytes=4999), Rule.ACCOUNTS_DIFFER, "the log has 4,999 bytes"),
        (replace(AGREED, served=None, served_since=None), Rule.ACCOUNT_MISSING, "no relay says that it gave them"),
        (replace(AGREED, ended_index=None), Rule.ACCOUNT_MISSING, "not in the log"),
    ],
)  # fmt: skip
def test_two_that_differ_are_an_alert(account: Account, rule: Rule, words: str) -> None:
    [alert], _ = discrepancies(account, NOW, SETTLED)
    assert (alert.rule, alert.key) == (rule, "g")
    assert words in alert.explanation
    assert alert.agency_id == ("pd" if account.granted else "platform")


def test_what_is_still_under_way_is_waited_for() -> None:
    just_now = replace(AGREED, granted=None, ended_since=None, served_since=NOW)
    assert discrepancies(just_now, NOW + SETTLED / 2, SETTLED) == ([], False)
    ended_now = replace(AGREED, served=None, served_since=None, ended_index=None, ended_since=NOW)
    assert discrepancies(ended_now, NOW + SETTLED / 2, SETTLED) == ([], False)
    running = replace(AGREED, served=replace(AGREED.served, is_over=False, bytes=4000))  # type: ignore[type-var]
    assert discrepancies(replace(running, ended_since=NOW), NOW + SETTLED, SETTLED) == ([], False)
    assert discrepancies(running, NOW + 10 * SETTLED, SETTLED) == ([], True)


# --- producers, reviewers -------------------------------------------------------------------------------------------


def test_missing_numbers_are_named_after_a_while_and_silence_is_noticed() -> None:
    progress = Progress("streams", 90, 3, NOW - 2 * MINUTE, [(7, 8), (40, 40)], NOW)
    assert troubles(replace(progress, gap_since=NOW), NOW, MINUTE, HOUR) == []
    [gap] = troubles(progress, NOW, MINUTE, HOUR)
    assert (gap.rule, gap.key) == (Rule.NUMBERS_MISSING, "streams/7")
    assert gap.explanation == "3 numbers of streams below 90 are in no leaf: 7 to 8, 40"
    whole = Progress("streams", 90, 0, None, [], NOW - HOUR)
    [silent] = troubles(whole, NOW, MINUTE, HOUR)
    assert (silent.rule, silent.explanation) == (Rule.PRODUCER_SILENT, "streams has said nothing for 60 minutes")
    assert troubles(replace(whole, heard_at=NOW - 59 * MINUTE), NOW, MINUTE, HOUR) == []


def test_nobody_looks_at_herself() -> None:
    assert choose_reviewer({"ada": 3, "bob": 1, "cy": 1}, frozenset()) == "bob"
    assert choose_reviewer({"ada": 3, "bob": 1}, frozenset({"bob"})) == "ada"
    assert choose_reviewer({"bob": 1}, frozenset({"bob"})) == ""
    assert choose_reviewer({}, frozenset()) == ""
