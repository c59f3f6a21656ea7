"""Compares items, which hold arrays and so have no equality of their own."""

from dataclasses import fields

import numpy as np

from longtide_server.items.item import Item


def facts(item):
    """Everything that an item says."""
    values = {one.name: getattr(item, one.name) for one in fields(Item)}
    return {
        name: (str(value.dtype), value.tolist()) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }
