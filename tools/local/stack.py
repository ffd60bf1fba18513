"""`sightline stack`: the whole system on one machine, started in order, ready when every part says so."""

import base64
import json
import os
import secrets
import shutil
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psycopg
from chassis.db import migrate
from chassis.files import read_ed25519
from chassis.settings import KafkaSettings
from contracts.services import SERVICES
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from grpc_health.v1 import health_pb2, health_pb2_grpc
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tlog.note import COSIGNATURE, Signer

from tools.local import containers
from tools.local.ca import LaptopCa
from tools.local.packages import Kafka, Postgres
from tools.local.process import Process, StartError, free_ports, start, start_again, stop, wait_for
from tools.topics import create_topics

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_DATA = ROOT / ".local"
WITH_TABLES = tuple(service.name for service in SERVICES if service.has_database)
# Everything on the path of a press, and of pictures, runs twice; these do not.
SINGLE = tuple(service.name for service in SERVICES if service.replicas == 1)
REPLICAS, LANES = ("a", "b"), ("a", "b")
# Settings for tests: what happens once in ten minutes or in half an hour happens all the time.
QUICK_PERIODS = {
    "registry": {"SIGHTLINE_TRICKLE_S": "5"}, "joiner": {"SIGHTLINE_TRICKLE_S": "5"}, "streams": {"SIGHTLINE_LINK_AGE_S": "20"},
    "evidence": {"SIGHTLINE_SWEEP_S": "0.5"}, "relay": {"SIGHTLINE_RETIRE_S": "0.5"},
    "audit": {"SIGHTLINE_JUDGE_S": "0.5", "SIGHTLINE_SETTLED_S": "5", "SIGHTLINE_RECHECK_S": "1"},
}  # fmt: skip
# What a process tells of in its health beside whether it serves.
PARTS = ("clock", "topics")
Progress = Callable[[str], None]
_ORIGIN, _WITNESS = "laptop.sightline.example/audit", "laptop.sightline.example/witness"


class StackError(StartError):
    """The stack cannot do what was asked; the text says what to do."""


@dataclass
class Stack:
    """Where everything is; kept as `stack.json` in the data folder.

    `targets` are gRPC targets by service, with the addresses of all replicas; `listens` and `health` addresses by process,
    which is named like `emergency-a`.
    """

    data: Path
    kafka: str = ""
    kafka_proxied: tuple[int, int] = (0, 0)  # where the broker listens for a proxy's clients, and where it sends them
    database: str = ""
    issuer: str = ""
    traces: str = ""
    otlp: str = ""
    traced: bool = True
    brokers: int = 1
    backing: str = ""
    targets: dict[str, str] = field(default_factory=dict)
    listens: dict[str, str] = field(default_factory=dict)
    health: dict[str, str] = field(default_factory=dict)
    relays: dict[str, tuple[str, str]] = field(default_factory=dict)  # where they listen for cameras, and for viewers
    console: str = ""  # where it listens for browsers
    witness: str = ""  # where it listens for the log
    processes: list[Process] = field(default_factory=list)

    @property
    def ca(self) -> LaptopCa:
        """The stack's certificate authority."""
        return LaptopCa(self.data / "certs")

    def save(self) -> None:
        """Write the state file, whole or not at all."""
        text = json.dumps(asdict(self) | {"data": str(self.data)}, indent=2)
        temporary = self.data / "stack.json.new"
        temporary.write_text(text)
        temporary.replace(self.data / "stack.json")

    @classmethod
    def load(cls, data: Path) -> "Stack | None":
        """The stack of a data folder; None if there is none."""
        file = data / "stack.json"
        if not file.exists():
            return None
        kept = json.loads(file.read_text())
        kept["processes"] = [Process(**process) for process in kept["processes"]]
        return cls(**kept | {"data": data})

    @property
    def running(self) -> bool:
        """Whether all of its processes run."""
        return bool(self.processes) and all(process.alive() for process in self.processes)


