"""The `sightline` command."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from chassis import telemetry
from chassis.settings import DatabaseSettings, KafkaSettings, RpcSettings, ServiceSettings, TelemetrySettings, load
from psycopg.conninfo import make_conninfo
from pydantic_settings import BaseSettings
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Column, Table

from tools.doctor import Patient
from tools.importer import COLUMNS
from tools.local import stack as local
from tools.local.process import StartError
from tools.local.stack import Stack, StackError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sightline: from the emergency button to live, accountable sight of the officer.",
)
stack_app = typer.Typer(no_args_is_help=True, help="The whole system on this machine.")
roster_app = typer.Typer(no_args_is_help=True, help="Officers, radios and cameras from files.")
evidence_app = typer.Typer(no_args_is_help=True, help="Recordings and the proof of what they are.")
audit_app = typer.Typer(no_args_is_help=True, help="The audit log, and the proof that nobody has changed it.")
topics_app = typer.Typer(no_args_is_help=True, help="Kafka topics, from the table in contracts/topics.py.")
app.add_typer(stack_app, name="stack")
app.add_typer(topics_app, name="topics")
app.add_typer(roster_app, name="roster")
app.add_typer(evidence_app, name="evidence")
app.add_typer(audit_app, name="audit")

out, err = Console(), Console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Data = Annotated[Path, typer.Option("--data", envvar="SIGHTLINE_DATA", help="Folder of the stack's data.")]


@app.callback()
def options(plain: Annotated[bool, typer.Option("--plain", help="No moving pictures: for logs.")] = False) -> None:
    """Options of every command."""
    if plain:
        global out, err
        out, err = Console(force_terminal=False, width=140), Console(stderr=True, force_terminal=False, width=140)


def _say(text: str) -> None:
    err.print(f"[dim]{text}[/dim]")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def _stack(data: Path) -> Stack:
    stack = Stack.load(data)
    if stack is None or not stack.running:
        raise StackError("the stack is not up: run `sightline stack up`")
    return stack


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
    with err.status("starting") as status:
        stack = local.up(data, status.update, lanes=tuple(lanes.split(",")), replicas=tuple(replicas.split(",")), services=services)
    _show(stack, as_json)


@stack_app.command("down")
def stack_down(
    data: Data = local.DEFAULT_DATA,
    purge: Annotated[bool, typer.Option(help="Remove the data too.")] = False,
    as_json: Json = False,
) -> None:
    """Stop the stack."""
    with err.status("stopping") as status:
        stopped = local.down(data, status.update, purge=purge)
    _say("stopped" if stopped else "nothing was running")
    if as_json:
        _print_json({"stopped": stopped, "purged": purge})


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
        _print_json({"backing": stack.backing, "parts": parts, "addresses": addresses})
        return
    table = Table("part", "runs", "pid", "address", "log")
    addresses = {"kafka": stack.kafka, "postgres": stack.database.rpartition("@")[2], "issuer": stack.issuer, "collector": stack.traces}
    addresses |= stack.listens
    for p in stack.processes:
        table.add_row(p.name, "[green]yes[/green]" if p.alive() else "[red]no[/red]", str(p.pid), addresses.get(p.name, ""), p.log)
    out.print(table)


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
    _print_json(created) if as_json else out.print("\n".join(created) or "nothing was missing")


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

    patient = _production_patient() if production else _laptop_patient(_stack(data))
    findings = []
    table = Table("", "what", Column("found", overflow="fold"), Column("what to do", overflow="fold"))
    colours = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "red"}
    with err.status("looking") as status:
        for finding in examine(patient):
            status.update(f"looking: {finding.what}")
            findings.append(finding)
            table.add_row(f"[{colours[finding.level]}]{finding.level}[/]", finding.what, finding.found, finding.fix)
    _print_json([asdict(finding) for finding in findings]) if as_json else out.print(table)
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
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help=f"CSV in UTF-8 with the columns {', '.join(COLUMNS)}.")],
    agency: Annotated[str, typer.Option(help="The agency whose roster it is.")] = "demo-pd",
    data: Data = local.DEFAULT_DATA,
    check: Annotated[bool, typer.Option("--check", help="Read and check the file only; nothing is sent.")] = False,
    as_json: Json = False,
) -> None:
    """Register officers, radios and cameras from a CSV file. A row that is wrong is reported; the others are taken.

    A radio is WACN-system-unit in hexadecimal (bee00-1a4-002328); cameras are separated by semicolons. Importing the same
    file again is harmless.
    """
    from tools.importer import Imported, RosterError, import_roster, read_roster, write_report

    async def send() -> Imported:
        from tools.desk import Desk

        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=err, transient=True) as bar:
            task = bar.add_task(f"roster of {agency}", total=None)
            async with Desk(_stack(data), "platform-admin") as desk:
                return await import_roster(desk, agency, file, lambda done, total: bar.update(task, completed=done, total=total))

    try:
        if check:
            entries, problems = read_roster(file, agency)
            found = Imported(len(entries) + len(problems), 0, problems)
        else:
            found = asyncio.run(send())
    except RosterError as error:
        raise StackError(str(error)) from error
    if as_json:
        _print_json(asdict(found))
    else:
        taken = found.rows - len({problem.line for problem in found.problems})
        out.print(
            f"{taken} of {found.rows} rows {'can be taken' if check else f'taken; {found.created} officers, radios and cameras are new'}"
        )
    for problem in found.problems[:20]:
        err.print(f"line {problem.line}: {problem.text}", style="red", highlight=False, markup=False, soft_wrap=True)
    if found.problems:
        err.print(f"{len(found.problems)} problems, all in {write_report(file, found.problems)}")
        raise typer.Exit(1)


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
        with Progress(console=err, transient=True) as bar:
            checked = check(what, data, anchors, bar)
    except Unreadable as error:
        err.print(f"[red]{error}[/red]", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    if as_json:
        _print_json([each.summary() for each in checked])
    else:
        table = Table(Column("segment", overflow="fold"), "good pieces", "bytes", Column("received", min_width=19), "ended", "result")
        for each in checked:
            table.add_row(*each.cells())
        out.print(table)
    bad = [each for each in checked if each.verdict.finding]
    for each in bad:
        err.print(f"[red]{each.index}: {each.result}[/red]", highlight=False, soft_wrap=True)
    if bad:
        raise typer.Exit(1)


@evidence_app.command("anchors")
def evidence_anchors(
    recording: Annotated[str, typer.Argument(help="The id of a session; none: all that the topic still has.")] = "",
    data: Data = local.DEFAULT_DATA,
) -> None:
    """Write the chain values that were published, as JSON lines: keep them elsewhere, and `verify --anchors` proves what was received."""
    from tools.evidence import Unreadable, published

    kafka = KafkaSettings(bootstrap=_stack(data).kafka, security="PLAINTEXT")
    count = 0
    try:
        with Progress(console=err, transient=True) as bar:
            for head in published(kafka, recording, bar):
                print(json.dumps(head))
                count += 1
    except Unreadable as error:
        err.print(f"[red]{error}[/red]", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    err.print(f"{count} chain values")


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
        _print_json(MessageToDict(found, preserving_proto_field_name=True))
        return
    for line in in_words(found):
        out.print(line, highlight=False)
    table = Table("segment", "at", "pieces", "bytes", "pictures (UTC)", "chain", "deleted")
    for segment in found.segments:
        table.add_row(*segment_cells(segment))
    out.print(table)


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
    out.print(f"held: {_ask_as(user, data, 'PlaceHold', request).hold.hold_id}")


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
    out.print("another hold keeps it" if found.recording.held else f"kept until {found.recording.retain_until.ToJsonString()}")


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
            else _at_desk(user, data, lambda desk: check_running(desk, key, kept, advance))
        )

    verdict = _with_bar("leaves", check)
    if as_json:
        _print_json(asdict(verdict) | {"good": verdict.good})
    else:
        table = Table("", "", Column("found", overflow="fold"), title=f"{verdict.what}, {verdict.size:,} leaves")
        for what, holds, words in verdict.lines():
            table.add_row(what, {"yes": "[green]yes[/]", "no": "[red]NO[/]", "look": "[yellow]look[/]"}[holds], words)
        out.print(table)
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
    from tools.audit import Unreadable, export_emergency, export_log

    if file.exists():
        raise StackError(f"{file} exists; name another file")

    def write(advance: Any) -> int:
        def export(desk: Any) -> Any:
            return export_emergency(desk, emergency, file, advance) if emergency else export_log(desk, file, advance)

        try:
            return int(_at_desk(user, data, export))
        except (typer.Exit, Unreadable, KeyboardInterrupt):
            file.unlink(missing_ok=True)  # half a bundle is none
            raise

    count = _with_bar("leaves", write)
    out.print(f"{count:,} entries in {file}" + (f", to read in {file.with_suffix('.html')}" if emergency else ""), highlight=False)


def _with_bar(what: str, work: Any) -> Any:
    """Work with a progress bar; what cannot be read is one line."""
    from tools.audit import Unreadable

    try:
        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=err, transient=True) as bar:
            task = bar.add_task(what, total=None)
            return work(lambda done, total: bar.update(task, completed=done, total=total))
    except Unreadable as error:
        err.print(f"[red]{error}[/red]", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


def _ask_as(user: str, data: Path, method: str, request: Any) -> Any:
    """What the evidence service answers one of the laptop's users; a refusal is one line."""
    return _at_desk(user, data, lambda desk: desk.call(getattr(desk.evidence, method), request))


