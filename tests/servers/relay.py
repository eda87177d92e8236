"""A TCP relay that counts what a server sends, and can be cut off."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

__all__ = ["Relay"]

_SIZE_BYTES = 1 << 18


class Relay:
    """Stands before a server on this machine.

    Attributes
    ----------
    url : str
    sent_bytes : int
        From the server to its clients, headers included.
    """

    def __init__(self, port: int) -> None:
        self.sent_bytes = 0
        self._port = port
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._is_cut = False
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # A thread in accept() does not notice that its socket is closed by another one.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        with self._lock:
            self._is_cut = True
            sockets = list(self._open)
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self._is_cut:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._port))
            with self._lock:
                self._open |= {client, server}
            threading.Thread(target=self._move, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._move, args=(server, client, True), daemon=True).start()

    def _move(self, source: socket.socket, target: socket.socket, is_counted: bool) -> None:
        buffer = memoryview(bytearray(_SIZE_BYTES))
        with contextlib.suppress(OSError):
            while count := source.recv_into(buffer):
                target.sendall(buffer[:count])
                if is_counted:
                    with self._lock:
                        self.sent_bytes += count
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open.discard(source)
        source.close()
