"""Answers as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from longtide import Recommendations, SimilarUser
from longtide_server.cli.base import uncut


def recommendations_table(title: str, answer: Recommendations) -> Table:
    """Rank, item, score, the similar users who went on to it, and the sources that brought it."""
    table = Table(title=Text(title), title_justify="left")
    for name, justify in (("#", "right"), ("item", "left"), ("title", "left"), ("score", "right"),
                          ("similar users who went on to it", "left"), ("from", "left")):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for place, item in enumerate(answer, 1):
        people = ", ".join(f"{neighbor.user_id} ({neighbor.similarity:.2f})" for neighbor in item.neighbors)
        sources = ", ".join(share.source.name.lower() for share in item.sources)
        table.add_row(str(place), Text(item.item_id), Text(item.title), f"{item.score:.4f}", Text(people), sources)
    return uncut(table)


def similar_users_table(title: str, users: Iterable[SimilarUser], titles: Mapping[str, str]) -> Table:
    """The method's own table: user, items, similarity."""
    table = Table("user", "went on to", "similarity", title=Text(title), title_justify="left")
    for user in users:
        names = [titles.get(item, item) for item in user.next_item_ids[:3]]
        table.add_row(Text(user.user_id), Text("; ".join(names)), f"{user.similarity:.3f}")
    return uncut(table)


def items_table(title: str, items: Sequence[str], titles: Mapping[str, str]) -> Table:
    """Items with their titles, in order."""
    table = Table("item", "title", title=Text(title), title_justify="left")
    for item in items:
        table.add_row(Text(item), Text(titles.get(item, "")))
    return uncut(table)
