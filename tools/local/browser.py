"""Chromium out of the page's npm packages, which no machine needs to have: unpacked once, with the libraries it wants."""

import os
import subprocess
from pathlib import Path

from tools.local.process import StartError
from tools.local.stack import ROOT

_PACKAGES, _FOLDER = ROOT / ".venv" / "page", ROOT / ".venv" / "browser"
# The package unpacks into the folder for temporary files, and its libraries only where it believes to need them.
_UNPACK = "import chromium from '@sparticuz/chromium'; await chromium.executablePath();"


def chromium() -> tuple[Path, dict[str, str | float | bool]]:
    """The program, and the environment that it needs; StartError tells what is missing."""
    if not (_PACKAGES / "ready").exists():
        raise StartError("there is no browser to test with: run `make page` first")
    program = _FOLDER / "chromium"
    if not program.exists():
        _FOLDER.mkdir(exist_ok=True)
        environment = {"TMPDIR": str(_FOLDER), "AWS_EXECUTION_ENV": "AWS_Lambda_nodejs24.x", "HOME": str(_FOLDER)}
        node = ROOT / ".venv" / "bin" / "node"
        command = [str(node), "--input-type=module", "-e", _UNPACK]
        done = subprocess.run(command, check=False, cwd=_PACKAGES, env=os.environ | environment, capture_output=True, text=True)
        if done.returncode or not program.exists():
            raise StartError(f"the browser cannot be unpacked: {done.stderr[-500:]}")
    libraries = [str(_FOLDER / "al2023" / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    return program, {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, libraries))}
