#!/usr/bin/env python3
"""Receive webhooks: WEBHOOK_SECRET=... examples/receive.py [port] prints a line for each job that has ended."""

from __future__ import annotations

import base64
import hmac
import http.server
import json
import os
import sys
import time

SECRET = os.environ["WEBHOOK_SECRET"]
KEY = base64.b64decode(SECRET[6:]) if SECRET.startswith("whsec_") else SECRET.encode()


class Receiver(http.server.BaseHTTPRequestHandler):
    """Answers 204 to what the service has signed, 401 to all else."""

    def do_POST(self) -> None:  # noqa: D102 - the server looks for this name
        body = self.rfile.read(int(self.headers["Content-Length"]))
        id, at, given = (self.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
        signed = "v1," + base64.b64encode(hmac.digest(KEY, f"{id}.{at}.".encode() + body, "sha256")).decode()
        genuine = hmac.compare_digest(signed.encode(), given.encode()) and abs(time.time() - int(at)) < 300
        self.send_response(204 if genuine else 401)
        self.end_headers()
        if genuine:  # the same id may come twice
            event = json.loads(body)
            print(id, event["type"], event["result_url"], flush=True)


http.server.ThreadingHTTPServer(("", int(sys.argv[1]) if sys.argv[1:] else 9000), Receiver).serve_forever()
