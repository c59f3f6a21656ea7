"""Turns a log into behaviour sequences, cuts them for validation, and packs them into training batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtide_server.events import EventType
from longtide_server.training.files.log import Log

TYPE_COUNT = len(EventType) + 1
"""Of event types, with 0 for none: they are numbers from 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """Every user's events in time order, one user after the other; equal times keep the order of the log."""

    owners: tuple[str, ...]
    """U users, and anonymous sessions, in the order of the log (`events.owner_key`)."""
    item_ids: tuple[str, ...]
    """I items, the most frequent first: item i of the arrays is item_ids[i - 1]; 0 is padding."""
    offsets: NDArray[np.int64]
    """(U + 1,): user u owns events offsets[u] to offsets[u + 1]."""
    items: NDArray[np.int64]
    """(N,) from 1 to I."""
    types: NDArray[np.int64]
    """(N,) event types."""
    times: NDArray[np.float64]
    """(N,) seconds since 1970."""
    gaps: NDArray[np.float32]
    """(N,) seconds since the user's event before; 0 for the first."""
    values: NDArray[np.float32]
    """(N,) NaN where absent."""

    @property
    def user_count(self) -> int:
        """How many users there are."""
        return len(self.owners)

    @property
    def item_count(self) -> int:
        """How many items there are, padding not counted."""
        return len(self.item_ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(U,) events of each user."""
        return np.diff(self.offsets)

    @property
    def owner(self) -> NDArray[np.int64]:
        """(N,) whose event each is."""
        return np.repeat(np.arange(self.user_count), self.lengths)

    @property
    def chosen(self) -> NDArray[np.bool_]:
        """(N,) whether the item was wanted. Who dislikes one has had it, but nobody is to be led to it by that."""
        return np.asarray(self.types != EventType.DISLIKE)

    def firsts(self) -> NDArray[np.bool_]:
        """(N,) whether the item was new to the user: what they have had is not recommended to them."""
        found = np.zeros(len(self.items), bool)
        found[np.unique(self._pairs(), return_index=True)[1]] = True
        return found

    def _pairs(self) -> NDArray[np.int64]:
        """(N,) one number for the user and the item of each."""
        return np.asarray(self.owner * (self.item_count + 1) + self.items)

    def leads_to(self, event_type: int) -> NDArray[np.bool_]:
        """(N,) whether the user does that with the event's item, then or later: who looks at something may buy it."""
        pairs, pair = np.unique(self._pairs(), return_inverse=True)
        events = np.flatnonzero(self.types == event_type)
        last = np.full(len(pairs), -1, np.int64)
        last[pair[events]] = events  # of those of one user with one item, the last one stays
        return np.asarray(np.arange(len(pair)) <= last[pair])

    def outcomes(self, events: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(V, TYPE_COUNT) whether users do what is of that type with the items of events (V,), one each at most; then
        or later."""
        event = np.full(self.user_count, len(self.items))
        event[self.owner[events]] = events
        row = np.zeros(self.user_count, np.int64)
        row[self.owner[events]] = np.arange(len(events))
        begun = event[self.owner]  # (N,) the user's event among them
        later = np.flatnonzero(np.arange(len(self.items)) >= begun)
        same = later[self.items[later] == self.items[begun[later]]]
        found = np.zeros((len(events), TYPE_COUNT), bool)
        found[row[self.owner[same]], self.types[same]] = True
        return found

    def of(self, user: int) -> slice:
        """Where a user's events are."""
        return slice(int(self.offsets[user]), int(self.offsets[user + 1]))


def to_sequences(log: Log) -> Sequences:
    """Sort a log into sequences. Items get their numbers by falling frequency, then by id."""
    rank = _by_frequency(np.bincount(log.item, minlength=len(log.item_ids)), log.item_ids)
    number = _places(rank)

    order = np.lexsort((log.time_s, log.user))  # lexsort is stable: ties keep the order of the log
    user, times = log.user[order], log.time_s[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(log.owners)))])
    gaps = np.diff(times, prepend=times[:1])
    gaps[offsets[:-1][np.diff(offsets) > 0]] = 0.0
    return Sequences(
        owners=log.owners,
        item_ids=tuple(log.item_ids[i] for i in rank),
        offsets=offsets.astype(np.int64),
        items=number[log.item[order]],
        types=log.event_type[order].astype(np.int64),
        times=times,
        gaps=gaps.astype(np.float32),
        values=log.value[order].astype(np.float32),
    )


