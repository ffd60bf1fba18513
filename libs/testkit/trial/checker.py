"""Compares what everybody wrote down with the invariants of the system. Pure; an empty list is a clean bill."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from sightline.activation.v1.activation_pb2 import ActivationState

from testkit.trial.evidence import Evidence, Row
from testkit.trial.journal import ERROR, OK

# How every poisonous record of a trial begins.
POISON = b"poison"
# A clear that has not reached `streams` yet cannot stop an order: ten times what it usually takes.
_CLEAR_REACHES = timedelta(seconds=20)
_OUTCOMES = ("RECORDING", "ALREADY_RECORDING", "REFUSED", "UNREACHABLE", "TIMED_OUT", "WITHDRAWN", "NO_CAMERA")


@dataclass(frozen=True)
class Violation:
    """One broken promise: which, and where."""

    invariant: str
    text: str


def check(evidence: Evidence) -> list[Violation]:
    """Everything that is wrong."""
    rules = (_no_loss, _one_emergency, _events, _one_activation, _no_wrong_camera, _outcomes, _audit, _causality, _dead_letters)
    return [Violation(*broken) for rule in rules for broken in rule(evidence)]


Broken = Iterator[tuple[str, str]]


def _answers(evidence: Evidence) -> dict[int, list[Row]]:
    answers: dict[int, list[Row]] = defaultdict(list)
    for line in evidence.presses:
        if line["what"] == "answered":
            answers[line["n"]].append(line)
    return answers


def _intended(evidence: Evidence) -> dict[int, Row]:
    return {line["n"]: line for line in evidence.presses if line["what"] == "intended"}


def _by_id(rows: Iterable[Row]) -> dict[str, Row]:
    return {row["emergency_id"]: row for row in rows}


def _no_loss(evidence: Evidence) -> Broken:
    """I1: what was answered OK is there, once, in the emergency that the answer named. I10: what was refused is not."""
    there: dict[str, list[Row]] = defaultdict(list)
    for row in evidence.rows["press"]:
        there[row["request_id"]].append(row)
    answers, emergencies = _answers(evidence), _by_id(evidence.rows["emergency"])
    for number, press in _intended(evidence).items():
        found = there.pop(press["request_id"], [])
        named = {a["emergency_id"] for a in answers[number] if a["answer"] == OK}
        if len(found) > 1:
            yield "I1", f"press {number} was taken {len(found)} times"
        if named and not found:
            yield "I1", f"press {number} was answered OK ({named}) and is not in the database"
        if found and named - {found[0]["emergency_id"]}:
            yield "I1", f"press {number} was answered with {named}, and belongs to {found[0]['emergency_id']}"
        if found and found[0]["emergency_id"] not in emergencies:
            yield "I1", f"press {number} belongs to an emergency that is not there"
        if found and answers[number] and all(a["answer"] == ERROR for a in answers[number]):
            yield "I10", f"press {number} was refused and taken all the same"
    for request_id in there:
        yield "I3", f"a press {request_id} is in the database that nobody made"


def _one_emergency(evidence: Evidence) -> Broken:
    """I1: emergencies of one radio never overlap, and every one has its presses."""
    presses = Counter(row["emergency_id"] for row in evidence.rows["press"])
    by_radio: dict[str, list[Row]] = defaultdict(list)
    for row in evidence.rows["emergency"]:
        by_radio[row["radio"]].append(row)
        counted = 1 + row["document"]["repeat_count"]
        if presses[row["emergency_id"]] != counted:
            yield "I1", f"emergency {row['emergency_id']} counts {counted} presses and has {presses[row['emergency_id']]}"
    for radio, rows in by_radio.items():
        rows.sort(key=lambda r: str(r["emergency_id"]))
        for earlier, later in pairwise(rows):
            cleared = earlier["document"]["cleared"]
            if cleared is None or _time(cleared["at"]) > _time(later["document"]["clocks"]["platform_received_at"]) + _CLEAR_REACHES:
                yield "I1", f"radio {radio} had two emergencies at a time: {earlier['emergency_id']}, {later['emergency_id']}"


def _events(evidence: Evidence) -> Broken:
    """I1, I9: every version of every emergency is on the topic, and a version never has two contents."""
    seen: dict[str, dict[int, bytes]] = defaultdict(dict)
    for emergency in evidence.events:
        content = emergency.SerializeToString(deterministic=True)
        if seen[emergency.emergency_id].setdefault(emergency.version, content) != content:
            yield "I9", f"emergency {emergency.emergency_id} version {emergency.version} was published with two contents"
    for row in evidence.rows["emergency"]:
        missing = set(range(1, row["version"] + 1)) - set(seen.pop(row["emergency_id"], {}))
        if missing:
            yield "I9", f"emergency {row['emergency_id']}: versions {sorted(missing)} were never published"
    for emergency_id in seen:
        yield "I1", f"emergency {emergency_id} was published and is not in the database"


def _one_activation(evidence: Evidence) -> Broken:
    """I2: a camera acts at most once on each name."""
    for (camera, emergency_id, epoch), count in Counter(_acts(evidence)).items():
        if count > 1:
            yield "I2", f"camera {camera} acted {count} times on {emergency_id} epoch {epoch}"


def _acts(evidence: Evidence) -> Iterator[tuple[str, str, int]]:
    for line in evidence.cameras:
        yield line["camera"], line["emergency_id"], line["epoch"]


def _no_wrong_camera(evidence: Evidence) -> Broken:
    """I3, I11: every start has a decision and an accepted press of the camera's officer, and no order after the clear."""
    carried = _carried(evidence)
    emergencies = _by_id(evidence.rows["emergency"])
    ordered = {(a["camera_id"], a["emergency_id"], a["epoch"]): a for a in evidence.rows["activation"] if a["camera_id"]}
    for name in set(_acts(evidence)):
        camera, emergency_id, _ = name
        if name not in ordered:
            yield "I3", f"camera {camera} started for {name[1:]} without a decision"
        if camera not in carried.get(emergency_id, set()):
            yield "I3", f"camera {camera} started for {emergency_id}, whose radio was with {carried.get(emergency_id)}"
    for record in evidence.audit:
        if record.action == "activation.unexpected" and record.emergency_id in emergencies:
            yield "I3", f"{record.target} reported {record.emergency_id} epoch {record.details['epoch']}, which nobody ordered"
    for row in ordered.values():
        document = emergencies.get(row["emergency_id"], {}).get("document")
        if document is None:
            yield "I3", f"camera {row['camera_id']} was ordered for {row['emergency_id']}, which is not there"
        elif row["epoch"] == document["epoch"] and not _is_officer(document["subject"], row["officer_id"]):
            yield "I3", f"{row['emergency_id']} is of {document['subject']['officer_id']}; ordered was {row['officer_id']}'s camera"
        elif document["cleared"] and row["ordered_at"] and row["ordered_at"] > _time(document["cleared"]["at"]) + _CLEAR_REACHES:
            yield "I3", f"camera {row['camera_id']} was ordered for {row['emergency_id']} after its clear"


