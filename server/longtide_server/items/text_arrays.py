"""Texts as arrays that are stored without pickling."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

SEPARATOR = "\0"
"""Between two names; none may hold it."""


def text_of(array: NDArray[np.uint8]) -> str:
    """The text that an array of UTF-8 bytes holds."""
    return array.tobytes().decode("utf-8", "surrogatepass")


def bytes_of(text: str) -> NDArray[np.uint8]:
    """A text as an array of UTF-8 bytes."""
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def names_of(array: NDArray[np.uint8]) -> tuple[str, ...]:
    """The names that `bytes_of_names` packed."""
    return tuple(text_of(array).split(SEPARATOR)) if len(array) else ()


def bytes_of_names(names: Iterable[str]) -> NDArray[np.uint8]:
    """Names, none of them empty, as one array."""
    return bytes_of(SEPARATOR.join(names))
