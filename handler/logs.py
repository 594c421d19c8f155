"""Logs as JSON lines in the form of Powertools, in Lambda and on one machine; the metrics' names in CloudWatch."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

NAMESPACE = "Upscaler"
#: The metrics' one dimension, `service`: stacks of one account share the namespace, functions' names are their own.
SERVICE = os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "upscaler")
FILE_BYTES = 5_000_000
FILES = 4


class _LogFile(RotatingFileHandler):
    """A file that is made again where somebody has removed it; where it cannot be written, that is said once."""

    _fails = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        if self.stream is not None and not Path(self.baseFilename).exists():
            self.stream.close()
            self.stream = None
        if self.stream is None:
            with suppress(OSError):  # opening it says what is wrong
                Path(self.baseFilename).parent.mkdir(exist_ok=True)
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """What went wrong is no line of a log that cannot be written."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._fails:
            self._fails = True
            print(f"error: the log cannot be written: {error}", file=sys.stderr, flush=True)


def setup(level: str, file: Path | None = None) -> None:
    """Log to standard error; or everything to a file that is rotated, and only warnings, as text, to standard error.

    Args:
        level: such as "INFO".
        file: its folder is made; `FILES` files of `FILE_BYTES` bytes are kept.
    """
    lines = LambdaPowertoolsFormatter(utc=True, service="upscaler")
    terminal: logging.Handler = logging.StreamHandler(sys.stderr)
    handlers = [terminal]
    if file is None:
        terminal.setFormatter(lines)
    else:
        terminal.setLevel(logging.WARNING)
        terminal.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        file.parent.mkdir(parents=True, exist_ok=True)
        rotated = _LogFile(file, maxBytes=FILE_BYTES, backupCount=FILES - 1, encoding="utf-8", delay=True)
        rotated.setFormatter(lines)
        handlers.append(rotated)
    # force: Lambda's runtime has put a handler there that would write every line a second time.
    logging.basicConfig(level=level, handlers=handlers, force=True)
    for name in ("botocore", "boto3", "urllib3", "httpx", "httpcore", "mangum"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every form that is malformed
