"""The transparency report: signed figures from the log, as a page with charts and as CSV; and the check that anybody can make of it."""

import base64
import csv
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pygal
from figures import WrongFigures, recount, statement
from mako.template import Template
from pygal.style import Style
from sightline.audit.v1 import oversight_service_pb2 as pb
from tlog.note import NoteError, SignedNote, Verifier, open_checkpoint

from tools.audit import Header, check_bundle, fingerprint
from tools.desk import Desk
from tools.terminal import Advance, Unreadable

FIGURES, STATEMENT, CHECKPOINT, PAGE, TABLE = "figures.json", "statement.txt", "checkpoint.txt", "report.html", "report.csv"
_COUNT_S = 600.0
_PAGE = Template(filename=str(Path(__file__).with_name("report.mako")), default_filters=["str", "h"])  # noqa: S702 - it escapes
_STYLE = Style(background="transparent", plot_background="transparent", colors=("#2f5d8a",), font_family="system-ui, sans-serif")


def last_half_year(now: datetime) -> str:
    """The last one that is over."""
    return f"{now.year}H1" if now.month > 6 else f"{now.year - 1}H2"


async def ask(desk: Desk, period: str) -> pb.GetReportResponse:
    """Have it counted and signed."""
    report: pb.GetReportResponse = await desk.call(desk.oversight.GetReport, pb.GetReportRequest(period=period), _COUNT_S)
    return report


def write(report: pb.GetReportResponse, folder: Path) -> Mapping[str, Any]:
    """Write it into a new folder; returns the figures."""
    figures: dict[str, Any] = json.loads(report.figures)
    shown_page = page(figures, report.statement, report.key)
    folder.mkdir(parents=True)
    (folder / FIGURES).write_bytes(report.figures)
    (folder / STATEMENT).write_text(report.statement)
    (folder / CHECKPOINT).write_text(report.checkpoint)
    (folder / PAGE).write_text(shown_page)
    with (folder / TABLE).open("w", newline="") as file:
        csv.writer(file).writerows([("table", "row", "value"), *rows(figures)])
    return figures


def shown(count: float | None) -> str:
    """A count as it is printed."""
    return "–" if count is None else f"{count:,}"


def rows(figures: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """All figures as (table, row, value); what is not told is an empty value."""
    for table in ("tables", "times"):
        for name, content in figures[table].items():
            yield from ((name, row, "" if value is None else str(value)) for row, value in content.items())
    yield from (("emergencies by month", month, "" if count is None else str(count)) for month, count in figures["months"].items())


def page(figures: Mapping[str, Any], signed: str, key: str) -> str:
    """A page for the public, whole in itself."""
    charts = {name: _chart(name, content) for name, content in figures["tables"].items() if _told(content) > 1}
    months = _chart("emergencies by month", figures["months"], upright=True) if _told(figures["months"]) > 1 else ""
    return str(_PAGE.render(figures=figures, charts=charts, months=months, signed=signed, key=key, fingerprint=fingerprint, shown=shown))


def _told(content: Mapping[str, int | None]) -> int:
    return sum(count is not None for count in content.values())


def _chart(name: str, content: Mapping[str, int | None], *, upright: bool = False) -> str:
    """Bars; what is too small to be told has none."""
    kind = pygal.Bar if upright else pygal.HorizontalBar
    chart = kind(
        show_legend=False, js=[], disable_xml_declaration=True, style=_STYLE, width=760, height=240 if upright else 60 + 34 * len(content),
        print_values=True, print_values_position="top" if upright else "center", truncate_label=-1, explicit_size=True, margin=6,
        formatter=lambda value: f"{value:,}", title=None,
    )  # fmt: skip
    items = list(content.items()) if upright else list(content.items())[::-1]
    chart.x_labels = [row.replace("_", " ").lower() if row.isupper() else row for row, _ in items]
    chart.add(name, [count for _, count in items])
    return str(chart.render())


def check(folder: Path, bundle: Path, key: str, advance: Advance) -> str:
    """Count a report again from the bundle of the whole log, offline; returns the fingerprint of the key that signed both.

    WrongFigures if anything is not as it says, Unreadable if there is nothing to check.
    """
    try:
        figures, note, kept = (folder / FIGURES).read_bytes(), (folder / STATEMENT).read_text(), (folder / CHECKPOINT).read_text()
        with bundle.open() as file:
            header = Header.parse(file.readline())
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"there is no report, or no bundle: {error}") from error
    if header.what != "log":
        raise Unreadable(f"{bundle} has one emergency; the figures are counted from the whole log: `sightline audit export`")
    try:
        signer = Verifier.parse(key or header.key)
        point, _ = open_checkpoint(kept, signer)
        signed = SignedNote.parse(note)
        signer.check(signed)
        wanted = statement(figures, signer.name, point.size, point.root)
    except (NoteError, ValueError, KeyError) as error:
        raise WrongFigures(f"it is not signed as this log signs: {error}") from error
    if signed.text != wanted:
        raise WrongFigures("what was signed are other figures, or another checkpoint")
    verdict = check_bundle(bundle, key, [kept], advance)
    if verdict.findings:
        raise WrongFigures(f"the log itself is not what was signed: {verdict.findings[0]}")
    if verdict.size < point.size:
        raise Unreadable(f"the bundle has {verdict.size:,} leaves, and the report was counted from {point.size:,}: export the log anew")
    recount(_leaves(bundle, point.size), figures)
    return fingerprint(str(signer))


def _leaves(bundle: Path, size: int) -> Iterator[bytes]:
    with bundle.open() as file:
        file.readline()
        for _, line in zip(range(size), file, strict=False):
            if leaf := base64.b64decode(json.loads(line)["leaf"]):
                yield leaf