def up(
    data: Path,
    progress: Progress,
    *,
    lanes: tuple[str, ...] = LANES,
    replicas: tuple[str, ...] = REPLICAS,
    extra: Mapping[str, Mapping[str, str]] | None = None,
    services: bool = True,
    proxied: bool = False,
    traced: bool = True,
    brokers: int = 1,
) -> Stack:
    """Bring the stack up and return it; one that runs already is returned as it is.

    `extra` are more settings by service, for tests that need shorter periods. Without `services` all but the
    services is started, and their settings are written, for containers to run them. With `proxied` Kafka and PostgreSQL
    are processes of this stack whatever else there is, and the broker has a listener for tests to put a proxy before.
    Without `traced` no spans are recorded, which saves a third of the work. With three `brokers` all is replicated.
    """
    if (there := Stack.load(data)) and there.running:
        return there
    if there:
        down(data, progress)
    data.mkdir(parents=True, exist_ok=True)
    stack = Stack(data, traced=traced, brokers=brokers)
    try:
        _start_backing(stack, progress, proxied=proxied)
        _start_desks(stack)
        progress("creating topics and tables")
        create_topics(KafkaSettings(bootstrap=stack.kafka, security="PLAINTEXT"), brokers)
        for name in WITH_TABLES:
            _migrate(stack, name)
        _start_services(stack, replicas, lanes, extra or {}, start_them=services)
        if services:
            _wait_ready(stack, progress)
    except BaseException:
        stop_processes(stack)
        (data / "stack.json").unlink(missing_ok=True)
        raise
    stack.save()
    return stack


def down(data: Path, progress: Progress, *, purge: bool = False) -> bool:
    """Stop the stack; with `purge` remove its data. False if there was nothing to stop."""
    stack = Stack.load(data)
    if stack:
        progress("stopping")
        stop_processes(stack)
        (data / "stack.json").unlink()
    if purge:
        Postgres(data / "postgres").purge()
        shutil.rmtree(data, ignore_errors=True)
    return stack is not None


def stop_processes(stack: Stack) -> None:
    """Services first, then what they stand on."""
    stop([p for p in stack.processes if p.name in stack.health])
    for process in reversed([p for p in stack.processes if p.name not in stack.health]):
        stop([process], Postgres.stop_signal if process.name == "postgres" else signal.SIGTERM)
    if stack.backing == "containers":
        containers.stop(stack.data)


def _start_backing(stack: Stack, progress: Progress, *, proxied: bool) -> None:
    """A given Kafka and PostgreSQL win; else a container engine; else packages."""
    given = os.environ.get("SIGHTLINE_KAFKA_BOOTSTRAP"), os.environ.get("SIGHTLINE_DATABASE_URL")
    if given[0] and given[1] and not proxied:
        stack.kafka, stack.database, stack.backing = given[0], given[1], "given"
        return
    if not proxied and containers.engine_answers():
        progress("starting Kafka and PostgreSQL as containers")
        if found := containers.start(stack.data):
            stack.kafka, stack.database, stack.backing = *found, "containers"
            return
        progress("the container engine could not start them; taking packages instead")
    progress("starting Kafka and PostgreSQL from packages (the first time fetches Kafka)")
    folder, postgres = stack.data / "kafka", Postgres(stack.data / "postgres")
    brokers = [Kafka(folder, proxied=proxied)] if stack.brokers == 1 else Kafka.several(folder, stack.brokers)
    stack.kafka_proxied = brokers[0].proxied_port, brokers[0].proxy_port
    if postgres.is_new or any(kafka.is_new for kafka in brokers):
        # Neither may outlive the other (a cleared /tmp, say): topics would tell of what the database does not know.
        shutil.rmtree(folder, ignore_errors=True)
        postgres.purge()
    starts: list[Callable[[], Process]] = [postgres.start, *(partial(kafka.start, stack.data / "logs") for kafka in brokers)]
    with ThreadPoolExecutor(len(starts)) as pool:
        for starting in [pool.submit(lambda part=part: _started(stack, part())) for part in starts]:  # type: ignore[misc]
            starting.result()
    stack.kafka, stack.database, stack.backing = ",".join(kafka.bootstrap for kafka in brokers), postgres.admin_url, "packages"
    wait_for("postgres", postgres.ready, watched=stack.processes)
    for kafka in brokers:
        wait_for(kafka.name, kafka.ready, watched=stack.processes)


