"""Gives memory that was freed back to the system.

glibc keeps what was freed for itself, and tensors whose sizes change from step to step leave holes that the next ones
do not fit: a process that trains grows from epoch to epoch, although it holds no more than before.
"""

from __future__ import annotations

import ctypes

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Absent where the C library is another one, such as musl, which gives back by itself."""


def give_back() -> None:
    """Takes some hundredths of a second; for the end of a long piece of work."""
    if _TRIM is not None:
        _TRIM(0)
