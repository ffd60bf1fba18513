"""The `sightline` command."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from chassis import telemetry
from chassis.settings import DatabaseSettings, KafkaSettings, RpcSettings, ServiceSettings, TelemetrySettings, load
from psycopg.conninfo import make_conninfo
from pydantic_settings import BaseSettings
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Column, Table

from tools import terminal
from tools.cli_audit import audit_app
from tools.cli_location import location_app
from tools.doctor import Patient
from tools.importer import COLUMNS, Difference
from tools.local import stack as local
from tools.local.process import StartError
from tools.local.stack import Stack, StackError
from tools.terminal import Data, Json, at_desk, complain, print_json, running_stack, say

_SHOWN = 20  # lines of each kind

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sightline: from the emergency button to live, accountable sight of the officer.",
)
stack_app = typer.Typer(no_args_is_help=True, help="The whole system on this machine.")
roster_app = typer.Typer(no_args_is_help=True, help="Officers, radios and cameras from files.")
evidence_app = typer.Typer(no_args_is_help=True, help="Recordings and the proof of what they are.")
topics_app = typer.Typer(no_args_is_help=True, help="Kafka topics, from the table in contracts/topics.py.")
app.add_typer(stack_app, name="stack")
app.add_typer(topics_app, name="topics")
app.add_typer(roster_app, name="roster")
app.add_typer(evidence_app, name="evidence")
app.add_typer(audit_app, name="audit")
app.add_typer(location_app, name="location")


@app.callback()
def options(plain: Annotated[bool, typer.Option("--plain", help="No moving pictures: for logs.")] = False) -> None:
    """Options of every command."""
    if plain:
        terminal.be_plain()


def _simulate(stack: Stack) -> None:
    os.environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", "100")  # ms; a person waits for the trace
    telemetry.setup("simulator", "0", TelemetrySettings(otlp_endpoint=stack.otlp, log_level="error"))


@stack_app.command("up")
def stack_up(
    data: Data = local.DEFAULT_DATA,
    lanes: Annotated[str, typer.Option(help="Joiner lanes, comma-separated.")] = ",".join(local.LANES),
    replicas: Annotated[str, typer.Option(help="Replicas of each other service, comma-separated.")] = ",".join(local.REPLICAS),
    services: Annotated[bool, typer.Option("--services/--without-services", help="Start the services too.")] = True,
    as_json: Json = False,
) -> None:
    """Bring the stack up; does nothing if it is up."""
    with terminal.err.status("starting") as status:
        stack = local.up(data, status.update, lanes=tuple(lanes.split(",")), replicas=tuple(replicas.split(",")), services=services)
    _show(stack, as_json)


@stack_app.command("down")
def stack_down(
    data: Data = local.DEFAULT_DATA,
    purge: Annotated[bool, typer.Option(help="Remove the data too.")] = False,
    as_json: Json = False,
) -> None:
    """Stop the stack."""
    with terminal.err.status("stopping") as status:
        stopped = local.down(data, status.update, purge=purge)
    say("stopped" if stopped else "nothing was running")
    if as_json:
        print_json({"stopped": stopped, "purged": purge})


@stack_app.command("status")
def stack_status(data: Data = local.DEFAULT_DATA, as_json: Json = False) -> None:
    """Show the stack's parts; exit 1 unless all of them run."""
    stack = Stack.load(data)
    if stack is None:
        raise StackError("there is no stack here: run `sightline stack up`")
    _show(stack, as_json)
    if not stack.running:
        raise typer.Exit(1)


def _show(stack: Stack, as_json: bool) -> None:
    if as_json:
        parts = {p.name: {"pid": p.pid, "running": p.alive(), "log": p.log} for p in stack.processes}
        addresses = {"kafka": stack.kafka, "issuer": stack.issuer, "traces": stack.traces, **stack.targets, **stack.listens}
        print_json({"backing": stack.backing, "parts": parts, "addresses": addresses})
        return
    table = Table("part", "runs", "pid", "address", "log")
    addresses = {"kafka": stack.kafka, "postgres": stack.database.rpartition("@")[2], "issuer": stack.issuer, "collector": stack.traces}
    addresses |= stack.listens
    for p in stack.processes:
        table.add_row(p.name, "[green]yes[/green]" if p.alive() else "[red]no[/red]", str(p.pid), addresses.get(p.name, ""), p.log)
    terminal.out.print(table)


