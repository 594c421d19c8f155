"""Objects in a local directory, and the signed links to them that the HTTP layer answers."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from handler.names import file_name
from handler.storage.base import (
    JSON,
    Changed,
    Exists,
    LinkRefused,
    NotFound,
    ObjectInfo,
    Unavailable,
    UploadLink,
    check_key,
)
from handler.storage.files import decode, encode, etag_of, guess_type, info_of, move_synced, os_errors
from handler.storage.owned import EXPIRING, check_space, claim

#: Where the local HTTP layer answers the links of `LocalStorage`; the token is the query parameter `token`.
UPLOAD_PATH = "/storage/upload"
DOWNLOAD_PATH = "/storage/download"


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


class LocalStorage:
    """A directory. A key is a path in it, percent-encoded, so that pictures can be looked at where they lie.

    Writes go to a temporary file, which is synced and renamed. Those that depend on what is there hold a lock (flock)
    while they look and rename; readers need none. An etag is inode, time and size, the time set to grow with each
    write. One key cannot be the folder of another, as it can in S3: the second is an `InvalidKey`.

    Names that begin with a dot are ours: `.serverless-upscaler` (says whose directory this is), `.tmp` (unfinished
    writes), `.locks`, `.types` (media types that the suffix does not tell, and metadata), `.secret` (signs links). No
    key is encoded to such a name.

    Args:
        root: the directory, made if missing; one that others use is refused.
        base_url: put before the paths of links, such as "http://127.0.0.1:8000".
        clock: seconds since 1970, for links.

    Raises:
        ForeignDirectory: it has files in it that are not ours.
        Unavailable: it cannot be made or written to.
    """

    def __init__(self, root: Path, *, base_url: str = "", clock: Callable[[], float] = time.time) -> None:
        self.root = root.absolute()
        self.base_url = base_url
        self._clock = clock
        self._prepare()

    def _prepare(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            claim(self.root)
            for name in (".tmp", ".locks", ".types"):
                (self.root / name).mkdir(exist_ok=True)
        except OSError as error:
            raise Unavailable(f"the store failed: {error.strerror}") from error

    def check(self) -> None:
        """Whether the directory can be worked with; one that was deleted is made anew.

        Raises:
            ForeignDirectory: somebody else's files lie there now.
            Unavailable: it cannot be written to, or the disk is full.
        """
        self._prepare()
        with os_errors(str(self.root), writing=True), self._temporary() as file:
            file.write(b"x")
            file.flush()
            check_space(self.root)

    def get(self, key: str) -> tuple[bytes, str]:
        """See `Storage`."""
        with os_errors(key), self._file(key).open("rb") as file:
            return file.read(), etag_of(os.fstat(file.fileno()))

    def read_range(self, key: str, start: int, length: int, etag: str = "") -> bytes:
        """See `Storage`."""
        with os_errors(key), self._file(key).open("rb") as file:
            if etag.strip('"') not in ("", etag_of(os.fstat(file.fileno())).strip('"')):
                raise Changed(f"{key!r} has changed")
            file.seek(start)
            return file.read(max(0, length))

    def download(self, key: str, path: Path) -> None:
        """See `Storage`."""
        part = path.with_name(f".{secrets.token_hex(8)}.part")
        with os_errors(key), self._file(key).open("rb") as source:
            try:
                with part.open("xb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)

    def download_version(self, key: str, path: Path, etag: str) -> None:
        """See `Storage`."""
        part = path.with_name(f".{secrets.token_hex(8)}.part")
        with os_errors(key), self._file(key).open("rb") as source:
            try:
                with part.open("xb") as target:
                    before = etag_of(os.fstat(source.fileno()))
                    shutil.copyfileobj(source, target, 1 << 20)
                # Also a file that somebody else writes to in its place, which this class never does.
                if before != etag_of(os.fstat(source.fileno())) or etag.strip('"') not in ("", before.strip('"')):
                    raise Changed(f"{key!r} has changed")
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

        return self._write(key, data, content_type, _check_absent(key))

    def create_file(self, path: Path, key: str, content_type: str, metadata: Mapping[str, str]) -> None:
        """See `Storage`."""
        self._write(key, path, content_type, _check_absent(key), metadata)

    def swap(self, key: str, data: bytes, etag: str, content_type: str = JSON) -> str:
        """See `Storage`."""

        def check(now: str | None) -> None:
            if now != etag:
                raise Changed(f"{key!r} has changed")

        return self._write(key, data, content_type, check)

    def delete(self, key: str) -> None:
        """See `Storage`."""
        with os_errors(key), self._lock(check_key(key)):
            self._remove(key)

    def head(self, key: str) -> ObjectInfo:
        """See `Storage`."""
        with os_errors(key):
            status = self._file(key).stat()
            if not stat.S_ISREG(status.st_mode):
                raise NotFound(f"nothing is stored under {key!r}")
            content_type, metadata = self._described(key)
            return replace(info_of(key, status), content_type=content_type, metadata=metadata)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Storage`."""
        folder = prefix.rpartition("/")[0]
        start = self.root / encode(folder) if folder else self.root
        with os_errors(prefix):
            for parent, folders, files in os.walk(start):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for name in files:
                    path = Path(parent, name)
                    key = decode(path.relative_to(self.root))
                    if not name.startswith(".") and key.startswith(prefix):
                        with suppress(FileNotFoundError):  # deleted while we walk
                            yield info_of(key, path.stat())

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
        """See `Storage`. Also removes what killed writers left behind, whatever its age.

        Only what the service writes: a file that a person put here stays.
        """
        removed = 0
        for prefix, form in EXPIRING.items():
            for found in self.list(prefix):
                if found.modified < older_than and form.fullmatch(found.key):
                    with os_errors(found.key), self._lock(found.key), suppress(NotFound):
                        if self.head(found.key).etag == found.etag:  # not written again since
                            self._remove(found.key)
                            removed += 1
        with os_errors(".tmp"):
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
        """The file that holds the object now, for streaming it.

        Raises:
            NotFound.
        """
        self.head(key)
        return self._file(key)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _file(self, key: str) -> Path:
        return self.root / encode(check_key(key))

    def _write(
        self,
        key: str,
        source: bytes | Path,
        content_type: str,
        check: Callable[[str | None], None],
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Write a new version, after `check` has seen the present etag (None: nothing there) and not raised."""
        target = self._file(key)
        with os_errors(key, writing=True), self._temporary() as temporary:
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
                check(None if before is None else etag_of(before))
                # Whole microseconds, and later than the last version: equal times would make equal etags.
                earliest = 0 if before is None else before.st_mtime_ns + 1000
                written = max(time.time_ns(), earliest) // 1000 * 1000
                os.utime(temporary.fileno(), ns=(written, written))
                self._describe(key, content_type, metadata or {})
                move_synced(Path(temporary.name), target)
                return etag_of(os.fstat(temporary.fileno()))

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
            try:
                opened = path.open("xb")
            except OSError as error:  # the whole directory is gone: that is not about one key
                raise Unavailable(f"the store failed: {error.strerror}") from error
            with opened as file:
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
        return self.root / ".types" / encode(key)

    def _described(self, key: str) -> tuple[str, dict[str, str]]:
        """Media type and metadata: a line with the type, and one with the metadata where there is any."""
        try:
            content_type, _, metadata = self._type_file(key).read_text().partition("\n")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return guess_type(key), {}
        return content_type, json.loads(metadata or "{}")

    def _describe(self, key: str, content_type: str, metadata: Mapping[str, str]) -> None:
        file = self._type_file(key)
        if content_type == guess_type(key) and not metadata:
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                file.unlink()
        elif (content_type, metadata) != self._described(key):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content_type + (f"\n{json.dumps(dict(metadata))}" if metadata else ""))

    @cached_property
    def _secret(self) -> bytes:
        """The key that signs links; made by whoever comes first, then the same for all processes."""
        path = self.root / ".secret"
        with os_errors(".secret"):
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


def _check_absent(key: str) -> Callable[[str | None], None]:
    def check(now: str | None) -> None:
        if now is not None:
            raise Exists(f"{key!r} exists already")

    return check
