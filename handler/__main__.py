"""The whole service on one machine, a local directory in place of S3: python -m handler"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pydantic import SecretStr, ValidationError

from core import models
from core.errors import ModelError
from handler import logs, options
from handler.settings import Settings, get_settings
from handler.storage import ForeignDirectory, Storage, Unavailable, open_storage

#: Seconds for answers that are on their way, and for tiles that are being worked on, when the server is stopped.
GRACE_SECONDS = 30
_SAMPLE = Path(__file__).parents[1] / "samples" / "astronaut.jpg"


def main() -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m handler", description="The upscaler as a service. It is configured by environment variables."
    )
    parser.add_argument("--settings", action="store_true", help="print these variables as a table, and end")
    if parser.parse_args().settings:
        print(settings_table())
        return 0
    try:
        settings = get_settings()
    except ValidationError as error:
        for wrong in error.errors(include_url=False):
            name = "_".join(str(part) for part in wrong["loc"]).upper()
            print(f"error: {name + ': ' if name else ''}{wrong['msg']}", file=sys.stderr)
        return 2
    if unknown := _wrong_model(settings):
        print(f"error: {unknown}", file=sys.stderr)
        return 2
    try:
        listener = socket.create_server(
            (settings.host, settings.port), family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        )
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error  # socket adds the address to strerror once more
        print(f"error: cannot listen on {settings.host} port {settings.port}: {why}", file=sys.stderr)
        return 1
    with listener:
        try:
            storage = open_storage(settings)
            logs.setup(settings.log_level, settings.data_dir / ".logs" / "service.log" if settings.local else None)
        except ForeignDirectory as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except (Unavailable, OSError) as error:
            cause = error.__cause__ if isinstance(error, Unavailable) else error
            reason = cause.strerror if isinstance(cause, OSError) else error
            print(f"error: cannot write to {settings.data_dir}: {reason}; name another with DATA_DIR", file=sys.stderr)
            return 1
        _serve(settings, storage, listener)
    return 0


def _serve(settings: Settings, storage: Storage, listener: socket.socket) -> None:
    from handler import api, webhook
    from handler.local import Workers
    from handler.web import connections
    from handler.web.warm import warm

    service = api.app.state.service
    workers = Workers(storage, settings) if settings.local else None
    if workers is not None:
        service.start, service.queued = workers.put, workers.queued
        workers.start()
    service.most_listeners = min(service.most_listeners, connections.limit() // 4)
    warming = warm(settings, lambda: service.limiter.idle)
    print(_welcome(settings, listener.getsockname()[1]), flush=True)
    # uvicorn sends itself the signal again when it has stopped; what is left to do then is below.
    signal.signal(signal.SIGTERM, _exit)

    asked: list[float] = []  # when it was asked to stop

    def stopping() -> None:
        asked.append(time.monotonic())
        service.stopping.set()
        if workers is not None:
            workers.ask_to_stop()

    server = connections.Server(connections.configure(api.app, settings, GRACE_SECONDS), stopping)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        end = min([time.monotonic(), *asked]) + GRACE_SECONDS  # one time for answers and tiles
        if workers is not None:
            workers.stop(max(0.0, end - time.monotonic()))
        webhook.wait(max(1.0, end - time.monotonic()))
        if warming is not None:
            warming.join(max(0.0, end - time.monotonic()))
        if any(thread is not threading.current_thread() for thread in threading.enumerate()):
            # Somebody is in the middle of a tile. Torch aborts the process when Python ends under it, so Python does
            # not: jobs were handed back, and what lies in a working folder is removed by the next start.
            logging.shutdown()
            sys.stdout.flush()
            os._exit(0)


def settings_table() -> str:
    """Every setting with its default and its unit, in Markdown."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = None if field.default_factory else field.default
        default = default.get_secret_value() if isinstance(default, SecretStr) else default
        shown = "" if default in ("", None) else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        rows.append(f"| `{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def _wrong_model(settings: Settings) -> str:
    """Why MODEL or WARM_MODEL cannot be had, as a line; empty when it can. The hub is asked about what is not here."""
    for setting, given in (("MODEL", settings.model), ("WARM_MODEL", settings.warm_model)):
        name = options.in_models_dir(given, settings)
        if not name or name in models.MODELS or name == "none" or name.startswith("s3://"):
            continue
        try:
            spec = models.spec_of(name)
            if Path(name).exists():
                models.fetch(spec)
        except ModelError as error:
            return f"{setting}: {error}"
    return ""


def _exit(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _welcome(settings: Settings, port: int) -> str:
    """The address, and a line to try it with."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 - only compared
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    address = f"http://{host}:{port}"
    key = '-H "X-API-Key: $API_KEY" ' if settings.api_key.get_secret_value() else ""
    picture = _SAMPLE if _SAMPLE.is_file() else Path("photo.jpg")
    kept = f"bucket {settings.bucket}" if settings.bucket else f"{settings.data_dir.absolute()}"
    return (
        f"Upscaler on {address} (pictures and jobs in {kept}; stop with Ctrl-C)\n"
        f'  curl --fail-with-body -H "Prefer: wait=600" {key}-F "file=@{picture}" '
        f'"{address}/upscale?scale=2" --output {picture.stem}-x2.jpg'
    )


if __name__ == "__main__":
    sys.exit(main())
