"""What a token says of the answer that it came with."""

import base64

import pytest

from longtide_server.attribution import MAX_ITEMS, Shown, make_token, read_token
from longtide_server.events import MAX_ID_BYTES

NOON_S = 1_767_268_800.5  # 2026-01-01 12:00 UTC
ITEMS = [("book", 1), ("song", 2), ("film", 1)]


def test_a_token_says_when_where_and_from_which_source():
    found = read_token(make_token(NOON_S, "snapshot-1", "home", ITEMS))
    assert [found.shown(item) for item, _ in ITEMS] == [
        Shown("2026-01-01", "snapshot-1", "home", source) for _, source in ITEMS
    ]
    assert found.shown("never shown") == Shown("2026-01-01", "snapshot-1", "home", 0)


def test_an_answer_of_nothing_has_a_token_too():
    assert read_token(make_token(NOON_S, "s", "", [])).shown("book") == Shown("2026-01-01", "s", "", 0)


def test_a_token_fits_into_the_field_of_an_event():
    items = [(f"item-{n}", 4) for n in range(1_000)]
    token = make_token(NOON_S, "🌊" * 100, "🌊" * 100, items)
    assert len(token) <= MAX_ID_BYTES
    found = read_token(token)
    assert found.shown("item-0").source == 4
    assert len(found.items) == MAX_ITEMS


@pytest.mark.parametrize(
    "token", ["", "x", "order-4711", "🌊", "A" * 512, base64.urlsafe_b64encode(b"x" * 40).decode()]
)
def test_what_is_no_token_says_nothing(token):
    assert read_token(token) is None


def test_a_token_that_was_changed_says_nothing():
    token = make_token(NOON_S, "snapshot-1", "home", ITEMS)
    changed = [token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :] for at in range(len(token) - 1)]
    assert {read_token(one) for one in changed} == {None}
