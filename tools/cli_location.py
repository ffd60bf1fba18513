"""`sightline location`: where everybody is, and was; and a force that moves, to see it with."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from sightline.location.v1 import location_service_pb2 as pb
from sightline.location.v1.position_pb2 import UnitKind

from tools import terminal
from tools.local import stack as local
from tools.terminal import Data, Json, at_desk, complain, print_json, running_stack, say

location_app = typer.Typer(no_args_is_help=True, help="Where everybody is, and was.")


class Kind(StrEnum):
    """What has a track."""

    OFFICER = "officer"
    VEHICLE = "vehicle"
    RADIO = "radio"


class Format(StrEnum):
    """How a track is written."""

    GPX = "gpx"
    GEOJSON = "geojson"


def _moment(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no time: write it like 2026-11-26T09:30") from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


@location_app.command("track")
def track(
    unit: Annotated[str, typer.Argument(help="The officer, vehicle or radio.")],
    file: Annotated[Path, typer.Argument(help="Where to write it; a file that is there is not overwritten.", dir_okay=False)],
    reason: Annotated[str, typer.Option(help="Why it is read; stands in the audit record.")],
    kind: Annotated[Kind, typer.Option(help="What the unit is.")] = Kind.OFFICER,
    since: Annotated[str, typer.Option(help="From when on; UTC, unless it says otherwise. The last hour if not given.")] = "",
    until: Annotated[str, typer.Option(help="Until when; now if not given.")] = "",
    form: Annotated[Format | None, typer.Option("--format", help="By the file's name, if not given.")] = None,
    user: Annotated[str, typer.Option(help="One of the laptop's users.")] = "supervisor",
    data: Data = local.DEFAULT_DATA,
) -> None:
    """Write a unit's track as GPX or GeoJSON."""
    from tools.tracks import read_track, to_geojson, to_gpx

    if form is None and file.suffix[1:] not in list(Format):
        raise typer.BadParameter(f"name the file .gpx or .geojson, or give --format: {file}")
    if file.exists():
        complain(f"{file} is there already: give another name")
        raise typer.Exit(2)
    stop = _moment(until) if until else datetime.now(UTC)
    span = (_moment(since) if since else stop - timedelta(hours=1), stop)
    number = UnitKind.Value(f"UNIT_KIND_{kind.name}")
    points = at_desk(user, data, lambda desk: read_track(desk, number, unit, span, reason))
    write = {Format.GPX: to_gpx, Format.GEOJSON: to_geojson}[form or Format(file.suffix[1:])]
    file.write_text(write(unit, points))
    say(f"{len(points):,} points of {unit} in {file}")


@location_app.command("map")
def draw_map(
    file: Annotated[Path, typer.Argument(help="Where to write the page; it is overwritten.", dir_okay=False)],
    user: Annotated[str, typer.Option(help="One of the laptop's users.")] = "supervisor",
    data: Data = local.DEFAULT_DATA,
) -> None:
    """Draw where everybody is now, as one page for a browser."""
    from tools.mapview import draw, units_of

    units = at_desk(user, data, units_of)
    file.write_text(draw(units))
    say(f"{len(units):,} units in {file}")


@location_app.command("privacy")
def privacy(
    idle_resolution: Annotated[int | None, typer.Option(help="H3 resolution of places outside emergencies: 9 is 200 m, 15 exact.")] = None,
    keep_days: Annotated[int | None, typer.Option(help="Days that tracks of emergencies are kept.")] = None,
    keep_idle_days: Annotated[int | None, typer.Option(help="Days that other tracks are kept.")] = None,
    user: Annotated[str, typer.Option(help="One of the laptop's users; only an admin may change anything.")] = "admin",
    data: Data = local.DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Show, or change, how positions are kept and shown."""
    changes = {"idle_resolution": idle_resolution, "keep_days": keep_days, "keep_idle_days": keep_idle_days}
    given = {name: value for name, value in changes.items() if value is not None}

    async def ask(desk: Any) -> pb.Privacy:
        found: pb.Privacy = (await desk.call(desk.location.GetPrivacy, pb.GetPrivacyRequest())).privacy
        if given:
            for name, value in given.items():
                setattr(found, name, value)
            found = (await desk.call(desk.location.SetPrivacy, pb.SetPrivacyRequest(privacy=found))).privacy
        return found

    found = at_desk(user, data, ask)
    values = {name: getattr(found, name) for name in changes}
    if as_json:
        print_json(values)
        return
    table = Table("positions", "")
    for name, value in values.items():
        table.add_row(name.replace("_", " "), str(value))
    terminal.out.print(table)


@location_app.command("traffic")
def drive_traffic(
    officers: Annotated[int, typer.Option(help="Officers on duty; every two have a car.", min=1, max=2000)] = 20,
    every: Annotated[float, typer.Option(help="Seconds between two fixes of each.", min=0.2)] = 1.0,
    shift: Annotated[float, typer.Option(help="Seconds after which one goes home and another comes.", min=1)] = 20.0,
    seconds: Annotated[float | None, typer.Option(help="How long; until Ctrl-C if not given.", min=1)] = None,
    data: Data = local.DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Let a force move through the streets of a made-up city, with dead zones, shifts that end, and late fixes."""
    from tools.traffic import Told, traffic

    told, stack = Told(), running_stack(data)

    def now() -> Table:
        table = Table("fixes", "", min_width=40)
        for name, count in {"taken": told.taken, **told.refused}.items():
            table.add_row(name, f"{count:,}")
        return table

    async def run(live: Live) -> None:
        moving = asyncio.create_task(traffic(stack, officers, every, shift, told, say))
        deadline = asyncio.get_running_loop().time() + seconds if seconds else float("inf")
        try:
            while not moving.done() and asyncio.get_running_loop().time() < deadline:
                live.update(now())
                await asyncio.wait({moving}, timeout=0.5)
        finally:
            moving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await moving

    with Live(console=terminal.err, transient=True) as live, contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(live))
    if as_json:
        print_json({"taken": told.taken, "refused": told.refused})
    else:
        terminal.out.print(now())
