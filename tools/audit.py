"""`sightline audit`: the audit log, checked by nobody's word but its own bytes; and bundles of it for a court or an outsider."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from mako.template import Template
from sightline.audit.v1 import audit_service_pb2 as pb
from sightline.audit.v1.leaf_pb2 import AuditLeaf, AuditPersonal
from tlog.merkle import ProofError, check_inclusion, leaf_hash
from tlog.note import Checkpoint, NoteError, Verifier, open_checkpoint
from tlog.verify import Recomputed

from tools.desk import Desk
from tools.terminal import Advance, Unreadable

FORMAT = "sightline audit bundle 1"
_PAGE, _FINDINGS_AT_MOST = 200, 1000
_TIMELINE = Template(filename=str(Path(__file__).with_name("timeline.mako")), default_filters=["str", "h"])  # noqa: S702 - it escapes


@dataclass
class Verdict:
    """What a check has seen. Integrity, completeness and authenticity are three things; so is what nobody outside has seen yet."""

    what: str
    key: str
    size: int = 0
    checked: int = 0
    readable: int = 0
    witnesses: list[str] = field(default_factory=list)
    anchored: int = 0
    findings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    key_was_given: bool = False

    @property
    def good(self) -> bool:
        """Nothing is wrong."""
        return not self.findings and not self.missing

    def lines(self) -> list[tuple[str, str, str]]:
        """Rows of a table: what, whether it holds ("yes", "no", "look"), and in words."""
        is_log = self.what == "log"
        whole = f"{self.checked:,} of {self.size:,} leaves recomputed, {self.readable:,} of them with what they say"
        proved = f"{self.checked:,} entries proved to be among the {self.size:,} leaves of the log"
        # A part shows what it has, and nothing of what it leaves out.
        all_there = (
            "no number of a producer is missing"
            if is_log
            else "only the whole log shows whether these are all; it says that it misses none"
        )
        whose = "the key that you gave" if self.key_was_given else "its own key; compare the fingerprint with what you were told"
        seen = f"cosigned by {', '.join(self.witnesses)}" if self.witnesses else "no witness has cosigned it"
        open_end = self.size - self.anchored
        unseen = f"; nobody outside has seen the last {open_end:,} of its leaves" if open_end else ""
        return [
            ("integrity", "no" if self.findings else "yes", "; ".join(self.findings[:5]) or (whole if is_log else proved)),
            ("completeness", "no" if self.missing else "yes" if is_log else "look", "; ".join(self.missing[:5]) or all_there),
            ("authenticity", "yes" if self.key_was_given else "look", f"signed with {whose} ({fingerprint(self.key)})"),
            ("anchored", "look" if open_end else "yes", seen + unseen),
        ]


def fingerprint(key: str) -> str:
    """A key in a form that can be read out on the telephone: the first half of the sha256 of its text."""
    return " ".join(hashlib.sha256(key.encode()).hexdigest()[at : at + 4] for at in range(0, 32, 4))


@dataclass(frozen=True)
class Header:
    """First line of a bundle: whose log, at which checkpoint, seen by whom."""

    what: str  # "log", or "emergency <id>"
    key: str
    witness_keys: Sequence[str]
    checkpoint: str
    cosigned: str
    missing: Sequence[str]

    @classmethod
    def of(cls, log: pb.GetLogResponse, what: str, checkpoint: str = "") -> "Header":
        """As the running log says."""
        gaps = [f"{p.producer} has {p.missing} numbers below {p.highest} without a record" for p in log.producers if p.missing]
        return cls(what, log.key, list(log.witness_keys), checkpoint or log.checkpoint, log.cosigned, gaps)

    def line(self) -> str:
        """As JSON."""
        return json.dumps({"format": FORMAT} | self.__dict__)

    @classmethod
    def parse(cls, line: str) -> "Header":
        """Unreadable if it is none."""
        try:
            content = json.loads(line)
            if content.pop("format") != FORMAT:
                raise ValueError("another format")
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreadable(f"this is no bundle of `sightline audit export`: {error!r}") from error


def begin(header: Header, key: str, anchors: Iterable[str]) -> tuple[Verdict, Checkpoint, dict[int, bytes]]:
    """Open what is signed; the roots that the tree has to pass through, by size. Unreadable if the key cannot be read."""
    verdict = Verdict(header.what, key or header.key, key_was_given=bool(key), missing=list(header.missing))
    try:
        log, witnesses = Verifier.parse(verdict.key), [Verifier.parse(each) for each in header.witness_keys]
    except NoteError as error:
        raise Unreadable(str(error)) from error
    roots: dict[int, bytes] = {}
    newest = Checkpoint(log.name, 0, bytes(32))
    for name, note in (
        ("the checkpoint", header.checkpoint),
        ("the cosigned checkpoint", header.cosigned),
        *(("a kept one", a) for a in anchors),
    ):
        if not note:
            continue
        try:
            point, seen = open_checkpoint(note, log, witnesses)
        except NoteError as error:
            verdict.findings.append(f"{name} is not what this log signs: {error}")
            continue
        if roots.setdefault(point.size, point.root) != point.root:
            verdict.findings.append(f"two checkpoints of {point.size} leaves differ: the log has two histories")
        if seen and point.size > verdict.anchored:
            verdict.anchored, verdict.witnesses = point.size, sorted(seen)
        newest = max(newest, point, key=lambda each: each.size) if name == "the checkpoint" else newest
    verdict.size = newest.size
    return verdict, newest, roots


class LogCheck:
    """All leaves, in order, against all that was signed of them."""

    def __init__(self, verdict: Verdict, roots: dict[int, bytes]) -> None:
        self._verdict, self._roots, self._tree = verdict, roots, Recomputed()
        self._numbers: dict[str, set[int]] = {}

    def add(self, hashed: bytes, leaf: bytes) -> None:
        """The next leaf: its hash in the tree, and its bytes if there are."""
        index, verdict = self._tree.size, self._verdict
        if leaf:
            verdict.readable += 1
            if leaf_hash(leaf) != hashed:
                self._find(f"leaf {index}: its bytes are not those that the tree was made of")
            try:
                content = AuditLeaf.FromString(leaf[1:])
                self._numbers.setdefault(content.producer, set()).add(content.producer_seq)
            except DecodeError:
                self._find(f"leaf {index}: it cannot be read")
        self._tree.add(hashed or bytes(32))
        if (root := self._roots.get(self._tree.size)) is not None and (wrong := self._tree.anchor(root)):
            self._find(str(wrong))

    def end(self) -> Verdict:
        """The verdict."""
        verdict = self._verdict
        verdict.checked = self._tree.size
        if verdict.checked < verdict.size:
            self._find(f"leaf {verdict.checked}: it and all after it are missing, {verdict.size - verdict.checked} in all")
        if verdict.readable == verdict.checked:  # numbers of what one may not read cannot be counted
            for producer, numbers in sorted(self._numbers.items()):
                if gaps := max(numbers) - len(numbers):
                    verdict.missing.append(f"{producer}: {gaps} numbers below {max(numbers)} are in no leaf")
        return verdict

    def _find(self, text: str) -> None:
        if len(self._verdict.findings) < _FINDINGS_AT_MOST:
            self._verdict.findings.append(text)


async def leaves(desk: Desk, size: int) -> AsyncIterator[pb.Leaf]:
    """All leaves of a running log."""
    async for some in desk.audit.ReadLeaves(pb.ReadLeavesRequest(end=size), timeout=3600, metadata=desk.metadata()):
        for leaf in some.leaves:
            yield leaf


async def check_running(desk: Desk, key: str, anchors: Iterable[str], advance: Advance) -> Verdict:
    """Recompute a running log from its first leaf. Unreadable if it has none."""
    log = await desk.call(desk.audit.GetLog, pb.GetLogRequest())
    if not log.checkpoint:
        raise Unreadable("the log is empty")
    verdict, newest, roots = begin(Header.of(log, "log"), key, anchors)
    check = LogCheck(verdict, roots)
    done = 0
    async for leaf in leaves(desk, newest.size):
        check.add(leaf.hash, leaf.leaf)
        done += 1
        if done % _PAGE == 0:
            advance(done, newest.size)
    return check.end()


def check_bundle(path: Path, key: str, anchors: Iterable[str], advance: Advance) -> Verdict:
    """Check an exported bundle, offline: a log is recomputed, each entry of an emergency proved. Unreadable if it is none."""
    try:
        with path.open() as file:
            header = Header.parse(file.readline())
            verdict, newest, roots = begin(header, key, anchors)
            lines = _lines(file, path)
            if header.what == "log":
                check = LogCheck(verdict, roots)
                for n, content in enumerate(lines, 1):
                    check.add(bytes.fromhex(content["hash"]), base64.b64decode(content["leaf"]))
                    if n % _PAGE == 0:
                        advance(n, newest.size)
                return check.end()
            for content in lines:
                _check_entry(verdict, content, newest)
            return verdict
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{path} cannot be read: {error}") from error


def _lines(file: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 2):
        try:
            content = json.loads(line)
            for name in {"leaf", "personal"} & content.keys():
                base64.b64decode(content[name], validate=True)
            for step in (*content.get("path", ()), content.get("hash", "")):
                bytes.fromhex(step)
            if not ({"hash", "leaf"} <= content.keys() or {"index", "leaf", "personal", "path"} <= content.keys()):
                raise ValueError("something is not there")
        except (ValueError, TypeError, AttributeError) as error:
            raise Unreadable(f"{path} line {number} cannot be read, what is after it was not checked: {error}") from error
        yield content


def _check_entry(verdict: Verdict, content: dict[str, Any], newest: Checkpoint) -> None:
    leaf, personal = base64.b64decode(content["leaf"]), base64.b64decode(content["personal"])
    index, path = int(content["index"]), [bytes.fromhex(step) for step in content["path"]]
    verdict.checked, verdict.readable = verdict.checked + 1, verdict.readable + 1
    try:
        check_inclusion(leaf_hash(leaf), index, newest.size, path, newest.root)
        said = AuditLeaf.FromString(leaf[1:])
        if personal and hashlib.sha256(personal).digest() != said.personal_hash:
            verdict.findings.append(f"leaf {index}: what it says of people is not what was recorded")
    except (ProofError, DecodeError) as error:
        verdict.findings.append(f"leaf {index}: {error}")


# --- export -----------------------------------------------------------------------------------------------------------


async def export_log(desk: Desk, out: Path, advance: Advance) -> int:
    """Write all leaves; what the caller may not read as hashes. Returns how many."""
    log = await desk.call(desk.audit.GetLog, pb.GetLogRequest())
    if not log.checkpoint:
        raise Unreadable("the log is empty")
    size, done = open_checkpoint(log.checkpoint, Verifier.parse(log.key))[0].size, 0
    with out.open("x") as file:
        print(Header.of(log, "log").line(), file=file)
        async for leaf in leaves(desk, size):
            print(json.dumps({"hash": leaf.hash.hex(), "leaf": base64.b64encode(leaf.leaf).decode()}), file=file)
            done += 1
            if done % _PAGE == 0:
                advance(done, size)
    return done


async def export_emergency(desk: Desk, emergency_id: str, out: Path, advance: Advance) -> int:
    """Write the entries of an emergency with their proofs, and a timeline to read beside them (.html). Returns how many."""
    found: list[pb.Entry] = []
    request = pb.SearchEntriesRequest(page_size=_PAGE, emergency_id=emergency_id)
    while True:
        page = await desk.call(desk.audit.SearchEntries, request)
        found += page.entries
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    if not found:
        raise Unreadable(f"the log has nothing of an emergency {emergency_id}, or not for you")
    log = await desk.call(desk.audit.GetLog, pb.GetLogRequest())
    key = Verifier.parse(log.key)
    # What witnesses have seen is worth more, if it reaches so far.
    cosigned = open_checkpoint(log.cosigned, key)[0].size if log.cosigned else 0
    note = log.cosigned if cosigned > max(entry.index for entry in found) else log.checkpoint
    size = open_checkpoint(note, key)[0].size
    header = Header.of(log, f"emergency {emergency_id}", note)
    found.sort(key=lambda entry: entry.index)
    with out.open("x") as file:
        print(header.line(), file=file)
        for n, entry in enumerate(found, 1):
            proved = await desk.call(desk.audit.GetEntry, pb.GetEntryRequest(index=entry.index, size=size))
            content = {
                "index": entry.index, "leaf": base64.b64encode(proved.entry.leaf).decode(),
                "personal": base64.b64encode(proved.entry.personal).decode(), "path": [step.hex() for step in proved.path],
            }  # fmt: skip
            print(json.dumps(content), file=file)
            advance(n, len(found))
    out.with_suffix(".html").write_text(timeline(header, found))
    return len(found)


def timeline(header: Header, entries: Sequence[pb.Entry]) -> str:
    """A page that a person reads: what happened, in order, who did it, and what it can be checked against."""
    rows = []
    for entry in sorted(entries, key=lambda each: each.content.at.ToNanoseconds()):  # the log's order is that of arrival
        personal, leaf = AuditPersonal.FromString(entry.personal), entry.content
        details = {fact.key: fact.value for fact in (*leaf.facts, *personal.details) if fact.value}
        at = leaf.at.ToDatetime(UTC)
        who = f"{personal.actor.id} ({personal.actor.agency_id})" if entry.personal else "forgotten"
        words = leaf.action.replace(".", " ").replace("_", " ")
        rows.append((entry.index, f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03}", words, who, personal.target, details))
    return str(_TIMELINE.render(header=header, rows=rows, fingerprint=fingerprint))
