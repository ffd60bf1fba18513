"""Every service of the system: the one place that names them. The local stack is made from it; image, compose file, chart, linters and
docs are tested against it (`tests/project/test_services.py`), so that a new service is in all of them or in none."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from contracts.topics import TOPICS

GRPC, HEALTH = 8443, 8080


@dataclass(frozen=True)
class Service:
    """One service, which is one package and one program. `replicas` are those of a laptop; `faces` are its ports by name."""

    name: str
    replicas: int
    faces: Mapping[str, int] = field(default_factory=dict)
    has_database: bool = False
    in_chart: bool = True
    health: int = HEALTH

    @property
    def emits(self) -> tuple[str, ...]:
        """Topics that it owns."""
        return tuple(topic.name for topic in TOPICS if topic.owner == self.name)

    @property
    def reads(self) -> tuple[str, ...]:
        """Topics that it reads."""
        return tuple(topic.name for topic in TOPICS if self.name in topic.readers)

    @property
    def processes(self) -> tuple[str, ...]:
        """Names of its processes on a laptop, like `emergency-a`; of the joiner these are its lanes."""
        return tuple(f"{self.name}-{letter}" for letter in "abcdefgh"[: self.replicas])


_RPC = {"grpc": GRPC}
# What others ask comes first. Everything on the path of a press, and of pictures, runs twice on a laptop, too.
SERVICES = (
    Service("registry", 2, _RPC, has_database=True),
    Service("emergency", 2, _RPC, has_database=True),
    Service("streams", 2, _RPC, has_database=True),
    Service("evidence", 1, _RPC, has_database=True),
    Service("audit", 1, _RPC, has_database=True),
    Service("location", 1, _RPC, has_database=True),
    Service("joiner", 2),
    Service("relay", 2, {"ingest": 8444, "view": 8445}),
    Service("console", 1, {"page": 8446}),
    # Somebody else's: on a laptop it is there so that the path is real.
    Service("witness", 1, {"notes": 8447}, in_chart=False, health=8448),
)
# Who is no service and still owns or reads topics.
OUTSIDERS = frozenset({"agencies", "operators", "AVL systems", "every service"})