def _is_officer(subject: Row, officer_id: str) -> bool:
    """Whether a camera's officer is the emergency's; an emergency cleared before the registry answered has none."""
    return bool(subject["state"] == "UNPINNED" or subject["officer_id"] == officer_id)


def _carried(evidence: Evidence) -> dict[str, set[str]]:
    """Emergency → cameras that the pressing officer carried at the press, as the driver knows."""
    intended, found = {row["request_id"]: row for row in _intended(evidence).values()}, defaultdict(set)
    for row in evidence.rows["press"]:
        if press := intended.get(row["request_id"]):
            found[row["emergency_id"]].update(press["cameras"])
    return found


def _outcomes(evidence: Evidence) -> Broken:
    """I2, I9: every epoch is decided, every decision has its activations, every activation an outcome that all know of."""
    decided = {(d["emergency_id"], d["epoch"]) for d in evidence.rows["decision"]}
    activations = defaultdict(list)
    for a in evidence.rows["activation"]:
        activations[a["emergency_id"], a["epoch"]].append(a)
    published = {(r.emergency_id, r.epoch, r.camera_id, r.version): r.state for r in evidence.results}
    shown = {(s["emergency_id"], s["epoch"], s["camera_id"]): s["version"] for s in evidence.rows["shown"]}
    said = {what: {line["emergency_id"] for line in evidence.presses if line["what"] == what} for what in ("waited", "cleared")}
    at_once = said["cleared"] - said["waited"]  # nobody needs a camera any more
    for row in evidence.rows["emergency"]:
        name = (row["emergency_id"], row["document"]["epoch"])
        if name not in decided and row["emergency_id"] not in at_once:
            yield "I9", f"{name} was never decided"
    for name in decided:
        if not activations[name]:
            yield "I9", f"{name} was decided and has no activation"
    for rows in activations.values():
        for a in rows:
            place = (a["emergency_id"], a["epoch"], a["camera_id"])
            if a["state"] not in _OUTCOMES:
                yield "I9", f"{place} has no outcome: {a['state']}"
            for version in range(1, a["version"] + 1):
                if (*place, version) not in published:
                    yield "I9", f"{place}: version {version} was never published"
            newest = published.get((*place, a["version"]))
            if newest is not None and ActivationState.Name(newest) != f"ACTIVATION_STATE_{a['state']}":
                yield "I9", f"{place} is {a['state']} and was published as {ActivationState.Name(newest)}"
            if shown.get(place) != a["version"]:
                yield "I9", f"{place} is at version {a['version']}; shown is {shown.get(place)}"
    started = {name[1] for name in _acts(evidence)}
    for emergency_id, press in _recorded(evidence).items():
        if emergency_id not in started:
            yield "I1", f"no camera of {press['officer']} started for {emergency_id} (press {press['n']}), though it was waited for"


