"""One small interface for objects named by keys, and two stores behind it: S3, and a local directory.

StorageError
├── InvalidKey     a key that no store takes
├── NotFound       nothing is stored under the key
├── Exists         create() came second
├── Changed        swap() came second: the object is no longer the one that was read
├── LinkRefused    a local link was tampered with, is expired, or does not allow this
└── Unavailable    the store did not answer, or failed, also when asked again

Both stores make the same promises. An object is there whole or not at all: nobody reads half of a write. `create` and
`swap` have one winner, over threads, processes and machines. Deleting what is not there is no error.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import hmac
import json
import mimetypes
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from handler.settings import Settings

JSON = "application/json"
#: Where the local HTTP layer answers the links of `LocalStorage`; the token is the query parameter `token`.
UPLOAD_PATH = "/storage/upload"
DOWNLOAD_PATH = "/storage/download"


class StorageError(Exception):
    """Base of the tree."""


class InvalidKey(StorageError):
    """A key that no store takes: see `check_key`."""


class NotFound(StorageError):
    """Nothing is stored under the key."""


class Exists(StorageError):
    """Something is stored under the key already."""


class Changed(StorageError):
    """The object is no longer the one that was read; it may also be gone."""


class LinkRefused(StorageError):
    """A local link was tampered with, is expired, or does not allow this content type or size."""


class Unavailable(StorageError):
    """The store did not answer or failed, also when asked again; trying later may help."""


@dataclass(frozen=True)
class ObjectInfo:
    """What is known of an object without reading it.

    Attributes:
        key: the object's name.
        size: bytes.
        etag: changes with every write; opaque, for `swap`.
        modified: time of the last write, in UTC.
        content_type: media type; empty in the answers of `list`, which S3 does not give it to.
    """

    key: str
    size: int
    etag: str
    modified: datetime
    content_type: str = ""


@dataclass(frozen=True)
class UploadLink:
    """How a client sends a file without credentials: a form (multipart/form-data) with `fields`, then the part `file`.

    Attributes:
        url: where to; of `LocalStorage`, a path on the service itself unless it was given a `base_url`.
        method: always "POST".
        fields: form fields to send before the file, unchanged.
        max_bytes: a larger file is refused, and so is an empty one.
        expires: in UTC.
    """

    url: str
    method: str
    fields: dict[str, str]
    max_bytes: int
    expires: datetime


@dataclass(frozen=True)
class Grant:
    """What a local link allows.

    Attributes:
        action: "upload" or "download".
        key: of the object.
        expires: in UTC.
        content_type: upload: the only type allowed.
        max_bytes: upload: the largest file allowed.
        filename: download: the name to save under.
    """

    action: str
    key: str
    expires: datetime
    content_type: str = ""
    max_bytes: int = 0
    filename: str = ""


class Storage(Protocol):
    """Objects by key. Every method raises `InvalidKey` for a bad key, and `Unavailable` when the store fails."""

    def get(self, key: str) -> tuple[bytes, str]:
        """The whole object and its etag, for small ones. Raises: NotFound."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """At most `length` bytes from `start` on; fewer, or none, where the object ends. Raises: NotFound."""

    def download(self, key: str, path: Path) -> None:
        """Write the object to a file, whole or not at all. Raises: NotFound."""

    def put(self, key: str, data: bytes, content_type: str) -> str:
        """Store bytes, replacing what was there; gives the etag."""

    def upload(self, path: Path, key: str, content_type: str) -> None:
        """Store a file of any size, streaming, replacing what was there."""

    def create(self, key: str, data: bytes, content_type: str = JSON) -> str:
        """Store bytes where nothing is stored yet; gives the etag. Raises: Exists."""

    def swap(self, key: str, data: bytes, etag: str, content_type: str = JSON) -> str:
        """Replace exactly the object that has this etag; gives the new etag. Raises: Changed."""

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""

    def head(self, key: str) -> ObjectInfo:
        """Size, type and etag. Raises: NotFound."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with this text, in no order that means anything."""

    def upload_link(self, key: str, content_type: str, max_bytes: int, seconds: int) -> UploadLink:
        """Let somebody store one file of exactly this type, of 1 to `max_bytes` bytes, for some seconds."""

    def download_link(self, key: str, filename: str, seconds: int) -> str:
        """A URL that downloads the object under this file name, for some seconds."""

    def sweep(self, older_than: datetime) -> int:
        """Remove what was last written before this time, and say how many; S3 leaves it to the lifecycle rule: 0."""