def _by_frequency(counts: NDArray[np.int64], item_ids: tuple[str, ...]) -> list[int]:
    """The places of items, the most frequent first, equally frequent ones by id."""
    return sorted(range(len(item_ids)), key=lambda i: (-counts[i], item_ids[i]))


def _places(rank: list[int]) -> NDArray[np.int64]:
    """The other way round: of each item, its place from 1 on."""
    places = np.empty(len(rank), np.int64)
    places[rank] = np.arange(1, len(rank) + 1)
    return places


def places_by_frequency(sequences: Sequences) -> NDArray[np.int64]:
    """(I + 1,) each item's place where the most frequent of these sequences is first, of equals the smaller id."""
    counts = np.bincount(sequences.items, minlength=sequences.item_count + 1)[1:]
    return np.concatenate([[0], _places(_by_frequency(counts, sequences.item_ids))])


@dataclass(frozen=True, slots=True, eq=False)
class Holdout:
    """Histories without their targets, and the targets."""

    history: Sequences
    """What may be learned from: the catalogue and users are those of the whole log."""
    users: NDArray[np.int64]
    """(V,) the users who have a target."""
    targets: NDArray[np.int64]
    """(V,) the item that each of them chose next; 0 when the history's catalogue does not hold it."""
    outcomes: NDArray[np.bool_]
    """(V, TYPE_COUNT) whether they did with it what is of that type, then or later: who looked may have bought."""
    times: NDArray[np.float64]
    """(V,) when they chose it, seconds since 1970."""
    next_items: NDArray[np.int64]
    """(V,) the item of the event that comes right after the history, new or not; 0 as among the targets."""
    next_types: NDArray[np.int64]
    """(V,) the type of that event."""
    next_values: NDArray[np.float32]
    """(V,) the value of that event; NaN where it had none."""

    def of_users(self, rows: NDArray[np.int64]) -> Holdout:
        """Some of the users, by their rows."""
        return Holdout(
            history=self.history,
            users=self.users[rows],
            targets=self.targets[rows],
            outcomes=self.outcomes[rows],
            times=self.times[rows],
            next_items=self.next_items[rows],
            next_types=self.next_types[rows],
            next_values=self.next_values[rows],
        )


def nothing_held_out(sequences: Sequences) -> Holdout:
    """All of the log as history, and no targets."""
    return _held_out(sequences, np.ones(len(sequences.items), bool), np.zeros(0, np.int64), np.zeros(0, np.int64))


def _held_out(
    sequences: Sequences, keep: NDArray[np.bool_], users: NDArray[np.int64], events: NDArray[np.int64]
) -> Holdout:
    """What is kept as history, the first events of everyone, and one of the others of each of the users as target."""
    history = select(sequences, keep)
    nexts = sequences.offsets[users] + history.lengths[users]
    return Holdout(
        history=history,
        users=users,
        targets=sequences.items[events],
        outcomes=sequences.outcomes(events),
        times=sequences.times[events],
        next_items=sequences.items[nexts],
        next_types=sequences.types[nexts],
        next_values=sequences.values[nexts],
    )


def hold_out_last(
    sequences: Sequences,
    min_events: int = 3,
    *,
    include_seen: bool = False,
    most_users: int | None = None,
    seed: int = 0,
) -> Holdout:
    """Hold back what everyone last chose that was new to them, and what they did after it.

    With `include_seen`, it need not have been new. Who has less than `min_events` events up to there keeps them all and
    has no target, and so do others where more than `most_users` could have one; `seed` draws who has.
    """
    could_be = np.flatnonzero(sequences.chosen & (sequences.firsts() | include_seen))
    owner = sequences.owner
    target = np.full(sequences.user_count, -1, np.int64)
    target[owner[could_be]] = could_be  # of those of one user, the last one stays
    users = np.flatnonzero((target >= 0) & (target - sequences.offsets[:-1] >= min_events - 1))
    if most_users is not None:
        users = users[drawn(len(users), most_users, seed)]
    end = sequences.offsets[1:].copy()
    end[users] = target[users]
    return _held_out(sequences, np.arange(len(owner)) < end[owner], users, target[users])


