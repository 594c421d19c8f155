"""Names of files: safe in a key and in a header."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import quote

#: Longest name in a key, in UTF-8 bytes.
MAX_NAME = 200

#: An absolute path, but not the path of a URL.
_PATH = re.compile(r"(?<![\w:/.])/(?:[^\s/:,;]+/)+([^\s/:,;]*)")


def without_folders(text: str) -> str:
    """A message with paths of this machine shortened to their last part: the rest is nobody's business."""
    return _PATH.sub(r"\1", text)


def file_name(raw: str, default: str = "image") -> str:
    """A name fit for a key and for saving: the last part of a path, no control characters, at most 200 UTF-8 bytes.

    The suffix survives shortening. A name of which nothing remains becomes `default`.
    """
    # Browsers on Windows sent whole paths once, so a backslash separates too.
    name = re.split(r"[/\\]", raw.encode(errors="ignore").decode())[-1]
    name = "".join(c for c in name if c.isprintable()).strip(". ")
    path = PurePosixPath(name or default)
    suffix = path.suffix if len(path.suffix.encode()) <= 16 else ""
    stem = str(path)[: len(str(path)) - len(suffix)]
    name = stem.encode()[: MAX_NAME - len(suffix.encode())].decode(errors="ignore") + suffix
    return name.rstrip(". ")  # where it was cut, too


def content_disposition(filename: str) -> str:
    """The header that saves a response under this name: RFC 6266, with an ASCII fallback and the RFC 8187 form."""
    name = file_name(filename)
    # Quotes and backslashes would need escapes that clients read differently; percent signs are decoded by some.
    fallback = re.sub(r'[^ -~]|["%\\]', "_", name)
    header = f'attachment; filename="{fallback}"'
    if fallback != name:
        header += "; filename*=UTF-8''" + quote(name, safe="!#$&+-.^_`|~")
    return header
