"""Ravensford holds together: whoever walks stays on its streets, and can get on everywhere."""

import random
from itertools import pairwise

from tools.simulator.city import metres, ravensford, walkers


def test_the_city_is_always_the_same_and_its_streets_lead_both_ways() -> None:
    city = ravensford()
    assert city == ravensford()
    assert all(a in city.streets[b] for a, there in enumerate(city.streets) for b in there)


def test_nearly_all_of_it_hangs_together_across_the_river() -> None:
    city = ravensford()
    reached, waiting = {0}, [0]
    while waiting:
        for each in city.streets[waiting.pop()]:
            if each not in reached:
                reached.add(each)
                waiting.append(each)
    assert len(reached) > 0.95 * sum(1 for each in city.streets if each)


def test_who_walks_goes_as_fast_as_said_and_no_faster() -> None:
    city = ravensford()
    for walker in walkers(city, 20, 11.0, random.Random(1)):
        places = [walker.at, *(walker.go(1.0) for _ in range(200))]
        assert max(metres(a, b) for a, b in pairwise(places)) < 11.01
        assert len(set(places)) > 10
