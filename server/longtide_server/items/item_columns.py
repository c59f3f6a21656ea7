"""What many items say, column by column, so that a condition on all of them is a few array operations.

Rows are numbers from 0. Whatever is a word (a category, a tag, a brand, the text of an attribute) has a list of the
rows that hold it; numbers and times stand in arrays. A change costs what it changes, however many rows there are.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from longtide_server.items.item import Item
from longtide_server.items.item_filter import (
    AllOf,
    AnyOf,
    HasBrand,
    HasFlag,
    HasNumber,
    HasPrice,
    HasTag,
    HasText,
    InCategory,
    InDomain,
    InLanguage,
    IsAvailable,
    ItemFilter,
    NoneOf,
    Published,
    Span,
)

FEW_ENTRIES = 64  # of a log are as fast one by one, and that many may stay in it that no longer count

SHORT_LOG = 4_096  # entries: a filter may name thousands of words, and then each is read without a mask of its own

Word = tuple[Hashable, ...]
"""Something that an item either holds or does not: the kind, then what it is."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is kept in memory of an item: what may be asked of it, and what people read."""

    title: str = ""
    words: tuple[Word, ...] = ()
    """None twice."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Of the attributes that are numbers."""
    price: float | None = None
    publish_s: float = -math.inf
    """-inf where there is none; seconds since 1970-01-01 UTC."""
    expire_s: float = math.inf
    """inf where there is none."""
    available: bool = True

    @property
    def offer(self) -> tuple[bool, float, float]:
        """What decides whether the item may be recommended."""
        return self.available, self.publish_s, self.expire_s


def facts_of(item: Item) -> Facts:
    """What is kept of an item."""
    return Facts(
        title=item.title,
        words=tuple(dict.fromkeys(_words(item))),
        numbers={name: float(value) for name, value in item.attributes.items() if _is_number(value)},
        price=item.price,
        publish_s=-math.inf if item.publish_time_s is None else item.publish_time_s,
        expire_s=math.inf if item.expire_time_s is None else item.expire_time_s,
        available=item.available,
    )


def _words(item: Item) -> Iterable[Word]:
    for path in item.categories:
        for depth in range(1, len(path) + 1):
            yield "category", path[:depth]
    for tag in item.tags:
        yield "tag", tag
    for kind, name in (("brand", item.brand), ("domain", item.domain), ("language", item.language)):
        if name:
            yield kind, name
    for name, value in item.attributes.items():
        if isinstance(value, str):
            yield "text", name, value
        elif isinstance(value, bool):
            yield "flag", name, value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class _Postings:
    """The rows that hold a word: a log of who came, as the row, and who left, as ~row; the last entry counts."""

    __slots__ = ("_log", "_only_came", "count", "word")

    def __init__(self, word: Word) -> None:
        self.word = word
        self.count = 0
        """How many rows hold it."""
        self._log = array("i")
        self._only_came = True

    def add(self, row: int) -> None:
        """Let a row in that is not there."""
        self._log.append(row)
        self.count += 1

    def remove(self, row: int) -> None:
        """Let a row go that is there."""
        self._log.append(~row)
        self.count -= 1
        self._only_came = False
        if len(self._log) > 2 * self.count + FEW_ENTRIES:
            self._shorten()

    def few(self) -> array[int]:
        """The rows, where they are few."""
        if not self._only_came:
            self._shorten()
        return self._log

    def mark(self, mask: NDArray[np.bool_]) -> None:
        """Set the rows in a mask of all rows."""
        if not self._only_came and len(self._log) <= SHORT_LOG:
            self._shorten()
        if self._only_came:
            mask[np.frombuffer(self._log, np.int32)] = True
        else:
            mask |= self._there(len(mask))

    def _there(self, rows: int) -> NDArray[np.bool_]:
        log = np.frombuffer(self._log, np.int32)
        there = np.zeros(rows, np.bool_)
        there[np.where(log < 0, ~log, log)] = log >= 0
        return there

    def _shorten(self) -> None:
        if self.count <= FEW_ENTRIES:
            there: dict[int, None] = {}
            for entry in self._log:
                if entry >= 0:
                    there[entry] = None
                else:
                    del there[~entry]
            self._log = array("i", there)
        else:
            log = np.frombuffer(self._log, np.int32)
            greatest = max(int(log.max()), ~int(log.min()))
            self._log = array("i", np.flatnonzero(self._there(greatest + 1)).astype(np.int32).tobytes())
        self._only_came = True


