"""What the stack uses when nothing happens: officers on shift, cameras linked."""

import asyncio
from dataclasses import dataclass

import psutil

from tools.local.stack import Stack


@dataclass(frozen=True)
class Use:
    """A process: processor in percent of one core, memory in MiB."""

    name: str
    cpu_percent: float
    memory_mib: float


def _use(stack: Stack) -> dict[str, tuple[float, float]]:
    found = {}
    for process in stack.processes:
        here = psutil.Process(process.pid)
        cpu = memory = 0.0
        for each in (here, *here.children(recursive=True)):
            try:
                times, info = each.cpu_times(), each.memory_full_info()
            except psutil.NoSuchProcess:
                continue
            cpu, memory = cpu + times.user + times.system, memory + info.uss / 2**20
        found[process.name] = cpu, memory
    return found


async def measure(stack: Stack, seconds: float) -> list[Use]:
    """Watch all processes for some seconds."""
    before = await asyncio.to_thread(_use, stack)
    await asyncio.sleep(seconds)
    after = await asyncio.to_thread(_use, stack)
    return [Use(name, 100 * (cpu - before[name][0]) / seconds, memory) for name, (cpu, memory) in after.items()]
