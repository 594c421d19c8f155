"""The multipart form of a picture and its options."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

import core
from handler.web import problems
from handler.web.problems import Problem


@asynccontextmanager
async def receive_form(request: Request) -> AsyncIterator[tuple[UploadFile, list[tuple[str, str]]]]:
    """The one picture of a multipart form, on disk where it is large, and the other fields.

    Yields:
        The file, and (name, value) of each field in the order of the form.

    Raises:
        Problem: not a form, malformed, none or several pictures, or too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Problem("unsupported_media_type")
    try:
        form = await request.form(max_files=2, max_fields=20, max_part_size=8192)
    except Problem:  # too large, from the guard
        raise
    except HTTPException as error:
        cause = error.__context__.__cause__ if error.__context__ else None
        why = str(cause or error.detail).rstrip(".")
        raise Problem("malformed_request", f"the multipart form cannot be read: {why[:1].lower()}{why[1:]}") from error
    try:
        files = [(name, part) for name, part in form.multi_items() if isinstance(part, UploadFile)]
        files = [(name, part) for name, part in files if part.filename or part.size]  # a form sent with none chosen
        fields = [(name, part) for name, part in form.multi_items() if isinstance(part, str)]
        if len(files) > 1:
            raise Problem("several_files")
        if not files or files[0][0] != "file":
            found = f", not {files[0][0][:100]!r}" if files else ""
            raise Problem("no_file", problems.CODES["no_file"].example + found)
        yield files[0][1], fields
    finally:
        await form.close()


def merge_options(query: list[tuple[str, str]], fields: list[tuple[str, str]]) -> dict[str, str]:
    """Options from the query and from the form.

    Raises:
        core.OptionsError.
    """
    merged: dict[str, str] = {}
    for name, value in [*query, *fields]:
        if name in merged:
            raise core.OptionsError(f"{name[:100]} is given twice: give it once, in the query or in the form")
        merged[name] = value
    return merged