class _Numbers:
    """What rows say of a number: a log of rows and values, NaN for nothing any more; the last entry counts."""

    __slots__ = ("_once", "_rows", "_values", "count")

    def __init__(self) -> None:
        self.count = 0
        """How many rows say something."""
        self._rows = array("i")
        self._values = array("d")
        self._once = True
        """Whether no row is there twice."""

    def put(self, row: int, before: float | None, value: float | None) -> None:
        """A row says another number, or none."""
        self._rows.append(row)
        self._values.append(math.nan if value is None else value)
        self.count += (value is not None) - (before is not None)
        self._once = self._once and before is None
        if len(self._rows) > 2 * self.count + FEW_ENTRIES:
            self._shorten()

    def mark(self, mask: NDArray[np.bool_], span: Span) -> None:
        """Set the rows whose numbers are in a span in a mask of all rows."""
        if self._once:
            mask[np.frombuffer(self._rows, np.int32)[_within(np.frombuffer(self._values), span)]] = True
        else:
            mask |= _within(self._said(len(mask)), span)

    def _said(self, rows: int) -> NDArray[np.float64]:
        said = np.full(rows, math.nan)
        said[np.frombuffer(self._rows, np.int32)] = np.frombuffer(self._values)
        return said

    def _shorten(self) -> None:
        said = self._said(int(np.frombuffer(self._rows, np.int32).max()) + 1)
        rows = np.flatnonzero(~np.isnan(said))
        self._rows = array("i", rows.astype(np.int32).tobytes())
        self._values = array("d", said[rows].tobytes())
        self._once = True


def _within(numbers: NDArray[np.float64], span: Span) -> NDArray[np.bool_]:
    """Which numbers are in a span; NaN is in none."""
    within: NDArray[np.bool_] = numbers >= span.low
    within &= numbers <= span.high
    return within