def _recorded(evidence: Evidence) -> dict[str, Row]:
    """Emergencies whose camera the driver waited for."""
    answers, found = _answers(evidence), {}
    waited = {line["emergency_id"] for line in evidence.presses if line["what"] == "waited"}
    for number, press in _intended(evidence).items():
        for answer in answers[number]:
            if answer["answer"] == OK and answer["emergency_id"] in waited:
                found[answer["emergency_id"]] = press
    return found


def _audit(evidence: Evidence) -> Broken:
    """I6: the numbers of each producer have no gap and no repeat, and each change has exactly one record."""
    numbers: dict[str, dict[int, str]] = defaultdict(dict)
    for record in evidence.audit:
        if numbers[record.producer].setdefault(record.producer_seq, record.record_id) != record.record_id:
            yield "I6", f"audit record {record.producer}/{record.producer_seq} has two contents"
    agencies = {row["document"]["agency_id"] for row in evidence.rows["emergency"]}
    for producer, there in numbers.items():
        # Between the first and the last of this trial: an earlier one on the same stack may have lost some on purpose.
        ours = [r.producer_seq for r in evidence.audit if r.producer == producer and r.agency_id in agencies]
        missing = set(range(min(ours), max(ours) + 1)) - set(there) if ours else set()
        if missing:
            yield "I6", f"audit records of {producer} are missing: {sorted(missing)[:5]} … {len(missing)} in all"
    unique = {record.record_id: record for record in evidence.audit}.values()
    versions = Counter((r.emergency_id, int(r.details["version"])) for r in unique if r.producer == "emergency" and "version" in r.details)
    for row in evidence.rows["emergency"]:
        for version in range(1, row["version"] + 1):
            if versions[row["emergency_id"], version] != 1:
                yield "I6", f"emergency {row['emergency_id']} version {version} has {versions[row['emergency_id'], version]} audit records"
    decided = Counter((r.emergency_id, int(r.details["epoch"])) for r in unique if r.action == "activation.decided")
    for d in evidence.rows["decision"]:
        if decided[d["emergency_id"], d["epoch"]] != 1:
            yield "I6", f"decision {d['emergency_id']} has {decided[d['emergency_id'], d['epoch']]} audit records"
    changed = Counter((r.emergency_id, int(r.details["epoch"]), r.target) for r in unique if r.action == "activation.outcome")
    for a in evidence.rows["activation"]:
        count = changed[a["emergency_id"], a["epoch"], f"cameras/{a['camera_id']}"]
        if count != a["version"] - 1:
            yield "I6", f"activation {a['emergency_id']} {a['camera_id']} changed {a['version'] - 1} times and has {count} audit records"


def _causality(evidence: Evidence) -> Broken:
    """I8: no producer tells of an effect before its cause."""
    order = ("emergency.raised", "emergency.cleared"), ("activation.decided", "activation.outcome")
    first: dict[tuple[str, str], int] = {}
    ours = _by_id(evidence.rows["emergency"])
    for record in evidence.audit:
        if record.emergency_id not in ours:
            continue
        name = (record.emergency_id, record.action)
        first[name] = min(first.get(name, record.producer_seq), record.producer_seq)
    for (emergency_id, action), number in first.items():
        for cause, effect in order:
            if action == effect and first.get((emergency_id, cause), 0) > number:  # one that is missing is I6's
                yield "I8", f"{effect} of {emergency_id} was recorded before {cause}"


def _dead_letters(evidence: Evidence) -> Broken:
    """I12: nothing but poison is set aside."""
    for topic, value in evidence.dead_letters:
        if not value.startswith(POISON):
            yield "I12", f"{topic} holds a record that is no poison: {value[:40]!r}"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