def _start_desks(stack: Stack) -> None:
    """Identity provider and trace collector."""
    issuer, otlp, traces = free_ports(3)
    stack.issuer, stack.otlp, stack.traces = (f"http://127.0.0.1:{port}" for port in (issuer, otlp, traces))
    keys = stack.data / "secrets" / "issuer.key"
    keys.parent.mkdir(parents=True, exist_ok=True)
    _python(stack, "issuer", ["tools.local.issuer", "--port", str(issuer), "--key", str(keys)], {})
    _python(stack, "collector", ["tools.local.collector", "--otlp-port", str(otlp), "--http-port", str(traces)], {})


def _migrate(stack: Stack, name: str) -> None:
    """Create a service's role, then its tables."""
    password_file = stack.data / "secrets" / name
    if not password_file.exists():
        password_file.touch(mode=0o600)
        password_file.write_text(secrets.token_urlsafe(16))
    role = sql.Identifier(name)
    with psycopg.connect(stack.database, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone():
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(password_file.read_text())))
    migrate(stack.database, name, ROOT / "services" / name / "migrations")


def _start_services(
    stack: Stack, replicas: tuple[str, ...], lanes: tuple[str, ...], extra: Mapping[str, Mapping[str, str]], *, start_them: bool
) -> None:
    """Give every process its addresses and settings, as a file and, unless containers run them, start it."""
    names = {name: [f"{name}-{replica}" for replica in (replicas[:1] if name in SINGLE else replicas)] for name in WITH_TABLES}
    served = [each for several in names.values() for each in several]
    joiners, relays = [f"joiner-{lane}" for lane in lanes], [f"relay-{replica}" for replica in replicas]
    others = [f"{each.name}-{replicas[0]}" for each in SERVICES if each.name in SINGLE and not each.has_database]
    ports = iter(free_ports(2 * len(served) + len(joiners) + 3 * len(relays) + len(others) + 2))
    stack.listens = {each: f"127.0.0.1:{next(ports)}" for each in served}
    stack.health = {each: f"127.0.0.1:{next(ports)}" for each in (*served, *joiners, *relays, *others)}
    stack.console, stack.witness = f"127.0.0.1:{next(ports)}", f"127.0.0.1:{next(ports)}"
    stack.relays = {each: (f"127.0.0.1:{next(ports)}", f"127.0.0.1:{next(ports)}") for each in relays}
    stack.targets = {name: "ipv4:" + ",".join(stack.listens[each] for each in several) for name, several in names.items()}
    (stack.data / "env").mkdir(exist_ok=True)
    for each in stack.health:
        service = each.rpartition("-")[0]
        settings = _ENVIRONMENTS.get(service, service_environment)(stack, each)
        settings |= dict(extra.get(service, {}))
        (stack.data / "env" / f"{each}.env").write_text("".join(f"{variable}={value}\n" for variable, value in settings.items()))
        if start_them:
            _python(stack, each, [f"services.{service}"], settings)


_restarting = threading.Lock()  # several threads restart processes of one stack


def restart(stack: Stack, name: str, more: Mapping[str, str] | None = None, through: str | None = None) -> Process:
    """Start a process of the stack again that has ended, with more settings.

    `through` is a module that runs the service's own, for tests that make it fail.
    """
    there = process_named(stack, name)
    command = [*there.command[:2], through, *there.command[2:]] if through else there.command
    process = start_again(there, more, command)
    # What it was started with for once is not how it is started the next time.
    kept = replace(process, command=there.command, environment=there.environment)
    with _restarting:
        stack.processes = [kept if each.name == name else each for each in stack.processes]
        stack.save()
    return kept


def process_named(stack: Stack, name: str) -> Process:
    """A process of the stack, as it runs now."""
    return next(process for process in stack.processes if process.name == name)


def serving(stack: Stack, name: str) -> bool:
    """Whether a process says that it serves."""
    try:
        _serving(stack.health[name])
    except (grpc.RpcError, ConnectionError):
        return False
    return True


def ails(stack: Stack, name: str) -> list[str]:
    """Parts of a serving process that somebody has to mend: its clock, its topics."""
    found = []
    for part in PARTS:
        try:
            _serving(stack.health[name], part)
        except ConnectionError:
            found.append(part)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:  # it has no such part
                raise
    return found