class ItemColumns:
    """The facts of items by row, and which rows pass a filter."""

    def __init__(self, rows: int) -> None:
        """rows: how many there are at first; none of them exists."""
        self.rows = rows
        self._words: dict[Word, _Postings] = {}
        self._numbers: dict[str, _Numbers] = {}
        self._exists = np.zeros(rows, np.bool_)
        self._available = np.zeros(rows, np.bool_)
        self._price = np.full(rows, math.nan)
        self._publish_s = np.full(rows, -math.inf)
        self._expire_s = np.full(rows, math.inf)

    def put(self, row: int, before: Facts | None, after: Facts | None) -> None:
        """A row, one of those that there are or the next one, says something else. None: it does not exist."""
        if row >= len(self._exists):
            self._grow(row + 1)
        self.rows = max(self.rows, row + 1)
        was, now = before or _NOTHING, after or _NOTHING
        self._put_words(row, set(was.words), set(now.words))
        self._put_numbers(row, was.numbers, now.numbers)
        self._exists[row] = after is not None
        self._available[row] = now.available
        self._price[row] = math.nan if now.price is None else now.price
        self._publish_s[row] = now.publish_s
        self._expire_s[row] = now.expire_s

    def sharing(self, facts: Facts) -> Facts:
        """The same facts of a row, as `put`; the words that other rows hold as well are there once for all of them."""
        return replace(facts, words=tuple(self._words[word].word for word in facts.words))

    def passing(self, wanted: ItemFilter) -> NDArray[np.bool_]:
        """(rows,) which ones exist and pass a filter, as `item_filter.passes` says of each."""
        mask = self._passing(wanted)
        mask &= self._exists[: self.rows]
        return mask

    def recommendable(self, rows: slice | NDArray[np.int64], now_s: float) -> NDArray[np.bool_]:
        """Which of some rows exist, can be had, are published and have not expired."""
        offered = self._exists[rows] & self._available[rows]
        offered &= self._publish_s[rows] <= now_s
        offered &= self._expire_s[rows] > now_s
        return offered

    def next_change_s(self, rows: slice | NDArray[np.int64], now_s: float) -> float:
        """When time alone changes what `recommendable` says of some rows, at the earliest; inf for never."""
        publish_s, expire_s = self._publish_s[rows], self._expire_s[rows]
        published_s = publish_s.min(where=publish_s > now_s, initial=math.inf)
        return float(expire_s.min(where=expire_s > now_s, initial=published_s))

    def _passing(self, wanted: ItemFilter) -> NDArray[np.bool_]:
        """A mask (rows,) of the caller's own; what it says of rows that do not exist means nothing."""
        mask = np.zeros(self.rows, np.bool_)
        match wanted:
            case AllOf(filters):
                mask[:] = True
                for one in filters:
                    mask &= self._passing(one)
            case AnyOf(filters):
                for one in filters:
                    mask |= self._passing(one)
            case NoneOf(filters):
                for one in filters:
                    mask |= self._passing(one)
                np.logical_not(mask, out=mask)
            case InCategory(path):
                self._mark(mask, [("category", path)])
            case HasTag(names):
                self._mark(mask, (("tag", name) for name in names))
            case HasBrand(names):
                self._mark(mask, (("brand", name) for name in names))
            case InDomain(names):
                self._mark(mask, (("domain", name) for name in names))
            case InLanguage(names):
                self._mark(mask, (("language", name) for name in names))
            case HasText(attribute, texts):
                self._mark(mask, (("text", attribute, text) for text in texts))
            case HasFlag(attribute, flag):
                self._mark(mask, [("flag", attribute, flag)])
            case HasNumber(attribute, span):
                if (numbers := self._numbers.get(attribute)) is not None:
                    numbers.mark(mask, span)
            case HasPrice(span):
                mask = _within(self._price[: self.rows], span)
            case Published(start_s, end_s):
                publish_s = self._publish_s[: self.rows]
                np.logical_and(publish_s >= start_s, publish_s < end_s, out=mask)
                mask &= publish_s > -math.inf
            case IsAvailable(available):
                np.equal(self._available[: self.rows], available, out=mask)
        return mask

    def _mark(self, mask: NDArray[np.bool_], words: Iterable[Word]) -> None:
        few = array("i")  # of thousands of words, each with a few rows, together
        for word in words:
            if (postings := self._words.get(word)) is None:
                continue
            if postings.count <= FEW_ENTRIES:
                few.extend(postings.few())
            else:
                postings.mark(mask)
        if few:
            mask[np.frombuffer(few, np.int32)] = True

    def _put_words(self, row: int, before: set[Word], after: set[Word]) -> None:
        for word in before - after:
            postings = self._words[word]
            postings.remove(row)
            if not postings.count:
                del self._words[word]
        for word in after - before:
            if (found := self._words.get(word)) is None:
                found = self._words[word] = _Postings(word)
            found.add(row)

    def _put_numbers(self, row: int, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        for name in before.keys() | after.keys():
            was, now = before.get(name), after.get(name)
            if was == now:
                continue
            if (numbers := self._numbers.get(name)) is None:
                numbers = self._numbers[name] = _Numbers()
            numbers.put(row, was, now)
            if not numbers.count:
                del self._numbers[name]

    def _grow(self, rows: int) -> None:
        more = max(rows, 2 * len(self._exists)) - len(self._exists)
        self._exists = np.append(self._exists, np.zeros(more, np.bool_))
        self._available = np.append(self._available, np.zeros(more, np.bool_))
        self._price = np.append(self._price, np.full(more, math.nan))
        self._publish_s = np.append(self._publish_s, np.full(more, -math.inf))
        self._expire_s = np.append(self._expire_s, np.full(more, math.inf))


_NOTHING = Facts(available=False)
