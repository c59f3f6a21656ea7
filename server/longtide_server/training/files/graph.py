"""Reads a knowledge graph: triples of head, relation and tail, of which ends are items (`item:ID`) and entities.

What counts is what items share, so a triple becomes a fact of each item in it: the relation, and the other end. That
relations lead from one entity to another is not followed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.training.files.tables.columns import Column, Faults, id_text, shown
from longtide_server.training.files.tables.reading import read_table

ITEM, ENTITY = "item:", "entity:"
TRIPLE = ("head", "relation", "tail")

Facts = Mapping[str, tuple[tuple[str, str], ...]]
"""By item id: relations and what they lead to, none twice."""


def read_graph(path: Path) -> Facts:
    """The facts of a file of triples (CSV, JSON lines or Parquet with the columns head, relation and tail).

    An end is `item:ID` or `entity:NAME`. The first bad row is a LogError.
    """
    table = read_table(path, TRIPLE, (), {})
    faults = Faults(table)
    for name in ("head", "tail"):
        faults.mark_values(table.columns[name], [_end_fault(id_text(value)) for value in table.columns[name].values])
    relations = table.columns["relation"]
    faults.mark_values(relations, [None if id_text(value) else "is missing" for value in relations.values])
    faults.settle(skip_bad_rows=False)
    found: dict[str, dict[tuple[str, str], None]] = {}
    for head, relation, tail in zip(*(_texts(table.columns[name]) for name in TRIPLE), strict=True):
        # Two items that a triple joins share the second one: both have it as an entity.
        ends = (head, tail) if head.startswith(ITEM) else (tail, head)
        shared = tail if head.startswith(ITEM) else head
        for end in ends:
            if end.startswith(ITEM):
                entity = shared.removeprefix(ENTITY)
                found.setdefault(end.removeprefix(ITEM), {})[relation, entity] = None
    return {item_id: tuple(facts) for item_id, facts in found.items()}


def with_facts(infos: Mapping[str, ItemInfo], facts: Facts, item_ids: Collection[str]) -> dict[str, ItemInfo]:
    """What is known of items, and of those of a log, with the facts of the graph; its other items are left out."""
    found = dict(infos)
    for item_id in dict.fromkeys((*infos, *item_ids)):
        if item_id in facts:
            info = infos.get(item_id, ItemInfo())
            found[item_id] = replace(info, facts=facts[item_id])
    return found


def _texts(column: Column) -> list[str]:
    values = [id_text(value) for value in column.values]
    return [values[code] for code in column.codes.tolist()]


def _end_fault(end: str) -> str | None:
    for kind in (ITEM, ENTITY):
        if end.startswith(kind) and len(end) > len(kind):
            return None
    return f"{shown(end)} is neither item:ID nor entity:NAME"