def _at_desk(user: str, data: Path, work: Any) -> Any:
    """What comes of some work at the desk of one of the laptop's users; a refusal is one line."""
    import grpc

    from tools.desk import Desk

    async def ask() -> Any:
        async with Desk(_stack(data), user) as desk:
            return await work(desk)

    try:
        return asyncio.run(ask())
    except grpc.aio.AioRpcError as error:
        err.print(f"[red]{error.details()}[/red]", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


@app.command()
def token(user: str, data: Data = local.DEFAULT_DATA, as_json: Json = False) -> None:
    """Print an access token of one of the laptop's users."""
    from tools.desk import fetch_token

    text = fetch_token(_stack(data), user)
    _print_json({"access_token": text}) if as_json else print(text)


@app.command()
def credentials(kind: str, name: str, agency: str = "demo-pd", data: Data = local.DEFAULT_DATA, as_json: Json = False) -> None:
    """Issue a certificate of the laptop CA, and print where everything is, as shell variables.

    KIND is what the certificate is for: gateway, cad, camera, cli.
    """
    stack = _stack(data)
    certificate, key = stack.ca.issue(agency, kind, name)
    found = {"CA": stack.ca.certificate, "CERT": certificate, "KEY": key, "KAFKA": stack.kafka}
    # One replica's address, which every tool understands.
    found |= {name.upper(): stack.listens[f"{name}-{local.REPLICAS[0]}"] for name in stack.targets}
    _print_json(found) if as_json else print("\n".join(f"export {variable}={value}" for variable, value in found.items()))


@app.command()
def drill(data: Data = local.DEFAULT_DATA, as_json: Json = False) -> None:
    """Raise one alarm, marked as an exercise, and show the time of each hop."""
    from tools.drill import drill as run_drill

    stack = _stack(data)
    _simulate(stack)
    with err.status("drill"):
        result = asyncio.run(run_drill(stack))
    if as_json:
        _print_json(asdict(result))
        return
    table = Table("hop", "ms since the press", "ms since the last", title=f"emergency {result.emergency_id}: {result.outcome}")
    for hop in result.hops:
        table.add_row(hop.name, f"{hop.since_press_ms:8.1f}", f"{hop.since_last_ms:8.1f}")
    out.print(table)
    out.print(f"trace {result.trace_id}")


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
        with err.status("starting") as status:
            stack = local.up(data, status.update)
        _simulate(stack)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run_demo(stack, err if as_json else out, seconds, started or time.time(), lines.extend))
    finally:
        if not was_up:
            with err.status("stopping") as status:
                local.down(data, status.update)
    results = [{"scenario": line.scenario.name, "ok": not line.failed and line.outcome is not None, "error": line.error} for line in lines]
    if as_json:
        _print_json(results)
    bad = [line for line in lines if line.failed]
    for line in bad:
        err.print(f"[red]{line.scenario.name}: {line.error or (line.outcome and line.outcome.difference())}[/red]")
    done = sum(line.outcome is not None and line.outcome.ok for line in lines)
    err.print(f"{done} of {len(lines)} scenarios ended as expected")
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
        err.print(f"[red]{error}[/red]", highlight=False, soft_wrap=True)
        sys.exit(1)
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    main()
