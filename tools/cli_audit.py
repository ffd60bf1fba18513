"""`sightline audit`: the log, its proof, what was noticed in it, and what the public is told of it."""

from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from tools import terminal
from tools.local import stack as local
from tools.local.stack import StackError
from tools.terminal import Data, Json, Unreadable, at_desk, print_json, with_bar

audit_app = typer.Typer(no_args_is_help=True, help="The audit log, and the proof that nobody has changed it.")


@audit_app.command("verify")
def audit_verify(
    bundle: Annotated[Path | None, typer.Argument(help="What `sightline audit export` wrote; none: the log of the local stack.")] = None,
    key: Annotated[str, typer.Option(help="The log's public key, as it was told you by another way.")] = "",
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint that was kept earlier; may be given again.", exists=True, dir_okay=False)
    ] = None,
    user: Annotated[str, typer.Option(help="One of the laptop's users.")] = "auditor",
    data: Data = local.DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Recompute the audit log from its leaves; exit 1 and name the leaf if anything is not what was signed.

    A bundle is checked offline. Of other agencies' entries there are only hashes, which the tree is recomputed from as well.
    """
    from tools.audit import Verdict, check_bundle, check_running

    kept = [file.read_text() for file in checkpoint or ()]

    def check(advance: Any) -> Verdict:
        return (
            check_bundle(bundle, key, kept, advance)
            if bundle
            else at_desk(user, data, lambda desk: check_running(desk, key, kept, advance))
        )

    verdict = with_bar("leaves", check)
    if as_json:
        print_json(asdict(verdict) | {"good": verdict.good})
    else:
        table = Table("", "", Column("found", overflow="fold"), title=f"{verdict.what}, {verdict.size:,} leaves")
        for what, holds, words in verdict.lines():
            table.add_row(what, {"yes": "[green]yes[/]", "no": "[red]NO[/]", "look": "[yellow]look[/]"}[holds], words)
        terminal.out.print(table)
    if not verdict.good:
        raise typer.Exit(1)


@audit_app.command("export")
def audit_export(
    file: Annotated[Path, typer.Argument(help="Where to write it; a file that is there is not overwritten.", dir_okay=False)],
    emergency: Annotated[
        str, typer.Option(help="Only the entries of this emergency, each with its proof, and a timeline to read (.html).")
    ] = "",
    user: Annotated[str, typer.Option(help="One of the laptop's users.")] = "auditor",
    data: Data = local.DEFAULT_DATA,
) -> None:
    """Write the log, or what it says of one emergency, as a bundle that anybody can check offline."""
    from tools.audit import export_emergency, export_log

    if file.exists():
        raise StackError(f"{file} exists; name another file")

    def write(advance: Any) -> int:
        def export(desk: Any) -> Any:
            return export_emergency(desk, emergency, file, advance) if emergency else export_log(desk, file, advance)

        try:
            return int(at_desk(user, data, export))
        except (typer.Exit, Unreadable, KeyboardInterrupt):
            file.unlink(missing_ok=True)  # half a bundle is none
            raise

    count = with_bar("leaves", write)
    terminal.out.print(f"{count:,} entries in {file}" + (f", to read in {file.with_suffix('.html')}" if emergency else ""), highlight=False)


class Outcome(StrEnum):
    """What an alert can have been."""

    JUSTIFIED = "justified"
    MISUSE = "misuse"
    DEFECT = "defect"


# --- oversight --------------------------------------------------------------------------------------------------------


@audit_app.command("alerts")
def audit_alerts(
    resolved_too: Annotated[bool, typer.Option("--all", help="Also those whose outcome is known.")] = False,
    user: Annotated[str, typer.Option(help="One of the laptop's users.")] = "auditor",
    data: Data = local.DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """List what was noticed of unauthorised use, of accounts that differ, and of the log itself, the newest first."""
    from google.protobuf.json_format import MessageToDict
    from sightline.audit.v1.alert_pb2 import AlertOutcome, AlertRule
    from sightline.audit.v1.oversight_service_pb2 import ListAlertsRequest

    request = ListAlertsRequest(page_size=200, resolved_too=resolved_too)
    found = at_desk(user, data, lambda desk: desk.call(desk.oversight.ListAlerts, request)).alerts
    if as_json:
        print_json([MessageToDict(alert, preserving_proto_field_name=True) for alert in found])
        return
    table = Table(Column("alert", no_wrap=True), "noticed", Column("explanation", overflow="fold"), "leaves", "reviewer", "due", "outcome")
    for alert in found:
        table.add_row(
            alert.alert_id, AlertRule.Name(alert.rule).removeprefix("ALERT_RULE_"), alert.explanation,
            ", ".join(map(str, alert.evidence)), alert.reviewer or "[red]nobody[/]", f"{alert.due_at.ToDatetime():%Y-%m-%d}",
            AlertOutcome.Name(alert.outcome).removeprefix("ALERT_OUTCOME_") if alert.outcome else "",
        )  # fmt: skip
    terminal.out.print(table if found else "nothing was noticed")


@audit_app.command("resolve")
def audit_resolve(
    alert: Annotated[str, typer.Argument(help="The id of the alert; `sightline audit alerts` names it.")],
    outcome: Annotated[Outcome, typer.Argument(help="What it was.")],
    note: Annotated[str, typer.Argument(help="How that was found out; it goes into the log.")],
    user: Annotated[str, typer.Option(help="One of the laptop's users.")] = "auditor",
    data: Data = local.DEFAULT_DATA,
) -> None:
    """Say what an alert was. Only reviewers do, and never the person whom it concerns."""
    from sightline.audit.v1.alert_pb2 import AlertOutcome
    from sightline.audit.v1.oversight_service_pb2 import ResolveAlertRequest

    request = ResolveAlertRequest(alert_id=alert, outcome=AlertOutcome.Value(f"ALERT_OUTCOME_{outcome.upper()}"), note=note)
    found = at_desk(user, data, lambda desk: desk.call(desk.oversight.ResolveAlert, request)).alert
    terminal.out.print(f"{found.resolved_by} has said what it was: {outcome}", highlight=False)


@audit_app.command("reviewers")
def audit_reviewers(
    people: Annotated[list[str] | None, typer.Argument(help="Who looks at alerts from now on; none: show who does.")] = None,
    user: Annotated[str, typer.Option(help="One of the laptop's users; an admin names reviewers.")] = "admin",
    data: Data = local.DEFAULT_DATA,
) -> None:
    """Show, or name, who looks at the agency's alerts."""
    from sightline.audit.v1.oversight_service_pb2 import GetReviewersRequest, SetReviewersRequest

    if people:
        at_desk(user, data, lambda desk: desk.call(desk.oversight.SetReviewers, SetReviewersRequest(reviewers=people)))
    found = at_desk(user, data, lambda desk: desk.call(desk.oversight.GetReviewers, GetReviewersRequest())).reviewers
    terminal.out.print(", ".join(found) or "nobody: alerts wait without a reviewer", highlight=False)


