"""What a client prefers, in headers."""

from __future__ import annotations

from core.formats import FORMATS, MEDIA_TYPES

#: The longest that anybody may wait for an answer, seconds.
MOST_SECONDS = 3600.0


def preferred(prefer: str) -> tuple[bool, float | None]:
    """Whether a job is wanted at once, and how many seconds the client waits for a picture (RFC 7240).

    Args:
        prefer: the header's value. Preferences that are unknown or make no sense are passed over.
    """
    wants_job, wait = False, None
    for part in prefer.replace(";", ",").lower().split(","):
        name, _, value = (text.strip() for text in part.partition("="))
        if name == "respond-async":
            wants_job = True
        elif name == "wait" and value.isascii() and value.isdigit() and len(value) < 6:
            wait = min(float(value), MOST_SECONDS)
    return wants_job, wait


def accepted(accept: str) -> str | None:
    """The format of a result that a client wants by its Accept header (RFC 9110, 12.5.1), or None where any will do.

    Only a client that takes certain types and nothing else means it: browsers and libraries add wildcards.
    """
    formats = {MEDIA_TYPES[format]: format for format in FORMATS}
    best, found = 0.0, None
    for part in accept.lower().split(","):
        kind, *parameters = (text.strip() for text in part.split(";"))
        if "*" in kind:
            return None
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        if kind in formats and weight > best:
            best, found = weight, formats[kind]
    return found
