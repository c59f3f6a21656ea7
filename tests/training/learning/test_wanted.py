"""What counts as something to foresee."""

import numpy as np

from longtide_server.events import EventType
from longtide_server.training.dataset import Sequences
from longtide_server.training.learning.wanted import Wanted, counts

VIEW, PURCHASE, DISLIKE = EventType.VIEW, EventType.PURCHASE, EventType.DISLIKE


def shop(*words: str) -> Sequences:
    """A user a word, an item a letter: a small one is viewed, a large one bought; after a minus, disliked."""
    letters = [[letter for letter in word if letter != "-"] for word in words]
    types = []
    for word in words:
        for before, letter in zip(" " + word, word, strict=False):
            if letter != "-":
                types.append(DISLIKE if before == "-" else PURCHASE if letter.isupper() else VIEW)
    items = [ord(letter.lower()) - ord("a") + 1 for word in letters for letter in word]
    count = len(items)
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(len(words))),
        item_ids=tuple("abcdefgh"),
        offsets=np.concatenate([[0], np.cumsum([len(word) for word in letters])]),
        items=np.array(items),
        types=np.array(types),
        times=np.zeros(count),
        gaps=np.zeros(count, np.float32),
        values=np.full(count, np.nan, np.float32),
    )


def test_what_leads_to_what_is_wanted_counts_in_full():
    # u0 views a, b and c and buys b; u1, who views b, buys nothing; u2 buys at once what she views afterwards.
    log = shop("abcB", "b", "Bb")
    assert counts(log, Wanted(PURCHASE, 0.25)).tolist() == [0.25, 1, 0.25, 1, 0.25, 1, 0.25]
    assert counts(log, Wanted(PURCHASE, 0.0)).tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert counts(log, Wanted(0, 0.25)).tolist() == counts(log).tolist() == [1] * 7


def test_nobody_is_led_to_what_they_dislike():
    assert counts(shop("a-bc", "b-b")).tolist() == [1, 0, 1, 1, 0]
    assert counts(shop("b-bB"), Wanted(PURCHASE, 0.25)).tolist() == [1, 0, 1]
