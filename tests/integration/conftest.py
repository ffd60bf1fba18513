"""Every story takes officers with numbers of their own."""

import itertools
from collections.abc import Callable

import pytest

from tools.roster import Member, member

_numbers = itertools.count(100)


@pytest.fixture
def someone() -> Callable[..., Member]:
    """Makes up an officer with a radio and cameras that no other story uses."""

    def make(cameras: int = 1) -> Member:
        return member("story", next(_numbers), cameras)

    return make