def hold_out_after(sequences: Sequences, time_s: float, *, include_seen: bool = False) -> Holdout:
    """Hold back everything from a moment on; the target of a user is what they chose first that was new to them.

    With `include_seen`, it need not have been new.
    """
    keep = sequences.times < time_s
    could_be = ~keep & sequences.chosen
    users, targets = [], []
    for user in range(sequences.user_count):
        span = sequences.of(user)
        seen = set(sequences.items[span][keep[span]].tolist())
        later = span.start + np.flatnonzero(could_be[span])
        new = next((event for event in later.tolist() if include_seen or sequences.items[event] not in seen), None)
        if new is not None:
            users.append(user)
            targets.append(new)
    return _held_out(sequences, keep, np.array(users, np.int64), np.array(targets, np.int64))


def without_hindsight(holdout: Holdout) -> Holdout:
    """The holdout as a log that ends with the history would have it: its items only, numbered by their frequency in it.

    Targets that the history's items do not hold become 0. With the numbers of the whole log, an item that no event of
    the history names could be recommended, and ties, which go to the smaller number, would go to what becomes popular.
    """
    history = holdout.history
    counts = np.bincount(history.items, minlength=history.item_count + 1)[1:]
    known = [place for place in _by_frequency(counts, history.item_ids) if counts[place]]
    number = np.zeros(history.item_count + 1, np.int64)
    number[np.array(known, np.int64) + 1] = np.arange(1, len(known) + 1)
    item_ids = tuple(history.item_ids[place] for place in known)
    renumbered = replace(history, item_ids=item_ids, items=number[history.items])
    targets, next_items = number[holdout.targets], number[holdout.next_items]
    return replace(holdout, history=renumbered, targets=targets, next_items=next_items)


def select(sequences: Sequences, keep: NDArray[np.bool_]) -> Sequences:
    """The sequences without the events that are not kept; users and items stay, gaps are those to the kept events."""
    before = np.concatenate([[0], np.cumsum(keep)])
    offsets = before[sequences.offsets]
    times = sequences.times[keep]
    gaps = np.diff(times, prepend=times[:1])
    gaps[offsets[:-1][np.diff(offsets) > 0]] = 0.0
    return replace(
        sequences,
        offsets=offsets,
        items=sequences.items[keep],
        types=sequences.types[keep],
        times=times,
        gaps=gaps.astype(np.float32),
        values=sequences.values[keep],
    )


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A piece of some users' sequences, padded on the right with item 0."""

    users: NDArray[np.int64]
    """(B,)"""
    first: int
    """The position of the piece within its users' sequences; above 0 the state of the piece before goes on."""
    keep: NDArray[np.int64]
    """(B,) which rows of the piece before these are; of the batch, for the first piece."""
    lengths: NDArray[np.int64]
    """(B,) events of each row."""
    events: NDArray[np.int64]
    """(B, T) their numbers among all events of the sequences; 0 where there is padding."""
    items: NDArray[np.int64]
    """(B, T)"""
    types: NDArray[np.int64]
    """(B, T)"""
    gaps: NDArray[np.float32]
    """(B, T)"""
    values: NDArray[np.float32]
    """(B, T)"""
    targets: NDArray[np.int64]
    """(B, T) the item that came next; 0 where none did."""
    next_types: NDArray[np.int64]
    """(B, T) the type of that next event; 0 where none came."""
    next_gaps: NDArray[np.float32]
    """(B, T) seconds until that next event; NaN where none came."""
    next_values: NDArray[np.float32]
    """(B, T) the value of that next event; NaN where none came, or it had none."""


def _empty(kind: type[np.generic], value: float = 0) -> NDArray[Any]:
    return np.full((1, 1), value, kind)