def open_storage(settings: Settings) -> Storage:
    """The store that the settings name: S3 where there is a bucket, else the local directory."""
    if settings.bucket:
        return S3Storage(settings.bucket, endpoint_url=settings.s3_endpoint_url or None)
    return LocalStorage(settings.data_dir)


def check_key(key: str) -> str:
    """The key itself, if both stores take it.

    Any text goes, spaces, `+`, `%` and `été` included, except: empty, over 1024 bytes of UTF-8, a NUL, a lone
    surrogate, and parts between slashes that are empty, `.` or `..` (so no key is absolute or leaves its folder).

    Raises:
        InvalidKey: with the reason.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidKey("a key must be valid Unicode") from None
    if not 0 < size <= 1024:
        raise InvalidKey(f"a key has 1 to 1024 bytes, this one has {size}")
    if "\0" in key:
        raise InvalidKey("a key holds no NUL")
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise InvalidKey("a key has no empty part, no '.' and no '..' between its slashes")
    return key


def file_name(raw: str, default: str = "image") -> str:
    """A name fit for a key and for saving: the last part of a path, no control characters, at most 200 UTF-8 bytes.

    The suffix survives shortening. A name of which nothing remains becomes `default`.
    """
    # Browsers on Windows sent whole paths once, so a backslash separates too.
    name = re.split(r"[/\\]", raw.encode(errors="ignore").decode())[-1]
    name = "".join(c for c in name if c.isprintable()).strip().strip(".").strip()
    path = PurePosixPath(name or default)
    suffix = path.suffix if len(path.suffix.encode()) <= 16 else ""
    stem = str(path)[: len(str(path)) - len(suffix)]
    return stem.encode()[: 200 - len(suffix.encode())].decode(errors="ignore") + suffix


def content_disposition(filename: str) -> str:
    """The header that saves a response under this name: RFC 6266, with an ASCII fallback and the RFC 8187 form."""
    name = file_name(filename)
    # Quotes and backslashes would need escapes that clients read differently; percent signs are decoded by some.
    fallback = re.sub(r'[^ -~]|["%\\]', "_", name)
    header = f'attachment; filename="{fallback}"'
    if fallback != name:
        header += "; filename*=UTF-8''" + quote(name, safe="!#$&+-.^_`|~")
    return header


class S3Storage:
    """A bucket of S3, or of a server that speaks its protocol. The client is made at first use, and kept.

    Args:
        bucket: its name.
        endpoint_url: of a server other than AWS.
        attempts: requests at most for one call, with growing pauses in between.
        timeout: seconds to connect, and to wait for the next bytes.
    """

    def __init__(
        self, bucket: str, *, endpoint_url: str | None = None, attempts: int = 4, timeout: float = 20.0
    ) -> None:
        self.bucket = bucket
        self.endpoint_url = endpoint_url
        self._attempts = attempts
        self._timeout = timeout

    @cached_property
    def client(self) -> S3Client:
        """The boto3 client; safe to share between threads."""
        # Imported here: local mode never needs boto3, and on Lambda it is loaded beside the rest of the cold start.
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            config=Config(
                signature_version="s3v4",
                connect_timeout=min(self._timeout, 5.0),
                read_timeout=self._timeout,
                retries={"mode": "standard", "total_max_attempts": self._attempts},
                # "virtual" makes links to the region; S3 redirects others for hours after a bucket was made.
                # Other servers rarely have a host name for each bucket, and names with a dot have no certificate.
                s3={"addressing_style": "path" if self.endpoint_url or "." in self.bucket else "virtual"},
            ),
        )

    def get(self, key: str) -> tuple[bytes, str]:
        """See `Storage`."""
        return self._read(key)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """See `Storage`."""
        if length <= 0:
            self.head(key)
            return b""
        return self._read(key, f"bytes={start}-{start + length - 1}")[0]

    def _read(self, key: str, byte_range: str | None = None) -> tuple[bytes, str]:
        from botocore.exceptions import BotoCoreError, ClientError

        wanted = {"Range": byte_range} if byte_range else {}
        for left in reversed(range(self._attempts)):
            with _s3_errors(key):
                try:
                    answer = self.client.get_object(Bucket=self.bucket, Key=check_key(key), **wanted)  # type: ignore[arg-type]
                except ClientError as error:
                    if error.response["Error"]["Code"] == "InvalidRange":  # it starts at or after the end
                        return b"", ""
                    raise
                try:
                    with closing(answer["Body"]) as body:
                        return body.read(), answer["ETag"]
                except (BotoCoreError, OSError):
                    # botocore tries requests again, but not the reading of their answers.
                    if not left:
                        raise
        raise AssertionError("unreachable")

    def download(self, key: str, path: Path) -> None:
        """See `Storage`."""
        with _s3_errors(key):
            self.client.download_file(self.bucket, check_key(key), str(path))

    def put(self, key: str, data: bytes, content_type: str) -> str:
        """See `Storage`."""
        return self._put(key, data, content_type)

    def upload(self, path: Path, key: str, content_type: str) -> None:
        """See `Storage`; in parts where it is large."""
        with _s3_errors(key):
            self.client.upload_file(str(path), self.bucket, check_key(key), ExtraArgs={"ContentType": content_type})

    def create(self, key: str, data: bytes, content_type: str = JSON) -> str:
        """See `Storage`."""
        try:
            return self._put(key, data, content_type, IfNoneMatch="*")
        except Changed:
            raise Exists(f"{key!r} exists already") from None

    def swap(self, key: str, data: bytes, etag: str, content_type: str = JSON) -> str:
        """See `Storage`."""
        try:
            return self._put(key, data, content_type, IfMatch=etag)
        except NotFound:
            raise Changed(f"{key!r} was deleted") from None

    def _put(self, key: str, data: bytes, content_type: str, **condition: str) -> str:
        from botocore.exceptions import ClientError

        for left in reversed(range(self._attempts)):
            with _s3_errors(key):
                try:
                    answer = self.client.put_object(
                        Bucket=self.bucket,
                        Key=check_key(key),
                        Body=data,
                        ContentType=content_type,
                        **condition,  # type: ignore[arg-type]
                    )
                    return answer["ETag"]
                except ClientError as error:
                    # Two conditional writes at once: S3 asks to try again, and then one of them is too late.
                    if error.response["Error"]["Code"] != "ConditionalRequestConflict" or not left:
                        raise
            time.sleep(secrets.randbelow(100) / 1000)
        raise AssertionError("unreachable")

    def delete(self, key: str) -> None:
        """See `Storage`."""
        with _s3_errors(key), suppress(NotFound):
            self.client.delete_object(Bucket=self.bucket, Key=check_key(key))

    def head(self, key: str) -> ObjectInfo:
        """See `Storage`."""
        with _s3_errors(key):
            answer = self.client.head_object(Bucket=self.bucket, Key=check_key(key))
        return ObjectInfo(
            key, answer["ContentLength"], answer["ETag"], answer["LastModified"], answer.get("ContentType", "")
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Storage`."""
        with _s3_errors(prefix):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for found in page.get("Contents", ()):
                    yield ObjectInfo(found["Key"], found["Size"], found["ETag"], found["LastModified"])

    def upload_link(self, key: str, content_type: str, max_bytes: int, seconds: int) -> UploadLink:
        """See `Storage`. A presigned POST; no request is made."""
        if "${filename}" in check_key(key):
            # S3 would put the client's file name there, and boto3 would sign for every key with the part before it.
            raise InvalidKey("a key to upload to does not hold ${filename}")
        with _s3_errors(key):
            post = self.client.generate_presigned_post(
                self.bucket,
                key,
                Fields={"Content-Type": content_type},
                Conditions=[{"Content-Type": content_type}, ["content-length-range", 1, max_bytes]],
                ExpiresIn=seconds,
            )
        expires = datetime.now(UTC) + timedelta(seconds=seconds)
        return UploadLink(post["url"], "POST", dict(post["fields"]), max_bytes, expires)

    def download_link(self, key: str, filename: str, seconds: int) -> str:
        """See `Storage`. A presigned GET; no request is made."""
        with _s3_errors(key):
            return self.client.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self.bucket,
                    "Key": check_key(key),
                    "ResponseContentDisposition": content_disposition(filename),
                },
                ExpiresIn=seconds,
            )

    def sweep(self, older_than: datetime) -> int:  # noqa: ARG002 - the bucket's lifecycle rule knows the age
        """See `Storage`."""
        return 0


