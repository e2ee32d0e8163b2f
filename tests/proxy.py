"""A TCP proxy that cuts or silences connections at chosen bytes, and counts what it delivered to the server."""

import random
import socket
import struct
import threading
from contextlib import suppress


class CuttingProxy:
    """Forwards to `port`; each of the first connections with a body is cut after its own number of bytes.

    `delivered` lists, per connection, the bytes that were handed to the server's socket. A `silent` line stays open
    instead of being cut: what the client goes on to send is lost, until it is the client that leaves.
    """

    def __init__(
        self, port: int, cuts: list[int], *, reset: random.Random | None = None, listen: int = 0, silent: bool = False
    ) -> None:
        self._port = port
        self._cuts = list(cuts)
        self._reset = reset
        self._silent = silent
        self._listener = socket.create_server(("127.0.0.1", listen))
        self.port = int(self._listener.getsockname()[1])
        self.delivered: list[int] = []
        self.cut_count = 0
        self._open: set[socket.socket] = set()
        self._closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                upstream = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()
                continue
            self._open |= {client, upstream}
            threading.Thread(target=self._back, args=(upstream, client), daemon=True).start()
            threading.Thread(target=self._forth, args=(client, upstream), daemon=True).start()

    def _forth(self, client: socket.socket, upstream: socket.socket) -> None:
        sent = 0
        with suppress(OSError):
            while chunk := client.recv(65536):
                limit = self._cuts[0] if self._cuts else None
                if limit is not None and sent + len(chunk) > limit and sent + len(chunk) > 4096:
                    self._cuts.pop(0)
                    self.cut_count += 1
                    upstream.sendall(chunk[: max(0, limit - sent)])
                    self.delivered.append(max(sent, limit))
                    while self._silent and client.recv(65536):
                        pass
                    break
                upstream.sendall(chunk)
                sent += len(chunk)
        if self._reset is not None and self._reset.random() < 0.5:
            with suppress(OSError):  # RST instead of FIN
                upstream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._end(client, upstream)

    def _back(self, upstream: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while chunk := upstream.recv(65536):
                client.sendall(chunk)
        self._end(client, upstream)

    def _end(self, *sockets: socket.socket) -> None:
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
            self._open.discard(one)

    def close(self) -> None:
        """Stop listening and end what is open."""
        self._closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._end(*list(self._open))