def start_services(stack: Stack, progress: Progress) -> None:
    """Start the services of a stack that came up without them, and wait until all serve."""
    for each in stack.health:
        lines = (stack.data / "env" / f"{each}.env").read_text().splitlines()
        _python(stack, each, [f"services.{each.rpartition('-')[0]}"], dict(line.split("=", 1) for line in lines))
    _wait_ready(stack, progress)


def joiner_environment(stack: Stack, name: str) -> dict[str, str]:
    """The settings that a lane of this stack runs with."""
    return _common(stack) | {
        "SIGHTLINE_HEALTH_LISTEN": stack.health[name],
        "SIGHTLINE_LANE": name.rpartition("-")[2],
        "SIGHTLINE_DATA_DIR": str(stack.data / "joiner"),
    }


def _common(stack: Stack) -> dict[str, str]:
    return {
        "SIGHTLINE_PROFILE": "laptop",
        "SIGHTLINE_KAFKA_BOOTSTRAP": stack.kafka,
        "SIGHTLINE_KAFKA_SECURITY": "PLAINTEXT",
        **({"SIGHTLINE_TELEMETRY_OTLP_ENDPOINT": stack.otlp, "OTEL_BSP_SCHEDULE_DELAY": "100"} if stack.traced else {}),
    }


def relay_environment(stack: Stack, name: str) -> dict[str, str]:
    """The settings that a relay of this stack runs with; viewers come without TLS, because no browser knows the laptop's CA."""
    cameras, viewers = stack.relays[name]
    return _common(stack) | _rpc(stack, "relay") | {
        "SIGHTLINE_REPLICA": name.rpartition("-")[2],
        "SIGHTLINE_RPC_HEALTH_LISTEN": stack.health[name],
        "SIGHTLINE_STREAMS_TARGET": stack.targets["streams"],
        "SIGHTLINE_EVIDENCE_TARGET": stack.targets["evidence"],
        "SIGHTLINE_DATA_DIR": str(stack.data / name),
        "SIGHTLINE_INGEST_LISTEN": cameras,
        # The name that the laptop's certificates have.
        "SIGHTLINE_INGEST_URL": f"https://localhost:{cameras.rpartition(':')[2]}",
        "SIGHTLINE_VIEW_LISTEN": viewers,
        "SIGHTLINE_VIEW_URL": f"ws://{viewers}",
    }  # fmt: skip


def console_environment(stack: Stack, name: str) -> dict[str, str]:
    """The settings that the console of this stack runs with."""
    return _common(stack) | _rpc(stack, "console", kind="console") | {
        "SIGHTLINE_RPC_HEALTH_LISTEN": stack.health[name],
        "SIGHTLINE_STREAMS_TARGET": stack.targets["streams"],
        "SIGHTLINE_PAGE_LISTEN": stack.console,
        "SIGHTLINE_VIEW_SOURCES": " ".join(f"ws://{viewers}" for _, viewers in stack.relays.values()),
    }  # fmt: skip


def service_environment(stack: Stack, replica: str) -> dict[str, str]:
    """The settings that a replica of a service of this stack runs with."""
    name = replica.rpartition("-")[0]
    database: dict[str, Any] = conninfo_to_dict(stack.database) | {"user": name}
    database.pop("password", None)
    peers = {
        "emergency": {"SIGHTLINE_REGISTRY_TARGET": "registry"},
        "streams": {"SIGHTLINE_EMERGENCY_TARGET": "emergency", "SIGHTLINE_REGISTRY_TARGET": "registry"},
    }
    return _common(stack) | _rpc(stack, name) | {
        "SIGHTLINE_DATABASE_URL": make_conninfo(**database),
        "SIGHTLINE_DATABASE_PASSWORD_FILE": str(stack.data / "secrets" / name),
        "SIGHTLINE_REPLICA": replica.rpartition("-")[2],
        "SIGHTLINE_RPC_LISTEN": stack.listens[replica],
        "SIGHTLINE_RPC_HEALTH_LISTEN": stack.health[replica],
        "SIGHTLINE_OIDC_ISSUER": stack.issuer,
        **{variable: stack.targets[target] for variable, target in peers.get(name, {}).items()},
    }  # fmt: skip


