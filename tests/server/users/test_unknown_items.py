"""What a user has had is remembered, however much it is, and takes little room."""

import tracemalloc

import numpy as np

from longtide_server.users.unknown_items import UnknownItems, hash_of


def test_every_item_is_remembered_and_the_last_ones_by_name():
    one_by_one, together = UnknownItems(), UnknownItems()
    had = [(f"news-{n % 40}", float(n)) for n in range(60)]
    for item_id, time_s in had:
        one_by_one.add(item_id, time_s)
    together.add("news-0", 0.0)
    together.add_all(had)
    for unknown in (one_by_one, together):
        assert len(unknown) == 40
        assert all(f"news-{n}" in unknown for n in range(40))
        assert "news-40" not in unknown
        assert unknown.last == {f"news-{n}": n + 40.0 for n in range(10, 20)}
        assert [*unknown.last][-1] == "news-19"
        some = np.array([hash_of(item_id) for item_id in ("news-3", "other", "news-39")])
        assert unknown.among(some).tolist() == [True, False, True]


def test_an_item_that_arrives_late_was_not_had_earlier_for_that():
    unknown = UnknownItems()
    unknown.add("a", 20.0)
    unknown.add("b", 30.0)
    unknown.add("a", 10.0)
    assert [*unknown.last.items()] == [("b", 30.0), ("a", 20.0)]


def test_an_item_takes_eight_bytes():
    unknown = UnknownItems()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    unknown.add_all([(f"news-article-2026-11-27-{n:08d}", float(n)) for n in range(100_000)])
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken < 10 * 100_000
