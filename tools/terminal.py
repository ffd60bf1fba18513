"""What the commands of `sightline` share: where they print, whom they ask, how they wait and fail."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from tools.local.stack import Stack, StackError

out, err = Console(), Console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Data = Annotated[Path, typer.Option("--data", envvar="SIGHTLINE_DATA", help="Folder of the stack's data.")]
Advance = Callable[[int, int], None]  # done, in all


class Unreadable(Exception):
    """There is nothing to work on; the text says what to do."""


def be_plain() -> None:
    """No moving pictures: for logs."""
    global out, err
    out, err = Console(force_terminal=False, width=140), Console(stderr=True, force_terminal=False, width=140)


def say(text: str) -> None:
    """Something by the way."""
    err.print(f"[dim]{text}[/dim]")


def complain(error: object) -> None:
    """What went wrong, as one line that a path in it can be copied from."""
    err.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """For programs."""
    print(json.dumps(value, indent=2, default=str))


def running_stack(data: Path) -> Stack:
    """The stack of a data folder; StackError if it is not up."""
    stack = Stack.load(data)
    if stack is None or not stack.running:
        raise StackError("the stack is not up: run `sightline stack up`")
    return stack


def with_bar(what: str, work: Callable[[Advance], Any]) -> Any:
    """Work with a progress bar; what cannot be read is one line."""
    try:
        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=err, transient=True) as bar:
            task = bar.add_task(what, total=None)
            return work(lambda done, total: bar.update(task, completed=done, total=total))
    except Unreadable as error:
        complain(error)
        raise typer.Exit(2) from error


def at_desk(user: str, data: Path, work: Any) -> Any:
    """What comes of some work at the desk of one of the laptop's users; a refusal is one line."""
    import grpc

    from tools.desk import Desk

    async def ask() -> Any:
        async with Desk(running_stack(data), user) as desk:
            return await work(desk)

    try:
        return asyncio.run(ask())
    except grpc.aio.AioRpcError as error:
        complain(error.details())
        raise typer.Exit(1) from error
