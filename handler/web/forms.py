"""The picture of a request and its options: a multipart form, the picture itself as the body, or JSON."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from tempfile import SpooledTemporaryFile
from urllib.parse import unquote_to_bytes

import anyio.to_thread
from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

import core
from handler.web import problems, sources
from handler.web.problems import Problem
from handler.web.service import Service

#: What a part with a picture may be called.
PARTS = ("file", "image")
#: A file name as RFC 8187 encodes it, which the parser passes over.
_ENCODED_NAME = re.compile(rb"filename\*\s*=\s*utf-8'[^']*'([^;\s]+)", re.IGNORECASE)


@asynccontextmanager
async def receive_picture(
    request: Request, service: Service
) -> AsyncIterator[tuple[UploadFile, list[tuple[str, object]]]]:
    """As `receive_form`; the picture may also be in JSON, or lie where that says.

    Raises:
        Problem: also for a picture that cannot be fetched.
    """
    if _kind(request) != "application/json":
        async with receive_form(request) as (file, fields):
            yield file, list(fields)
        return
    with _room():
        file, named = await _json(request, service)
    try:
        yield file, list(named.items())
    finally:
        await file.close()


@asynccontextmanager
async def receive_form(request: Request) -> AsyncIterator[tuple[UploadFile, list[tuple[str, str]]]]:
    """The one picture of a request, on disk where it is large, and the other fields of its form.

    Yields:
        The file, and (name, value) of each field in the order of the form.

    Raises:
        Problem: neither a form nor a picture, malformed, cut off, none or several pictures, or too large.
    """
    kind = _kind(request)
    with _room():
        if kind == "multipart/form-data":
            form = await _form(request)
        elif kind.startswith("image/") or kind == "application/octet-stream":
            form = FormData([("file", await _body(request))])
        else:
            raise Problem("unsupported_media_type")
    try:
        files = [(name, part) for name, part in form.multi_items() if isinstance(part, UploadFile)]
        files = [(name, part) for name, part in files if part.filename or part.size]  # a form sent with none chosen
        fields = [(name, part) for name, part in form.multi_items() if isinstance(part, str)]
        if len(files) > 1:
            raise Problem("several_files")
        if not files or files[0][0] not in PARTS:
            found = f", not {files[0][0][:100]!r}" if files else ""
            raise Problem("no_file", problems.CODES["no_file"].example + found)
        yield files[0][1], fields
    finally:
        await form.close()


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@contextmanager
def _room() -> Iterator[None]:
    """Where large uploads lie there may be no room."""
    try:
        yield
    except OSError as error:
        raise Problem("storage_unavailable", "there is no room for uploads at the moment") from error


class _Parser(MultiPartParser):
    """Starlette's, which also takes a picture without a file name, and knows whether the form was whole."""

    whole = False

    def on_headers_finished(self) -> None:
        """A part that must be a picture is a file, whether its file has a name or not."""
        part = self._current_part
        _, options = parse_options_header(part.content_disposition)
        if b"filename" not in options and options.get(b"name", b"").decode(errors="replace") in PARTS:
            encoded = _ENCODED_NAME.search(part.content_disposition or b"")
            name = unquote_to_bytes(encoded[1]).replace(b"\\", b"_").replace(b'"', b"_") if encoded else b""
            part.content_disposition = (part.content_disposition or b"") + b'; filename="' + name + b'"'
        super().on_headers_finished()

    def on_end(self) -> None:
        """The last boundary was there."""
        self.whole = True


async def _json(request: Request, service: Service) -> tuple[UploadFile, dict[str, object]]:
    """The picture that JSON names or holds, and its other fields."""
    body = await _body(request)
    try:
        source, fields = await anyio.to_thread.run_sync(sources.parse, body.file, limiter=service.json)
    finally:
        await body.close()
    return await sources.receive(request, service, source), fields


async def _form(request: Request) -> FormData:
    async with aclosing(request.stream()) as stream:
        parser = _Parser(request.headers, stream, max_files=2, max_fields=20, max_part_size=8192)
        try:
            form = await parser.parse()
        except MultiPartException as error:
            why = str(error.__cause__ or error.message).rstrip(".")
            detail = f"the multipart form cannot be read: {why[:1].lower()}{why[1:]}"
            raise Problem("malformed_request", detail) from error
    if not parser.whole and (parser.items or parser._current_part.content_disposition):
        for file in parser._files_to_close_on_error:
            file.close()
        raise Problem("malformed_request", "the form ends before its last boundary: it was cut off on the way")
    return form


async def _body(request: Request) -> UploadFile:
    """The body of a request that is the picture itself."""
    _, options = parse_options_header(request.headers.get("content-disposition"))
    name = options.get(b"filename", b"").decode(errors="replace")
    file = SpooledTemporaryFile(max_size=sources.IN_MEMORY)  # noqa: SIM115 - the upload closes it
    upload = UploadFile(file, size=0, filename=name, headers=request.headers)  # type: ignore[arg-type]
    try:
        async for piece in request.stream():
            await upload.write(piece)
        await upload.seek(0)
    except BaseException:
        await upload.close()
        raise
    return upload


def merge_options(query: Sequence[tuple[str, object]], fields: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Options from the query and from the form or JSON.

    Raises:
        core.OptionsError.
    """
    merged: dict[str, object] = {}
    for name, value in [*query, *fields]:
        if name in merged:
            raise core.OptionsError(f"{name[:100]} is given twice: give it once, in the query or in the body")
        merged[name] = value
    return merged
