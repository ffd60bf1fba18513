"""Ravensford, a city that is nowhere: streets to drive and walk along, a river with bridges, a park, dead zones of radio."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# In the sea south of Iceland, where no street of the world is.
SOUTH, WEST = 61.5, -20.0
_ROWS, _COLUMNS, _BLOCK_M = 60, 80, 150.0
_RIVER_ROW, _BRIDGE_EVERY = 27, 8
_METRE_LAT = 1 / 111_200.0
_METRE_LON = _METRE_LAT / math.cos(math.radians(SOUTH))
Point = tuple[float, float]  # latitude, longitude


@dataclass(frozen=True)
class City:
    """A street graph: crossings by number, and from each the crossings that a street leads to."""

    crossings: Sequence[Point]
    streets: Sequence[Sequence[int]]
    dead_zones: Sequence[tuple[Point, float]]  # middle, radius in metres

    def is_dead(self, at: Point) -> bool:
        """Whether no radio reaches from there."""
        return any(metres(at, middle) < radius for middle, radius in self.dead_zones)


def metres(a: Point, b: Point) -> float:
    """Distance in metres, for short ways."""
    return math.hypot((a[0] - b[0]) / _METRE_LAT, (a[1] - b[1]) / _METRE_LON)


def ravensford() -> City:
    """Always the same city: a grid that hands have drawn, cut by a river, with an avenue across and a park without streets."""
    dice = random.Random(1847)  # noqa: S311 (a drawing, no secret)
    number = {(row, column): row * _COLUMNS + column for row in range(_ROWS) for column in range(_COLUMNS)}
    crossings = [
        (SOUTH + (row * _BLOCK_M + dice.gauss(0, 15)) * _METRE_LAT, WEST + (column * _BLOCK_M + dice.gauss(0, 15)) * _METRE_LON)
        for row, column in number
    ]
    streets: list[set[int]] = [set() for _ in crossings]

    def connect(a: tuple[int, int], b: tuple[int, int]) -> None:
        if a in number and b in number:
            streets[number[a]].add(number[b])
            streets[number[b]].add(number[a])

    for row, column in number:
        in_park = 36 <= row < 44 and 20 <= column < 34
        if not in_park and dice.random() > 0.06:
            connect((row, column), (row, column + 1))
        if not in_park and (row != _RIVER_ROW or column % _BRIDGE_EVERY == 0) and dice.random() > 0.06:
            connect((row, column), (row + 1, column))
        if row == column:
            connect((row, column), (row + 1, column + 1))
    dead = [(crossings[number[12, 60]], 400.0), (crossings[number[50, 10]], 250.0)]
    return City(crossings, [sorted(each) for each in streets], dead)


@dataclass
class Walker:
    """Somebody who goes along the streets at a speed in metres a second, straight on rather than back."""

    city: City
    speed_mps: float
    dice: random.Random
    at: Point = field(init=False)
    course_deg: float = field(init=False, default=0.0)
    _ahead: int = field(init=False)
    _behind: int = field(init=False)

    def __post_init__(self) -> None:
        while True:
            self._behind = self.dice.randrange(len(self.city.crossings))
            if self.city.streets[self._behind]:
                break
        self.at = self.city.crossings[self._behind]
        self._ahead = self.dice.choice(self.city.streets[self._behind])

    def go(self, seconds: float) -> Point:
        """Where he or she is after so many seconds."""
        left = self.speed_mps * seconds
        while left > 0:
            target = self.city.crossings[self._ahead]
            way = metres(self.at, target)
            north, east = (target[0] - self.at[0]) / _METRE_LAT, (target[1] - self.at[1]) / _METRE_LON
            if way > 0:
                self.course_deg = math.degrees(math.atan2(east, north)) % 360
            if way > left:
                share = left / way
                self.at = (self.at[0] + (target[0] - self.at[0]) * share, self.at[1] + (target[1] - self.at[1]) * share)
                break
            left -= way
            self.at = target
            onward = [each for each in self.city.streets[self._ahead] if each != self._behind] or [self._behind]
            self._behind, self._ahead = self._ahead, self.dice.choice(onward)
        return self.at


def walkers(city: City, count: int, speed_mps: float, dice: random.Random) -> Iterator[Walker]:
    """So many of them; the same dice give the same."""
    return (Walker(city, speed_mps, dice) for _ in range(count))
