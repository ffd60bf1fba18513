"""A service is in every list, or in none: folder, image, compose, chart, local stack, linters, docs, topics."""

import ast
import configparser
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from chassis.settings import RpcSettings
from contracts.services import OUTSIDERS, SERVICES
from contracts.topics import TOPICS

from services.console.settings import ConsoleSettings
from services.joiner.settings import JoinerSettings
from services.relay.settings import RelaySettings
from services.witness.settings import WitnessSettings
from tools.local import stack
from tools.local.stack import ROOT

NAMES = {service.name for service in SERVICES}


def test_every_folder_is_in_the_table() -> None:
    assert {p.parent.name for p in (ROOT / "services").glob("*/__main__.py")} == NAMES
    assert {p.parent.name for p in (ROOT / "services").glob("*/migrations")} == {s.name for s in SERVICES if s.has_database}
    assert {p.parent.name for p in (ROOT / "services").glob("*/README.md")} == NAMES


def test_every_service_is_linted() -> None:
    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter")

    def listed(contract: str, key: str) -> set[str]:
        found = rules[f"importlinter:contract:{contract}"][key].split()
        return {name.removeprefix("services.").partition(".")[0] for name in found if name.startswith("services.")}

    assert listed("layers", "containers") | listed("joiner", "containers") == NAMES
    assert listed("independence", "modules") == NAMES
    assert listed("faust", "source_modules") == NAMES - {"joiner"}
    assert listed("pure", "source_modules") == {p.parent.name for p in (ROOT / "services").glob("*/model.py")} - {"witness"}


def test_every_service_is_in_the_compose_file() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ours = {name: each["command"] for name, each in compose.items() if "command" in each}
    assert ours == {process: ["-m", f"services.{s.name}"] for s in SERVICES for process in s.processes}


def test_every_service_is_in_the_chart() -> None:
    chart = ROOT / "deploy/helm/sightline"
    values = yaml.safe_load((chart / "values.yaml").read_text())
    assert set(values["services"]) == {s.name for s in SERVICES if s.has_database}
    alone = {s.name for s in SERVICES if s.in_chart and not s.has_database}
    for name in alone:
        template = (chart / f"templates/{name}.yaml").read_text()
        assert f"services.{name}" in template
        ports = dict(re.findall(r"name: (\w+), containerPort: (\d+)", template))
        service = next(s for s in SERVICES if s.name == name)
        assert {face: int(port) for face, port in ports.items()} == {**service.faces, "health": service.health}
    ports = dict(re.findall(r"name: (\w+), containerPort: (\d+)", (chart / "templates/services.yaml").read_text()))
    for service in (s for s in SERVICES if s.has_database):
        assert {face: int(port) for face, port in ports.items()} == {**service.faces, "health": service.health}


def test_every_face_is_where_its_settings_put_it() -> None:
    defaults = {
        "grpc": RpcSettings.model_fields["listen"], "ingest": RelaySettings.model_fields["ingest_listen"],
        "view": RelaySettings.model_fields["view_listen"], "page": ConsoleSettings.model_fields["page_listen"],
        "notes": WitnessSettings.model_fields["listen"],
    }  # fmt: skip
    for face, port in {item for s in SERVICES for item in s.faces.items()}:
        assert defaults[face].default == f"0.0.0.0:{port}"
    health = {s.name: RpcSettings.model_fields["health_listen"].default for s in SERVICES}
    health |= {"joiner": JoinerSettings.model_fields["health_listen"].default}
    health |= {"witness": WitnessSettings.model_fields["health_listen"].default}
    assert health == {s.name: f"0.0.0.0:{s.health}" for s in SERVICES}


def test_every_service_is_on_the_laptop() -> None:
    assert set(stack.WITH_TABLES) == {s.name for s in SERVICES if s.has_database}
    assert set(stack._ENVIRONMENTS) | set(stack.WITH_TABLES) == NAMES


def test_every_service_is_in_the_docs() -> None:
    table = (ROOT / "docs/architecture.md").read_text()
    assert set(re.findall(r"^\| \[(\w+)\]\(\.\./services/\1/README\.md\)", table, re.MULTILINE)) == NAMES


def test_every_topic_has_its_owner_and_readers_among_the_services() -> None:
    assert {topic.owner for topic in TOPICS} <= NAMES | OUTSIDERS
    assert {reader for topic in TOPICS for reader in topic.readers} <= NAMES | OUTSIDERS


# --- the image ---------------------------------------------------------------------------------------------------------------


def _copied() -> list[tuple[str, str]]:
    """What the image's last stage copies out of the build context, and where to."""
    last = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    return re.findall(r"^COPY (?!--from)(\S+) (\S+)$", last, re.MULTILINE)


def _ignored(folder: str, names: list[str]) -> set[str]:
    """As .dockerignore: no tests, no caches."""
    return {name for name in names if name in ("tests", "__pycache__")}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exactly what the Dockerfile copies."""
    root = tmp_path_factory.mktemp("image")
    for source, target in _copied():
        shutil.copytree(ROOT / source, root / target.lstrip("/"), ignore=_ignored)
    return root / "app"


_IMPORT_ALL = """
import importlib, importlib.metadata, pathlib, re, runpy, sys
app, packages, lock = sys.argv[1:]
sys.path = [p for p in sys.path if "site-packages" not in p] + [f"{app}/libs", app, packages]
locked = set(re.findall(r"^([a-z0-9.-]+)(?:\\[[^\\]]*\\])?==", pathlib.Path(lock).read_text(), re.MULTILINE))
of = importlib.metadata.packages_distributions()
hidden = {name for name, of_these in of.items() if not {re.sub(r"[-_.]+", "-", d).lower() for d in of_these} & locked}

class OnlyLocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)

sys.meta_path.insert(0, OnlyLocked())
for file in sorted([*pathlib.Path(app, "services").rglob("*.py"), *pathlib.Path(app, "libs").rglob("*.py")]):
    if file.parent.name == "migrations" or file.name == "env.py":
        continue  # run by path, below; alembic's own runs inside alembic
    base = app if file.is_relative_to(f"{app}/services") else f"{app}/libs"
    importlib.import_module(".".join(file.relative_to(base).with_suffix("").parts).removesuffix(".__init__"))
for file in pathlib.Path(app, "services").glob("*/migrations/*.py"):
    runpy.run_path(str(file))
ours = [m for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
outside = [m.__file__ for m in ours if not m.__file__.startswith((app, packages, sys.base_prefix))]
assert not outside, outside
print(len(ours), "modules")
"""


def test_every_entry_point_and_migration_is_imported_from_what_the_image_has(image: Path) -> None:
    """W1: two services could not start in the image. The process sees what was copied, and the packages of the image's lock file."""
    command = [sys.executable, "-I", "-S", "-c", _IMPORT_ALL, str(image), sysconfig.get_path("purelib"), str(ROOT / "requirements.lock")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False, cwd=image)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("modules\n")


def test_the_image_copies_only_what_is_imported(image: Path) -> None:
    imported = {"services"}
    for file in image.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    assert {source.rpartition("/")[2] for source, _ in _copied()} <= imported


def test_the_image_says_which_ports_it_has() -> None:
    (ports,) = re.findall(r"^EXPOSE (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {int(port) for port in ports.split()} == {port for s in SERVICES for port in (*s.faces.values(), s.health)}
