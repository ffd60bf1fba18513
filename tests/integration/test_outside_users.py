"""The README's examples, run as they stand there: a CAD from the protos alone, another agency with a plain consumer."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.local.stack import ROOT, Stack
from tools.roster import member
from tools.world import World


def example(name: str) -> str:
    """The shell block of the README that follows `<!-- run: name -->`."""
    found = re.search(rf"<!-- run: {name} -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert found, f"the README has no example {name}"
    return found[1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what an integrator has: the schemas and the tools, and nothing of our code."""
    folder = tmp_path_factory.mktemp("integrator")
    for part in ("protos", "third_party"):
        shutil.copytree(ROOT / part, folder / part)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


def run(name: str, checkout: Path, stack: Stack) -> str:
    environment = {**os.environ, "SIGHTLINE_DATA": str(stack.data)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example(name)],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_cad_raises_an_alarm_and_another_agency_reads_of_it(world: World, checkout: Path) -> None:
    officer = member("drill", 9000)
    await world.duty(officer)

    raised = run("cad", checkout, world.stack).split()

    assert raised[1] == "PRESS_OUTCOME_OPENED"
    assert await world.states(raised[0]) == {officer.camera_ids[0]: "RECORDING"}
    lines = [line.split() for line in run("agency", checkout, world.stack).splitlines()]
    # Version 1, unless the registry took longer than a press waits for it.
    assert [raised[0], "EMERGENCY_STATE_OPEN", officer.officer_id] in [[line[0], *line[2:]] for line in lines]
