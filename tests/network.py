"""A way to a server that can go silent, as when a cable is pulled."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def network(address: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of the way, and what makes all connections silent that go it now.

    Nothing arrives any more, and nobody is told. Later connections are not silent.
    """
    host, port = address.rsplit(":", 1)
    silent, way = [threading.Event()], socket.create_server(("127.0.0.1", 0))

    def passed_on(source: socket.socket, sink: socket.socket, lost: threading.Event) -> None:
        with suppress(OSError):  # an end has closed it
            while data := source.recv(65_536):
                if lost.is_set():
                    return  # and nothing is closed
                sink.sendall(data)

    def accept() -> None:
        while True:
            try:
                here, _ = way.accept()
            except OSError:
                return
            there = socket.create_connection((host, int(port)))
            for ends in ((here, there), (there, here)):
                threading.Thread(target=passed_on, args=(*ends, silent[-1]), daemon=True).start()

    def silence() -> None:
        silent[-1].set()
        silent.append(threading.Event())

    threading.Thread(target=accept, daemon=True).start()
    with way:
        yield f"127.0.0.1:{way.getsockname()[1]}", silence
