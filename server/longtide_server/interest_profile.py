"""What somebody is interested in, at all times and lately, by what the items are that they turned to. Pure functions.

Recent events count more, by how many came after them and not by when they were: who comes back after a year is
interested in what they were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longtide_server.events import EventType
from longtide_server.items.item_columns import Word
from longtide_server.users.user_state import UserState

LONG_HALF_LIFE = 200.0  # events
SHORT_HALF_LIFE = 5.0  # events
EVENTS_READ = 2_000
KINDS = ("category", "tag", "brand", "domain")
DISLIKE = int(EventType.DISLIKE)


@dataclass(frozen=True, slots=True)
class Interest:
    """Something that items have in common."""

    word: Word
    """The kind, one of KINDS, and its name or, of a category, its path."""
    share: float
    """Of what somebody did on items of which something is known: above 0, at most 1."""


@dataclass(frozen=True, slots=True)
class InterestProfile:
    """What somebody is interested in, the largest share first."""

    long_term: tuple[Interest, ...]
    short_term: tuple[Interest, ...]
    degraded_reason: str = ""


def liked_lately(user: UserState) -> list[int]:
    """The item numbers of what somebody did last and did not dislike, in time order."""
    pairs = zip(user.items[-EVENTS_READ:], user.types[-EVENTS_READ:], strict=True)
    return [number for number, kind in pairs if kind != DISLIKE]


def profile_of(
    liked: Sequence[int], words: Mapping[int, Sequence[Word]], limit: int, degraded_reason: str
) -> InterestProfile:
    """The `limit` largest interests of who liked item numbers, in time order; `words` says what each is like."""
    of_items = {number: [word for word in said if word[0] in KINDS] for number, said in words.items()}
    told = [of_items[number] for number in liked if of_items[number]]
    long_term, short_term = (_shares(told, half_life)[:limit] for half_life in (LONG_HALF_LIFE, SHORT_HALF_LIFE))
    return InterestProfile(tuple(long_term), tuple(short_term), degraded_reason)


def _shares(told: Sequence[Sequence[Word]], half_life: float) -> list[Interest]:
    """What events in time order are about, each counting half as much as one that is `half_life` events later."""
    sums: defaultdict[Word, float] = defaultdict(float)
    total = 0.0
    for age, words in enumerate(reversed(told)):
        weight = 0.5 ** (age / half_life)
        total += weight
        for word in words:
            sums[word] += weight
    interests = [Interest(word, share / total) for word, share in sums.items()]
    return sorted(interests, key=lambda one: -one.share)
