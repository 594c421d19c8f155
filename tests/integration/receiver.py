"""A web server that webhooks are sent to."""

from __future__ import annotations

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """A web server that notes what it gets, and answers as told: a status, (status, headers), or a function.

    Args:
        answers: one for each request, the last one forever.
        address: of 127.0.0.0/8.
        context: for TLS.
    """

    def __init__(self, *answers: Any, address: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:  # noqa: N805
                body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
                answer = answers[min(len(self.requests), len(answers) - 1)] if answers else 204
                self.requests.append((handler.command, handler.path, dict(handler.headers), body))
                if callable(answer):
                    answer(handler)
                    return
                status, headers = answer if isinstance(answer, tuple) else (answer, {})
                handler.send_response(status)
                for name, value in headers.items():
                    handler.send_header(name, value)
                handler.send_header("Content-Length", "0")
                handler.end_headers()

            do_GET = do_POST  # noqa: N815

            def log_message(handler, *_: object) -> None:  # noqa: N805
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:
                pass  # clients hang up on us: that is what some of these tests are about

            def get_request(self) -> tuple[Any, Any]:
                connection, peer = super().get_request()
                if context:
                    connection = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                return connection, peer

        self._server = Server((address, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.port = self._server.server_port
        self.url = f"{'https' if context else 'http'}://{address}:{self.port}/hook?a=b"

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