@audit_app.command("report")
def audit_report(
    folder: Annotated[Path, typer.Argument(help="Where to write it; a folder that is there is not written to.", file_okay=False)],
    period: Annotated[str, typer.Option(help="A half year like 2026H2; the last one that is over if not given.")] = "",
    user: Annotated[str, typer.Option(help="One of the laptop's users.")] = "auditor",
    data: Data = local.DEFAULT_DATA,
) -> None:
    """Write what the public is told of half a year: a page with charts, CSV, and the signed figures that anybody can count again."""
    from figures import half_year

    from tools.report import PAGE, ask, last_half_year, write

    if folder.exists():
        raise StackError(f"{folder} exists; name another folder")
    now = datetime.now(UTC)
    try:
        since, until = half_year(period := period or last_half_year(now))
    except ValueError as error:
        raise StackError(str(error)) from error
    if until > now:
        terminal.say(f"{period} is not over: this is for you, and not to be published")
    with terminal.err.status("counting"):
        figures = write(at_desk(user, data, lambda desk: ask(desk, period)), folder)
    counted = figures["tables"]["emergencies"]["all"]
    many = "too few to tell" if counted is None else f"{counted:,}"
    terminal.out.print(f"{many} emergencies from {since:%Y-%m-%d} to {until:%Y-%m-%d}, to read in {folder / PAGE}", highlight=False)


@audit_app.command("recount")
def audit_recount(
    folder: Annotated[Path, typer.Argument(help="What `sightline audit report` wrote.", exists=True, file_okay=False)],
    bundle: Annotated[Path, typer.Argument(help="The log, as `sightline audit export` wrote it.", exists=True, dir_okay=False)],
    key: Annotated[str, typer.Option(help="The log's public key, as it was told you by another way.")] = "",
) -> None:
    """Count a report again from the log, offline; exit 1 and name the figure if it comes out otherwise."""
    from figures import WrongFigures

    from tools.report import check

    try:
        fingerprint = with_bar("leaves", lambda advance: check(folder, bundle, key, advance))
    except WrongFigures as error:
        terminal.complain(error)
        raise typer.Exit(1) from error
    terminal.out.print(f"every figure is what the log says, and signed with {fingerprint}", highlight=False, soft_wrap=True)