@topics_app.command("create")
def topics_create(
    bootstrap: Annotated[str, typer.Option(envvar="SIGHTLINE_KAFKA_BOOTSTRAP", help="host:port of a broker.")],
    replication: Annotated[int, typer.Option(help="Replication factor.", min=1)] = 3,
    security: Annotated[str, typer.Option(envvar="SIGHTLINE_KAFKA_SECURITY")] = "PLAINTEXT",
    as_json: Json = False,
) -> None:
    """Create the topics that are missing."""
    from tools.topics import create_topics

    created = create_topics(KafkaSettings.model_validate({"bootstrap": bootstrap, "security": security}), replication)
    print_json(created) if as_json else terminal.out.print("\n".join(created) or "nothing was missing")


@app.command()
def doctor(
    data: Data = local.DEFAULT_DATA,
    production: Annotated[
        bool, typer.Option("--production", help="Look at what SIGHTLINE_KAFKA_*, SIGHTLINE_DATABASE_* and SIGHTLINE_RPC_* name instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check everything around the services: a line each, with the fix; exit 1 if anything has failed."""
    from tools.doctor import Level, examine

    patient = _production_patient() if production else _laptop_patient(running_stack(data))
    findings = []
    table = Table("", "what", Column("found", overflow="fold"), Column("what to do", overflow="fold"))
    colours = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "red"}
    with terminal.err.status("looking") as status:
        for finding in examine(patient):
            status.update(f"looking: {finding.what}")
            findings.append(finding)
            table.add_row(f"[{colours[finding.level]}]{finding.level}[/]", *map(escape, (finding.what, finding.found, finding.fix)))
    print_json([asdict(finding) for finding in findings]) if as_json else terminal.out.print(table)
    if any(finding.level == Level.FAILURE for finding in findings):
        raise typer.Exit(1)


def _laptop_patient(stack: Stack) -> Patient:
    certificates = (stack.ca.certificate, *sorted((stack.data / "certs").rglob("service/*.pem")))
    return Patient(KafkaSettings(bootstrap=stack.kafka, security="PLAINTEXT"), stack.database, certificates, stack, laptop=True)


def _production_patient() -> Patient:
    class Around(BaseSettings):
        model_config = ServiceSettings.model_config
        kafka: KafkaSettings
        database: DatabaseSettings
        rpc: RpcSettings | None = None

    settings = load(Around)
    certificates = (settings.rpc.cert_file, settings.rpc.ca_file) if settings.rpc else ()
    return Patient(settings.kafka, make_conninfo(**settings.database.conninfo()), certificates)


@roster_app.command("import")
def roster_import(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help=f"CSV with the columns {', '.join(COLUMNS)}.")],
    agency: Annotated[str, typer.Option(help="The agency whose roster it is.")] = "demo-pd",
    data: Data = local.DEFAULT_DATA,
    check: Annotated[bool, typer.Option("--check", help="Read and check the file only; nothing is sent.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be added and changed, and whom the file lacks.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Change names, aliases and models of what is there to the file's.")] = False,
    as_json: Json = False,
) -> None:
    """Register officers, radios and cameras from a CSV file. A row that is wrong is reported; the others are taken.

    The file may be in UTF-8, UTF-16 or Windows-1252, with commas, semicolons or tabs. A radio is WACN-system-unit in hexadecimal, in
    full (bee00-1a4-002328), or in decimal in a column radio_decimal (781824-420-9000); cameras are separated by semicolons.
    Importing the same file again is harmless. Nobody is removed by an import.
    """
    from tools.importer import Imported, RosterError, import_roster, open_roster, read_roster, write_report

    async def send() -> Imported:
        from tools.desk import Desk

        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=terminal.err, transient=True) as bar:
            task = bar.add_task(f"roster of {agency}", total=None)
            async with Desk(running_stack(data), "platform-admin") as desk:
                advance = lambda done, total: bar.update(task, completed=done, total=total)  # noqa: E731
                return await import_roster(desk, agency, file, advance, dry_run=dry_run, update=update)

    try:
        if check:
            source = open_roster(file)
            entries, problems = read_roster(file, agency, source)
            found = Imported(len(entries) + len(problems), 0, problems, source.recognised)
        else:
            found = asyncio.run(send())
    except RosterError as error:
        raise StackError(str(error)) from error
    if as_json:
        print_json(asdict(found))
    else:
        taken = found.rows - len({problem.line for problem in found.problems})
        terminal.out.print(f"read as {found.recognised}")
        new = f"{found.created} officers, radios and cameras are new"
        what = "can be taken" if check else f"would be taken; {new}" if dry_run else f"taken; {new}"
        terminal.out.print(f"{taken} of {found.rows} rows {what}")
        _show_differences(found.differences)
    for problem in found.problems[:20]:
        terminal.err.print(f"line {problem.line}: {problem.text}", style="red", highlight=False, markup=False, soft_wrap=True)
    if found.problems:
        terminal.err.print(f"{len(found.problems)} problems, all in {write_report(file, found.problems)}")
        raise typer.Exit(1)


