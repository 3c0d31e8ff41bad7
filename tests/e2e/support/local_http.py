"""What the stand-ins for servers on this machine have in common: one listener on a free port, quiet, in threads."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, TypeVar

Served = TypeVar("Served", bound="LocalHttp")


class LocalHttp:
    """A server whose requests are answered by `answer`."""

    # Other methods are refused as not implemented.
    METHODS: ClassVar[tuple[str, ...]] = ("GET", "HEAD")
    _server: ThreadingHTTPServer | None = None

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self: Served) -> Served:
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

        for method in self.METHODS:
            setattr(Handler, f"do_{method}", lambda request: answer(request))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        raise NotImplementedError
