"""Other names of owners: a session that was merged into a user is one, and so is a user who was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set


class Names:
    """The names that were asked for lately, at most `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._owners: OrderedDict[str, str] = OrderedDict()
        self._names: dict[str, set[str]] = {}

    def owner(self, name: str) -> str:
        """Whose name it is: by itself, where nothing else is known."""
        return self._owners.get(name, name)

    def of(self, owner: str) -> Set[str]:
        """The other names of an owner."""
        return self._names.get(owner, frozenset())

    def remember(self, name: str, owner: str) -> None:
        """Take note of a name; the oldest ones go."""
        self.forget(name)
        self._owners[name] = owner
        self._names.setdefault(owner, set()).add(name)
        while len(self._owners) > self._capacity:
            self.forget(next(iter(self._owners)))

    def forget(self, name: str) -> None:
        """It is a name of its own again."""
        owner = self._owners.pop(name, None)
        if owner is not None:
            self._names[owner].discard(name)
            if not self._names[owner]:
                del self._names[owner]