def _rpc(stack: Stack, name: str, kind: str = "service") -> dict[str, str]:
    certificate, key = stack.ca.issue("platform", kind, name)
    return {
        "SIGHTLINE_RPC_CERT_FILE": str(certificate),
        "SIGHTLINE_RPC_KEY_FILE": str(key),
        "SIGHTLINE_RPC_CA_FILE": str(stack.ca.certificate),
    }


def audit_environment(stack: Stack, name: str) -> dict[str, str]:
    """The settings that the audit service of this stack runs with; its keys and the copies of its checkpoints lie beside the database."""
    copies, master = stack.data / "checkpoints", stack.data / "secrets" / "audit-master"
    copies.mkdir(exist_ok=True)
    if not master.exists():
        master.touch(mode=0o600)
        master.write_bytes(base64.b64encode(secrets.token_bytes(32)))
    witness = {"url": f"http://{stack.witness}", "key": str(Signer(_WITNESS, _ed25519(stack, "witness"), COSIGNATURE).verifier)}
    _ed25519(stack, "audit-signing")
    return service_environment(stack, name) | {
        "SIGHTLINE_ORIGIN": _ORIGIN,
        "SIGHTLINE_SIGNING_KEY_FILE": str(_key_file(stack, "audit-signing")),
        "SIGHTLINE_MASTER_KEY_FILE": str(master),
        "SIGHTLINE_CHECKPOINT_DIR": str(copies),
        "SIGHTLINE_WITNESSES": json.dumps([witness]),
    }


def witness_environment(stack: Stack, name: str) -> dict[str, str]:
    """The settings of the witness of this stack, which a stranger would run elsewhere."""
    state, logs = stack.data / name, stack.data / "secrets" / "logs-of-the-witness"
    state.mkdir(exist_ok=True)
    logs.write_text(f"{Signer(_ORIGIN, _ed25519(stack, 'audit-signing')).verifier}\n")
    _ed25519(stack, "witness")
    return {
        "SIGHTLINE_PROFILE": "laptop",
        "SIGHTLINE_NAME": _WITNESS,
        "SIGHTLINE_KEY_FILE": str(_key_file(stack, "witness")),
        "SIGHTLINE_LOGS_FILE": str(logs),
        "SIGHTLINE_STATE_DIR": str(state),
        "SIGHTLINE_LISTEN": stack.witness,
        "SIGHTLINE_HEALTH_LISTEN": stack.health[name],
    }


def _key_file(stack: Stack, name: str) -> Path:
    return stack.data / "secrets" / f"{name}.pem"


def _ed25519(stack: Stack, name: str) -> Ed25519PrivateKey:
    """A key that outlives the stack's processes; made when it is first wanted."""
    file = _key_file(stack, name)
    if not file.exists():
        file.touch(mode=0o600)
        file.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return read_ed25519(file)


_ENVIRONMENTS = {
    "joiner": joiner_environment, "relay": relay_environment, "console": console_environment, "audit": audit_environment,
    "witness": witness_environment,
}  # fmt: skip


def _started(stack: Stack, process: Process) -> None:
    """Note a process at once, so that `down` finds it whatever happens next."""
    stack.processes.append(process)
    stack.save()


def _python(stack: Stack, name: str, module: list[str], environment: Mapping[str, str]) -> None:
    path = f"{ROOT / 'libs'}{os.pathsep}{ROOT}"
    full = {**environment, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    log = stack.data / "logs" / f"{name}.log"
    _started(stack, start(name, [sys.executable, "-m", *module], log, full, cwd=ROOT))


def _wait_ready(stack: Stack, progress: Progress) -> None:
    for name, address in stack.health.items():
        progress(f"waiting for {name}")
        wait_for(name, lambda address=address: _serving(address), watched=stack.processes)  # type: ignore[misc]
    wait_for("issuer", lambda: urllib.request.urlopen(f"{stack.issuer}/jwks.json", timeout=1).close(), watched=stack.processes)


def _serving(address: str, part: str = "") -> None:
    """Raise until the health service says SERVING, of the whole or of a part."""
    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=part), timeout=1)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise ConnectionError("not serving yet")
