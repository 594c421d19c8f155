"""Objects in a bucket of S3, or of a server that speaks its protocol."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from handler.names import content_disposition
from handler.storage.base import (
    JSON,
    MAX_ONE_WRITE,
    Changed,
    Exists,
    InvalidKey,
    NotFound,
    ObjectInfo,
    StorageError,
    Unavailable,
    UploadLink,
    check_key,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


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

    def read_range(self, key: str, start: int, length: int, etag: str = "") -> bytes:
        """See `Storage`."""
        if length <= 0:
            self.head(key)
            return b""
        return self._read(key, f"bytes={start}-{start + length - 1}", etag)[0]

    def _read(self, key: str, byte_range: str | None = None, etag: str = "") -> tuple[bytes, str]:
        from botocore.exceptions import BotoCoreError, ClientError

        wanted = {"Range": byte_range} if byte_range else {}
        if bare := etag.strip('"'):
            wanted["IfMatch"] = f'"{bare}"'
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

    def download_version(self, key: str, path: Path, etag: str) -> None:
        """See `Storage`."""
        from botocore.exceptions import BotoCoreError

        bare = etag.strip('"')  # S3 Inventory writes it so
        condition = {"IfMatch": f'"{bare}"'} if bare else {}
        part = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            for left in reversed(range(self._attempts)):
                with _s3_errors(key):
                    answer = self.client.get_object(Bucket=self.bucket, Key=key, **condition)  # type: ignore[arg-type]
                    try:
                        with closing(answer["Body"]) as body, part.open("wb") as file:
                            shutil.copyfileobj(body, file, 1 << 20)
                        break
                    except (BotoCoreError, OSError):  # as in `_read`
                        if not left:
                            raise
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

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

    def create_file(self, path: Path, key: str, content_type: str, metadata: Mapping[str, str]) -> None:
        """See `Storage`. By one request: boto3's transfers in parts take no condition."""
        if path.stat().st_size > MAX_ONE_WRITE:
            raise StorageError("the file is over 5 GiB, too large for a write that replaces nothing")
        try:
            self._put(key, path, content_type, IfNoneMatch="*", Metadata=dict(metadata))
        except Changed:
            raise Exists(f"{key!r} exists already") from None

    def swap(self, key: str, data: bytes, etag: str, content_type: str = JSON) -> str:
        """See `Storage`."""
        try:
            return self._put(key, data, content_type, IfMatch=etag)
        except NotFound:
            raise Changed(f"{key!r} was deleted") from None

    def _put(self, key: str, data: bytes | Path, content_type: str, **more: object) -> str:
        from botocore.exceptions import ClientError

        for left in reversed(range(self._attempts)):
            with _s3_errors(key):
                try:
                    with data.open("rb") if isinstance(data, Path) else nullcontext(data) as body:
                        answer = self.client.put_object(
                            Bucket=self.bucket,
                            Key=check_key(key),
                            Body=body,
                            ContentType=content_type,
                            **more,  # type: ignore[arg-type]
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
            key,
            answer["ContentLength"],
            answer["ETag"],
            answer["LastModified"],
            answer.get("ContentType", ""),
            answer.get("Metadata", {}),
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