def _show_differences(differences: Sequence[Difference]) -> None:
    """What a dry run found: the first of what is new, all of what changes, the first of whom the file lacks."""
    changed = [each for each in differences if each.before is not None and each.after is not None]
    missing = [each for each in differences if each.after is None]
    table = Table("", "line", Column("what", overflow="fold"), Column("before", overflow="fold"), Column("after", overflow="fold"))
    for mark, found in (("+", [each for each in differences if each.before is None]), ("~", changed), ("-", missing)):
        for each in found[:_SHOWN]:
            table.add_row(mark, str(each.line or ""), escape(each.what), escape(each.before or ""), escape(each.after or ""))
        if len(found) > _SHOWN:
            table.add_row(mark, "", f"… and {len(found) - _SHOWN} more; --json has all", "", "")
    if differences:
        terminal.out.print(table)
    if missing:
        terminal.out.print("- officers whom the file does not name: an import removes nobody")


@evidence_app.command("verify")
def evidence_verify(
    what: Annotated[str, typer.Argument(help="A segment (.mp4 or .jsonl), a folder of them, or the id of a session of the local stack.")],
    anchors: Annotated[
        Path | None,
        typer.Option(help="Chain values published at the time, as `sightline evidence anchors` writes them.", exists=True),
    ] = None,
    data: Data = local.DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Recompute the hash chain of a recording from its bytes, offline; exit 1 and name the first piece that is not what was kept."""
    from tools.evidence import Unreadable, check

    try:
        with Progress(console=terminal.err, transient=True) as bar:
            checked = check(what, data, anchors, bar)
    except Unreadable as error:
        complain(error)
        raise typer.Exit(2) from error
    if as_json:
        print_json([each.summary() for each in checked])
    else:
        table = Table(Column("segment", overflow="fold"), "good pieces", "bytes", Column("received", min_width=19), "ended", "result")
        for each in checked:
            table.add_row(*each.cells())
        terminal.out.print(table)
    bad = [each for each in checked if each.verdict.finding]
    for each in bad:
        terminal.err.print(f"[red]{each.index}: {each.result}[/red]", highlight=False, soft_wrap=True)
    if bad:
        raise typer.Exit(1)


@evidence_app.command("anchors")
def evidence_anchors(
    recording: Annotated[str, typer.Argument(help="The id of a session; none: all that the topic still has.")] = "",
    data: Data = local.DEFAULT_DATA,
) -> None:
    """Write the chain values that were published, as JSON lines: keep them elsewhere, and `verify --anchors` proves what was received."""
    from tools.evidence import Unreadable, published

    kafka = KafkaSettings(bootstrap=running_stack(data).kafka, security="PLAINTEXT")
    count = 0
    try:
        with Progress(console=terminal.err, transient=True) as bar:
            for head in published(kafka, recording, bar):
                print(json.dumps(head))
                count += 1
    except Unreadable as error:
        complain(error)
        raise typer.Exit(2) from error
    terminal.err.print(f"{count} chain values")


@evidence_app.command("show")
def evidence_show(
    recording: Annotated[str, typer.Argument(help="The id of a session.")],
    user: Annotated[str, typer.Option(help="One of the laptop's users.")] = "supervisor",
    data: Data = local.DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Show what is kept of a session, until when, who holds it, and what is missing."""
    from google.protobuf.json_format import MessageToDict
    from sightline.evidence.v1.evidence_service_pb2 import GetRecordingRequest

    from tools.evidence import in_words, segment_cells

    found = _ask_as(user, data, "GetRecording", GetRecordingRequest(recording_id=recording))
    if as_json:
        print_json(MessageToDict(found, preserving_proto_field_name=True))
        return
    for line in in_words(found):
        terminal.out.print(line, highlight=False)
    table = Table("segment", "at", "pieces", "bytes", "pictures (UTC)", "chain", "deleted")
    for segment in found.segments:
        table.add_row(*segment_cells(segment))
    terminal.out.print(table)


@evidence_app.command("hold")
def evidence_hold(
    recording: Annotated[str, typer.Argument(help="The id of a session.")],
    note: Annotated[str, typer.Argument(help="Why, in words.")],
    user: Annotated[str, typer.Option(help="One of the laptop's users.")] = "supervisor",
    data: Data = local.DEFAULT_DATA,
) -> None:
    """Keep a recording until the hold is released."""
    from sightline.evidence.v1.evidence_service_pb2 import PlaceHoldRequest
    from uuid_utils import uuid7

    request = PlaceHoldRequest(request_id=str(uuid7()), recording_id=recording, note=note)
    terminal.out.print(f"held: {_ask_as(user, data, 'PlaceHold', request).hold.hold_id}")


@evidence_app.command("release")
def evidence_release(
    hold: Annotated[str, typer.Argument(help="The id of the hold; `sightline evidence show` names it.")],
    note: Annotated[str, typer.Argument(help="Why, in words.")],
    user: Annotated[str, typer.Option(help="One of the laptop's users.")] = "supervisor",
    data: Data = local.DEFAULT_DATA,
) -> None:
    """End a hold; then the recording is deleted when its time is over."""
    from sightline.evidence.v1.evidence_service_pb2 import ReleaseHoldRequest

    found = _ask_as(user, data, "ReleaseHold", ReleaseHoldRequest(hold_id=hold, note=note))
    terminal.out.print("another hold keeps it" if found.recording.held else f"kept until {found.recording.retain_until.ToJsonString()}")


def _ask_as(user: str, data: Path, method: str, request: Any) -> Any:
    """What the evidence service answers one of the laptop's users; a refusal is one line."""
    return at_desk(user, data, lambda desk: desk.call(getattr(desk.evidence, method), request))


@app.command()
def token(user: str, data: Data = local.DEFAULT_DATA, as_json: Json = False) -> None:
    """Print an access token of one of the laptop's users."""
    from tools.desk import fetch_token

    text = fetch_token(running_stack(data), user)
    print_json({"access_token": text}) if as_json else print(text)


@app.command()
def credentials(kind: str, name: str, agency: str = "demo-pd", data: Data = local.DEFAULT_DATA, as_json: Json = False) -> None:
    """Issue a certificate of the laptop CA, and print where everything is, as shell variables.

    KIND is what the certificate is for: gateway, cad, camera, cli.
    """
    stack = running_stack(data)
    certificate, key = stack.ca.issue(agency, kind, name)
    found = {"CA": stack.ca.certificate, "CERT": certificate, "KEY": key, "KAFKA": stack.kafka}
    # One replica's address, which every tool understands.
    found |= {name.upper(): stack.listens[f"{name}-{local.REPLICAS[0]}"] for name in stack.targets}
    print_json(found) if as_json else print("\n".join(f"export {variable}={value}" for variable, value in found.items()))


@app.command()
def drill(data: Data = local.DEFAULT_DATA, as_json: Json = False) -> None:
    """Raise one alarm, marked as an exercise, and show the time of each hop."""
    from tools.drill import drill as run_drill

    stack = running_stack(data)
    _simulate(stack)
    with terminal.err.status("drill"):
        result = asyncio.run(run_drill(stack))
    if as_json:
        print_json(asdict(result))
        return
    table = Table("hop", "ms since the press", "ms since the last", title=f"emergency {result.emergency_id}: {result.outcome}")
    for hop in result.hops:
        table.add_row(hop.name, f"{hop.since_press_ms:8.1f}", f"{hop.since_last_ms:8.1f}")
    terminal.out.print(table)
    terminal.out.print(f"trace {result.trace_id}")


@app.command()
def demo(
    data: Data = local.DEFAULT_DATA,
    seconds: Annotated[float | None, typer.Option(envvar="DEMO_SECONDS", help="End by itself after this time.")] = None,
    started: Annotated[float | None, typer.Option(envvar="DEMO_STARTED", hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Show a shift, a press of every kind, and what comes of each; exit 1 if anything differs from what is expected."""
    from tools.demo import Line
    from tools.demo import demo as run_demo

    was_up = (there := Stack.load(data)) is not None and there.running
    lines: list[Line] = []
    try:
        with terminal.err.status("starting") as status:
            stack = local.up(data, status.update)
        _simulate(stack)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run_demo(stack, terminal.err if as_json else terminal.out, seconds, started or time.time(), lines.extend))
    finally:
        if not was_up:
            with terminal.err.status("stopping") as status:
                local.down(data, status.update)
    results = [{"scenario": line.scenario.name, "ok": not line.failed and line.outcome is not None, "error": line.error} for line in lines]
    if as_json:
        print_json(results)
    bad = [line for line in lines if line.failed]
    for line in bad:
        terminal.err.print(f"[red]{line.scenario.name}: {line.error or (line.outcome and line.outcome.difference())}[/red]")
    done = sum(line.outcome is not None and line.outcome.ok for line in lines)
    terminal.err.print(f"{done} of {len(lines)} scenarios ended as expected")
    if bad or done < len(lines):
        raise typer.Exit(1)


def _stop_like_ctrl_c(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run, and turn what a user can mend into one line."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop_like_ctrl_c)
    try:
        app(prog_name="sightline")
    except StartError as error:
        complain(error)
        sys.exit(1)
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    main()
