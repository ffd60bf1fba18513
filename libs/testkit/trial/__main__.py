"""`python -m testkit.trial`: presses on a stack of its own, with faults; exit 1 if a promise was broken."""

import asyncio
import random
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from chassis import telemetry
from chassis.settings import TelemetrySettings
from rich.console import Console

from testkit.trial.cluster import CLUSTER_FAULTS
from testkit.trial.faults import FAULTS
from testkit.trial.rig import Rig
from testkit.trial.trial import Report, trial
from tools.local import stack as local

out = Console(stderr=True)


def main(
    presses: Annotated[int, typer.Option(help="Presses to make.", min=10)] = 1000,
    rate: Annotated[float, typer.Option(help="Presses a second, open loop.")] = 15,
    faults: Annotated[int, typer.Option(help="Faults to inject, in a shuffled order, each kind as often as any other.", min=0)] = 20,
    only: Annotated[str, typer.Option(help="Only faults whose number or name holds this text; several with commas.")] = "",
    brokers: Annotated[int, typer.Option(help="One, or three with other faults.")] = 1,
    officers: Annotated[int, typer.Option(min=1, max=900)] = 80,
    seed: Annotated[int, typer.Option(help="Repeats a timeline; 0: a new one.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Where journals, logs and the report go.")] = None,
) -> None:
    """Press buttons while things break, then compare what everybody wrote down."""
    telemetry.setup("trial", "0", TelemetrySettings(log_level="error"))
    seed = seed or int(time.time()) % 1_000_000
    folder = folder or Path(tempfile.mkdtemp(prefix="sightline-trial-"))
    wanted, there = only.lower().split(","), FAULTS if brokers == 1 else CLUSTER_FAULTS
    known = [fault for fault in there if any(text in f"{fault.number} {fault.name}".lower() for text in wanted)]
    rounds = [random.Random(seed + n).sample(known, len(known)) for n in range(faults // len(known) + 1)]  # noqa: S311
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [fault for each in rounds for fault in each][:faults]

    async def run() -> Report:
        with out.status("starting") as status:
            up = partial(local.up, extra=local.QUICK_PERIODS, services=False, proxied=True, traced=False, brokers=brokers)
            stack = await asyncio.to_thread(up, folder / "stack", status.update)
            async with AsyncExitStack() as resources:
                rig = Rig(stack)
                if brokers > 1:  # the others reach the first broker through it
                    await resources.enter_async_context(rig.kafka)
                await asyncio.to_thread(local.start_services, stack, status.update)
                await resources.enter_async_context(rig)
                return await trial(
                    rig, folder, seed=seed, presses=presses, rate=rate, officers=officers, faults=chosen, progress=status.update
                )

    try:
        report = asyncio.run(run())
    finally:
        local.down(folder / "stack", lambda text: None)
    print("\n".join([*report.faults, *report.lines()]))  # noqa: T201
    sys.exit(bool(report.violations))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
