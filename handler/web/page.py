"""The page at /."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

_PAGE = Path(__file__).parent / "index.html"


@cache
def page(local: bool) -> tuple[str, str]:
    """The page at / and its Content-Security-Policy, which allows the page's own script and style by their hashes."""
    text = _PAGE.read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        parts = text.split(f"<{tag}>")[1:]
        digests = [hashlib.sha256(part.partition(f"</{tag}>")[0].encode()).digest() for part in parts]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    bucket = "" if local else " https:"  # uploads and results go straight to and from S3
    return text, (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        f"img-src 'self' blob: data:{bucket}; connect-src 'self'{bucket}; "
        f"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
