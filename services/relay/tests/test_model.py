"""A viewer gets what it can decode, in order, never too much at once and never old pictures."""

from hypothesis import given
from hypothesis import strategies as st

from services.relay.model import AGE_LIMIT_S, QUEUE_BYTES, WINDOW_BYTES, Frame, Group, Viewer

HEAD = 48


def frame(n: int, kind: str = "delta", size: int = 1000) -> Frame:
    return Frame(n, kind, bytes([n % 256]) * 32, 1_700_000_000_000 + n, bytes(size))


def take(viewer: Viewer, now: float, *, acknowledge: bool = True) -> list[Frame]:
    found = []
    while (sent := viewer.next(now)) is not None:
        found.append(sent)
        if acknowledge:
            assert viewer.acknowledge(viewer.sent)
    return found


def start(viewer: Viewer) -> None:
    viewer.offer(frame(0, "init"), 0)
    viewer.offer(frame(1, "key"), 0)


def test_a_message_carries_the_piece_and_what_proves_it() -> None:
    message = frame(7, "key", 5).message()
    assert (message[0], message[1], int.from_bytes(message[4:8]), message[16:48]) == (1, 1, 7, b"\x07" * 32)
    assert message[HEAD:] == bytes(5)


def test_a_late_viewer_begins_with_the_init_and_the_last_keyframe() -> None:
    group = Group()
    for n, kind in enumerate(["init", "key", "delta", "delta", "key", "delta"]):
        group.add(frame(n, kind))
    assert [each.n for each in group.frames()] == [0, 4, 5]
    group.add(frame(0, "init"))
    assert [each.n for each in group.frames()] == [0]


def test_no_more_than_a_window_is_under_way() -> None:
    viewer = Viewer()
    start(viewer)
    for n in range(2, 300):
        viewer.offer(frame(n), 0)
    first = take(viewer, 0, acknowledge=False)
    assert WINDOW_BYTES <= viewer.sent < WINDOW_BYTES + HEAD + 1000
    assert viewer.next(0) is None
    assert viewer.acknowledge(viewer.sent)
    assert viewer.next(0) == frame(len(first))


def test_who_falls_behind_goes_on_at_the_next_keyframe() -> None:
    viewer = Viewer()
    start(viewer)
    assert [each.n for each in take(viewer, 0)] == [0, 1]
    for n in range(2, 20):
        viewer.offer(frame(n, "key" if n in (8, 16) else "delta"), 0.1)
    assert [each.n for each in take(viewer, 0.1 + AGE_LIMIT_S + 0.01)] == []  # all of it is old
    viewer.offer(frame(20), 1)
    assert take(viewer, 1) == []
    viewer.offer(frame(21, "key"), 1)
    viewer.offer(frame(22), 1)
    assert [each.n for each in take(viewer, 1)] == [21, 22]
    assert viewer.skipped == 19


def test_only_what_is_old_is_skipped() -> None:
    viewer = Viewer()
    start(viewer)
    take(viewer, 0)
    viewer.offer(frame(2), 0)
    viewer.offer(frame(3, "key"), 0.5)
    viewer.offer(frame(4), 0.55)
    assert [each.n for each in take(viewer, AGE_LIMIT_S + 0.01)] == [3, 4]


def test_a_new_segment_begins_anew_for_the_slowest_too() -> None:
    viewer = Viewer()
    start(viewer)
    for n in range(2, 9):
        viewer.offer(frame(n), 0)
    viewer.offer(frame(0, "init"), 5)
    viewer.offer(frame(1, "key"), 5)
    assert [(each.n, each.kind) for each in take(viewer, 5)] == [(0, "init"), (1, "key")]


def test_an_acknowledgement_of_what_was_never_sent_is_no_acknowledgement() -> None:
    viewer = Viewer()
    start(viewer)
    take(viewer, 0, acknowledge=False)
    assert not viewer.acknowledge(viewer.sent + 1)
    assert viewer.acknowledge(100)
    assert not viewer.acknowledge(99)


@given(st.lists(st.tuples(st.sampled_from("ikdddd"), st.integers(1, 200_000), st.floats(0, 0.5), st.booleans()), max_size=200))
def test_whatever_comes_it_stays_bounded_decodable_and_in_order(steps: list[tuple[str, int, float, bool]]) -> None:
    viewer, now, n, sent = Viewer(), 0.0, 0, []
    viewer.offer(frame(0, "init", 100), now)
    for kind, size, wait, reads in steps:
        now += wait
        n = 0 if kind == "i" else n + 1
        viewer.offer(frame(n, {"i": "init", "k": "key", "d": "delta"}[kind], 100 if kind == "i" else size), now)
        assert viewer._queued == sum(len(each.data) for each, _ in viewer._queue) <= QUEUE_BYTES + 200_000
        if reads:
            sent += take(viewer, now)
    last: Frame | None = None
    for each in sent:
        if each.kind == "delta":
            assert last is not None
            assert (last.kind != "init", each.n) == (True, last.n + 1)
        elif each.kind == "key":
            assert last is not None
            assert each.n > last.n
        last = each
