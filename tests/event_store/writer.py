"""Writes events for ever from several callers, and says which are acknowledged: `python writer.py PATH [NAME]`.

With a name, which its events' ids begin with, it shares the file with others.
"""

import asyncio
import sys
from pathlib import Path

from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.events import Event


async def write_for_ever(store, caller):
    batch = 0
    while True:
        ids = [f"{NAME}{caller}-{batch}-{place}" for place in range(3)]
        await store.write([Event(event_id, "ann", "a", 1, float(batch)) for event_id in ids])
        print(*ids, sep="\n", flush=True)
        batch += 1


NAME = "".join(sys.argv[2:])


async def main():
    store = SqliteEventStore(Path(sys.argv[1]), shared=bool(NAME))
    await asyncio.gather(*(write_for_ever(store, caller) for caller in range(4)))


asyncio.run(main())