EMPTY = Chunk(
    users=np.zeros(1, np.int64),
    first=0,
    keep=np.zeros(1, np.int64),
    lengths=np.ones(1, np.int64),
    events=_empty(np.int64),
    items=_empty(np.int64),
    types=_empty(np.int64),
    gaps=_empty(np.float32),
    values=_empty(np.float32, np.nan),
    targets=_empty(np.int64),
    next_types=_empty(np.int64),
    next_gaps=_empty(np.float32, np.nan),
    next_values=_empty(np.float32, np.nan),
)
"""Padding alone, from which nothing is learnt."""


def batches(
    sequences: Sequences, users: NDArray[np.int64], batch_events: int, chunk: int, rng: np.random.Generator | None
) -> Iterator[NDArray[np.int64]]:
    """Groups of users of similar length, at most `batch_events` events each, padding included and no piece of a history
    longer than `chunk`, or one user; shuffled when there is a generator.
    """
    lengths = sequences.lengths[users]
    noise = rng.random(len(users)) if rng else np.zeros(len(users))
    # A little noise on the logarithm of the length mixes the groups from epoch to epoch and keeps padding small.
    order = users[np.argsort(np.log(lengths + 1.0) + 0.3 * noise, kind="stable")]
    widths = np.minimum(sequences.lengths[order], chunk).clip(1)
    groups, at = [], 0
    while at < len(order):
        longest = np.maximum.accumulate(widths[at : at + batch_events])
        size = max(1, int(np.searchsorted(longest * np.arange(1, len(longest) + 1), batch_events, side="right")))
        groups.append(order[at : at + size])
        at += size
    for i in rng.permutation(len(groups)) if rng else range(len(groups)):
        yield groups[i]


def chunks(sequences: Sequences, users: NDArray[np.int64], chunk: int) -> Iterator[Chunk]:
    """Cut the sequences of one batch of users into pieces of at most `chunk` events, in order."""
    ends = sequences.offsets[1:][users]
    lengths = sequences.lengths[users]
    first, alive = 0, np.flatnonzero(lengths > 0)
    keep = alive
    while len(alive):
        left = np.minimum(lengths[alive] - first, chunk)
        offset = np.arange(int(left.max()))
        inside = offset < left[:, None]  # (B, T)
        index = np.where(inside, sequences.offsets[users[alive]][:, None] + first + offset, 0)
        has_next = inside & (index + 1 < ends[alive][:, None])
        following = np.where(has_next, index + 1, 0)
        yield Chunk(
            users=users[alive],
            first=first,
            keep=keep,
            lengths=left,
            events=index,
            items=np.where(inside, sequences.items[index], 0),
            types=sequences.types[index],
            gaps=sequences.gaps[index],
            values=sequences.values[index],
            targets=np.where(has_next, sequences.items[following], 0),
            next_types=np.where(has_next, sequences.types[following], 0),
            next_gaps=np.where(has_next, sequences.gaps[following], np.float32(np.nan)),
            next_values=np.where(has_next, sequences.values[following], np.float32(np.nan)),
        )
        first += chunk
        keep = np.flatnonzero(lengths[alive] > first)
        alive = alive[keep]


def ends_of_steps(batch_lengths: Sequence[NDArray[np.int64]], chunk: int, least: float) -> list[list[bool]]:
    """Of each piece of each batch, whether an optimiser step ends with it: with `least` events, or with the last piece.

    batch_lengths: (B,) lengths of the histories of each batch, all above 0.
    """
    ends: list[list[bool]] = []
    waiting = 0
    for lengths in batch_lengths:
        firsts = np.arange(0, int(lengths.max()), chunk)
        ends.append([])
        for events in np.clip(lengths[:, None] - firsts, 0, chunk).sum(axis=0).tolist():
            waiting += events
            ends[-1].append(waiting >= least)
            waiting = 0 if waiting >= least else waiting
    if ends:
        ends[-1][-1] = True
    return ends


def drawn(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """At most so many of the numbers below count, drawn with a seed, ascending."""
    return np.sort(np.random.default_rng(seed).choice(count, min(most, count), replace=False))