@contextmanager
def _s3_errors(key: str) -> Iterator[None]:
    """Turn boto3's errors into ours, NotFound and Changed where S3 means that, else Unavailable."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in ("NoSuchKey", "404", "NotFound"):
            raise NotFound(f"nothing is stored under {key!r}") from error
        if code in ("PreconditionFailed", "412"):
            raise Changed(f"{key!r} has changed") from error
        raise Unavailable(f"the store failed: {error.operation_name} {code}") from error
    except (BotoCoreError, Boto3Error, OSError) as error:
        raise Unavailable(f"the store failed: {type(error).__name__}") from error


class LocalStorage:
    """A directory. A key is a path in it, percent-encoded, so that pictures can be looked at where they lie.

    Writes go to a temporary file, which is synced and renamed. Those that depend on what is there hold a lock (flock)
    while they look and rename; readers need none. An etag is inode, time and size, the time set to grow with each
    write. One key cannot be the folder of another, as it can in S3: the second is an `InvalidKey`.

    Names that begin with a dot are ours: `.tmp` (unfinished writes), `.locks`, `.types` (media types that the suffix
    does not tell), `.secret` (signs links). No key is encoded to such a name.

    Args:
        root: the directory, made if missing.
        base_url: put before the paths of links, such as "http://127.0.0.1:8000".
        clock: seconds since 1970, for links.
    """

    def __init__(self, root: Path, *, base_url: str = "", clock: Callable[[], float] = time.time) -> None:
        self.root = root.absolute()
        self.base_url = base_url
        self._clock = clock
        with _os_errors(str(root)):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in (".tmp", ".locks", ".types"):
                (self.root / name).mkdir(exist_ok=True)

    def get(self, key: str) -> tuple[bytes, str]:
        """See `Storage`."""
        with _os_errors(key), self._file(key).open("rb") as file:
            return file.read(), _etag(os.fstat(file.fileno()))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """See `Storage`."""
        with _os_errors(key), self._file(key).open("rb") as file:
            file.seek(start)
            return file.read(max(0, length))

    def download(self, key: str, path: Path) -> None:
        """See `Storage`."""
        part = path.with_name(f".{secrets.token_hex(8)}.part")
        with _os_errors(key), self._file(key).open("rb") as source:
            try:
                with part.open("xb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)

    def put(self, key: str, data: bytes, content_type: str) -> str:
        """See `Storage`."""
        return self._write(key, data, content_type, lambda _: None)

    def upload(self, path: Path, key: str, content_type: str) -> None:
        """See `Storage`."""
        self._write(key, path, content_type, lambda _: None)

    def create(self, key: str, data: bytes, content_type: str = JSON) -> str:
        """See `Storage`."""

        def check(now: str | None) -> None:
            if now is not None:
                raise Exists(f"{key!r} exists already")

        return self._write(key, data, content_type, check)

    def swap(self, key: str, data: bytes, etag: str, content_type: str = JSON) -> str:
        """See `Storage`."""

        def check(now: str | None) -> None:
            if now != etag:
                raise Changed(f"{key!r} has changed")

        return self._write(key, data, content_type, check)

    def delete(self, key: str) -> None:
        """See `Storage`."""
        with _os_errors(key), self._lock(check_key(key)):
            self._remove(key)

    def head(self, key: str) -> ObjectInfo:
        """See `Storage`."""
        with _os_errors(key):
            status = self._file(key).stat()
            if not stat.S_ISREG(status.st_mode):
                raise NotFound(f"nothing is stored under {key!r}")
            return replace(_info(key, status), content_type=self._type(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Storage`."""
        folder = prefix.rpartition("/")[0]
        start = self.root / _encode(folder) if folder else self.root
        with _os_errors(prefix):
            for parent, folders, files in os.walk(start):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for name in files:
                    path = Path(parent, name)
                    key = _decode(path.relative_to(self.root))
                    if not name.startswith(".") and key.startswith(prefix):
                        with suppress(FileNotFoundError):  # deleted while we walk
                            yield _info(key, path.stat())

    def upload_link(self, key: str, content_type: str, max_bytes: int, seconds: int) -> UploadLink:
        """See `Storage`. The HTTP layer answers it, with `grant` and `accept`."""
        expires = self._now() + timedelta(seconds=seconds)
        token = self._sign(Grant("upload", check_key(key), expires, content_type=content_type, max_bytes=max_bytes))
        url = f"{self.base_url}{UPLOAD_PATH}?token={token}"
        return UploadLink(url, "POST", {"Content-Type": content_type}, max_bytes, expires)

    def download_link(self, key: str, filename: str, seconds: int) -> str:
        """See `Storage`. The HTTP layer answers it, with `grant` and `path`."""
        expires = self._now() + timedelta(seconds=seconds)
        token = self._sign(Grant("download", check_key(key), expires, filename=file_name(filename)))
        return f"{self.base_url}{DOWNLOAD_PATH}?token={token}"

    def sweep(self, older_than: datetime) -> int:
        """See `Storage`. Also removes what killed writers left behind, whatever its age."""
        removed = 0
        for found in self.list(""):
            if found.modified < older_than:
                with _os_errors(found.key), self._lock(found.key), suppress(NotFound):
                    if self.head(found.key).etag == found.etag:  # not written again since
                        self._remove(found.key)
                        removed += 1
        with _os_errors(".tmp"):
            for path in (self.root / ".tmp").iterdir():
                with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its writer, if alive, holds this
                    path.unlink()
        return removed

    def grant(self, token: str, action: str) -> Grant:
        """What the token of a link allows; ask before reading a body.

        Args:
            token: the query parameter `token`.
            action: "upload" or "download".

        Raises:
            LinkRefused: tampered with, expired, or a link for the other action.
        """
        try:
            data, _, signature = token.partition(".")
            if not hmac.compare_digest(self._hmac(data).encode(), signature.encode(errors="replace")):
                raise LinkRefused("the link is not one of ours")
            fields = json.loads(base64.urlsafe_b64decode(data))
        except ValueError:  # no base64, no ASCII, or no JSON
            raise LinkRefused("the link is not one of ours") from None
        grant = Grant(**fields | {"expires": datetime.fromisoformat(fields["expires"])})
        if grant.action != action:
            raise LinkRefused(f"the link is for a different action: {grant.action}")
        if grant.expires <= self._now():
            raise LinkRefused("the link has expired")
        return grant

    def accept(self, token: str, path: Path, content_type: str) -> ObjectInfo:
        """Store a file that came by an upload link.

        Args:
            token: of the link.
            path: the file as received.
            content_type: the form field Content-Type.

        Raises:
            LinkRefused: as `grant`, or the type or the size is not what the link allows.
        """
        grant = self.grant(token, "upload")
        if content_type != grant.content_type:
            raise LinkRefused(f"the link is for {grant.content_type}")
        if not 1 <= path.stat().st_size <= grant.max_bytes:
            raise LinkRefused(f"the link is for a file of 1 to {grant.max_bytes} bytes")
        self.upload(path, grant.key, content_type)
        return self.head(grant.key)

    def path(self, key: str) -> Path:
        """The file that holds the object now, for streaming it. Raises: NotFound."""
        self.head(key)
        return self._file(key)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _file(self, key: str) -> Path:
        return self.root / _encode(check_key(key))

    def _write(self, key: str, source: bytes | Path, content_type: str, check: Callable[[str | None], None]) -> str:
        """Write a new version, after `check` has seen the present etag (None: nothing there) and not raised."""
        target = self._file(key)
        with _os_errors(key, writing=True), self._temporary() as temporary:
            if isinstance(source, Path):
                with source.open("rb") as file:
                    shutil.copyfileobj(file, temporary, 1 << 20)
            else:
                temporary.write(source)
            temporary.flush()
            os.fsync(temporary.fileno())
            with self._lock(key):
                try:
                    before = target.stat()
                except (FileNotFoundError, NotADirectoryError):
                    before = None
                if before is not None and not stat.S_ISREG(before.st_mode):
                    raise IsADirectoryError
                check(None if before is None else _etag(before))
                # Whole microseconds, and later than the last version: equal times would make equal etags.
                earliest = 0 if before is None else before.st_mtime_ns + 1000
                written = max(time.time_ns(), earliest) // 1000 * 1000
                os.utime(temporary.fileno(), ns=(written, written))
                self._set_type(key, content_type)
                _rename(Path(temporary.name), target)
                return _etag(os.fstat(temporary.fileno()))

    def _remove(self, key: str) -> None:
        file = self._file(key)
        for path in (file, self._type_file(key)):
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                path.unlink()
        with suppress(OSError):  # not empty, or somebody else was faster
            for parent in file.parents:
                if parent == self.root:
                    break
                parent.rmdir()

    @contextmanager
    def _temporary(self) -> Iterator[IO[bytes]]:
        """A file in `.tmp` which is locked while it is ours, so that `sweep` knows it from a dead writer's."""
        while True:
            path = self.root / ".tmp" / secrets.token_hex(16)
            with path.open("xb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_nlink == 0:  # a sweep came between open and lock
                    continue
                try:
                    yield file
                finally:
                    path.unlink(missing_ok=True)
                return

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        """Exclude other writers of this key, threads and processes. 64 locks for all keys: none is ever cleaned up."""
        name = f"{hashlib.sha256(key.encode()).digest()[0] % 64:02}"
        with (self.root / ".locks" / name).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # freed when the file is closed, also by a kill
            yield

    def _type_file(self, key: str) -> Path:
        return self.root / ".types" / _encode(key)

    def _type(self, key: str) -> str:
        try:
            return self._type_file(key).read_text()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return _guess_type(key)

    def _set_type(self, key: str, content_type: str) -> None:
        file = self._type_file(key)
        if content_type == _guess_type(key):
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                file.unlink()
        elif content_type != self._type(key):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content_type)

    @cached_property
    def _secret(self) -> bytes:
        """The key that signs links; made by whoever comes first, then the same for all processes."""
        path = self.root / ".secret"
        with _os_errors(".secret"):
            if not path.exists():
                with self._temporary() as file:
                    os.fchmod(file.fileno(), 0o600)
                    file.write(secrets.token_bytes(32))
                    file.flush()
                    os.fsync(file.fileno())
                    with suppress(FileExistsError):
                        os.link(file.name, path)  # unlike a rename, this replaces nothing
            return path.read_bytes()

    def _hmac(self, data: str) -> str:
        return hmac.new(self._secret, data.encode(errors="replace"), hashlib.sha256).hexdigest()

    def _sign(self, grant: Grant) -> str:
        fields: dict[str, Any] = asdict(grant) | {"expires": grant.expires.isoformat()}
        data = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()
        return f"{data}.{self._hmac(data)}"


