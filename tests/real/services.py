"""Services behind a tunnel, and their clients."""

import contextlib
import socket
import threading

from harness import PATIENCE


class Upper:
    """A service that answers with its input in capitals."""

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                stream, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    @staticmethod
    def _serve(stream):
        with stream, contextlib.suppress(OSError):
            for chunk in iter(lambda: stream.recv(1 << 16), b""):
                stream.sendall(chunk.upper())

    def __exit__(self, *_):
        self.listener.close()


def asked(port, data):
    """Sends a request and returns the required part of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as stream:
        threading.Thread(target=stream.sendall, args=(data,), daemon=True).start()
        return stream.makefile("rb").read(len(data))