#: Longer names are cut into folders; file systems take 255 bytes.
_NAME_BYTES = 200


def _encode(key: str) -> Path:
    """The relative path of a key. Reversible: `+` occurs in no encoded name, so it can mark a name that goes on."""
    pieces = []
    for part in key.split("/"):
        name = quote(part, safe="")
        while len(name) > _NAME_BYTES:
            pieces.append(name[:_NAME_BYTES] + "+")
            name = name[_NAME_BYTES:]
        pieces.append(name)
    # What a cut leaves may begin with a dot too, or be "..".
    return Path(*("%2E" + piece[1:] if piece.startswith(".") else piece for piece in pieces))


def _decode(path: Path) -> str:
    """The key of a relative path."""
    return unquote("/".join(path.parts).replace("+/", ""))


def _etag(status: os.stat_result) -> str:
    return f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"'


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, _etag(status), datetime.fromtimestamp(status.st_mtime, UTC))


@cache
def _types() -> mimetypes.MimeTypes:
    return mimetypes.MimeTypes()  # Python's own table, and not the files of the machine, which could change


def _guess_type(key: str) -> str:
    return _types().guess_type("x" + PurePosixPath(key).suffix)[0] or "application/octet-stream"


def _rename(source: Path, target: Path) -> None:
    """Move a synced file to its place, so that a power cut leaves the old or the new one."""
    while True:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.replace(target)
        except FileNotFoundError:
            if not source.exists():
                raise
            continue  # a deletion took the empty folder away
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return


@contextmanager
def _os_errors(key: str, *, writing: bool = False) -> Iterator[None]:
    """Turn the system's errors into ours."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError)) and writing:
            raise InvalidKey(f"{key!r} would be an object and a folder at once") from error
        if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)) and not writing:
            raise NotFound(f"nothing is stored under {key!r}") from error
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidKey("the key is too long for this directory") from error
        raise Unavailable(f"the store failed: {error.strerror}") from error
