"""How a job begins: asked for by a client, or made for an upload that nobody announced."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta

from pydantic import JsonValue

from handler.jobs.changes import change, get
from handler.jobs.document import (
    UPLOAD_NAMESPACE,
    Backend,
    Clock,
    Conflict,
    Estimate,
    Failure,
    IllegalTransition,
    InvalidId,
    Job,
    Request,
    State,
    StoredFile,
    Webhook,
    check_id,
    dumps,
    job_key,
    new_id,
    retry_id,
    upload_key,
    utc_now,
)
from handler.names import file_name
from handler.storage import Exists, NotFound, Storage


def create(
    storage: Storage,
    request: Request,
    *,
    ttl: timedelta,
    backend: Backend | None = None,
    estimate: Estimate | None = None,
    owner: str = "",
    clock: Clock = utc_now,
) -> Job:
    """A new job with a random id, awaiting its upload."""
    return put(storage, new_id(), request, ttl=ttl, backend=backend, estimate=estimate, owner=owner, clock=clock)[0]


def put(
    storage: Storage,
    id: str,
    request: Request,
    *,
    ttl: timedelta,
    backend: Backend | None = None,
    estimate: Estimate | None = None,
    owner: str = "",
    clock: Clock = utc_now,
) -> tuple[Job, bool]:
    """The job of this id and request, awaiting its upload, and whether it is new.

    Raises:
        InvalidId: not a UUID.
        Conflict: the id was used for another request, or by another owner.
    """
    name = file_name(request.filename)
    model = request.options.get("model")
    now = clock()
    return _create(
        storage,
        Job(
            id=check_id(id),
            state=State.AWAITING_UPLOAD,
            backend=backend,
            options=request.options,
            model=model if isinstance(model, str) else None,
            input=StoredFile(
                key=upload_key(id, name), name=name, content_type=request.content_type, bytes=request.bytes
            ),
            estimate=estimate,
            webhook=Webhook(url=request.webhook) if request.webhook else None,
            created=now,
            updated=now,
            expires=now + ttl,
            owner=owner,
            request_hash=_hash(request.model_dump(mode="json", exclude=None if request.source else {"source"})),
            revision=uuid.uuid4().hex,
        ),
    )


def uploaded(
    storage: Storage,
    id: str,
    *,
    size: int | None = None,
    width: int | None = None,
    height: int | None = None,
    version: str = "",
    clock: Clock = utc_now,
) -> Job:
    """The upload is there: awaiting_upload becomes queued. A job that is further already stays as it is.

    Args:
        storage: where the job is.
        id: of the job.
        size: bytes of the upload.
        width: pixels, if known by now.
        height: pixels, if known by now.
        version: of the uploaded object.
        clock: gives the time.

    Raises:
        storage.NotFound: no such job.
    """
    known = {"bytes": size, "width": width, "height": height, "version": version or None}
    known = {name: value for name, value in known.items() if value is not None}

    def queue(job: Job) -> Job:
        if job.state is not State.AWAITING_UPLOAD:
            return job
        return job.model_copy(update={"state": State.QUEUED, "input": job.input.model_copy(update=known)})

    return change(storage, id, queue, clock=clock)


def create_part(
    storage: Storage,
    id: str,
    part: StoredFile,
    *,
    pictures: int,
    options: Mapping[str, JsonValue],
    ttl: timedelta,
    clock: Clock = utc_now,
) -> Job:
    """The job that makes all pictures of a list, queued for a container; the one that is there already, if it is.

    Args:
        storage: where jobs are.
        id: that follows from the list, so that asking twice makes one job.
        part: the list: see `handler.archive.document`.
        pictures: how many it names.
        options: for each of them.
        ttl: how long the job lives.
        clock: gives the time.

    Raises:
        InvalidId: not a UUID.
        Conflict: the id was used for something else.
    """
    now = clock()
    model = options.get("model")
    job = Job(
        id=check_id(id),
        state=State.QUEUED,
        backend=Backend.BATCH,
        options=dict(options),
        model=model if isinstance(model, str) else None,
        input=part,
        pictures=pictures,
        created=now,
        updated=now,
        expires=now + ttl,
        request_hash=_hash([id, part.key]),
        revision=uuid.uuid4().hex,
    )
    return _create(storage, job)[0]


def find_or_create_for_upload(
    storage: Storage,
    bucket: str,
    key: str,
    version: str,
    *,
    ttl: timedelta,
    sequencer: str = "",
    content_type: str = "application/octet-stream",
    size: int | None = None,
    options: Mapping[str, JsonValue] | None = None,
    error: Failure | None = None,
    clock: Clock = utc_now,
) -> Job:
    """The job that an uploaded object belongs to, queued if it was waiting for it.

    That is the job named by `uploads/<id>/…` if it declared this key and has not ended with another version of it,
    else one whose id follows from bucket, key, version and sequencer (UUID 5): a repeated event finds the same job,
    and the same file dropped once more is a new one.

    Args:
        storage: where jobs are.
        bucket: that the object is in.
        key: of the object, decoded.
        version: the object's ETag, by which its job later knows that it reads what was uploaded.
        sequencer: S3's name of this upload; empty where unknown.
        ttl: how long a new job lives.
        content_type: of the object, for a new job.
        size: of the object in bytes.
        options: for a new job.
        error: why a new job is failed at once.
        clock: gives the time.
    """
    folders = key.split("/")
    if folders[0] == "uploads" and len(folders) == 3:
        with suppress(InvalidId, NotFound):
            found = get(storage, folders[1])
            if found.input.key == key and not (found.state.final and found.input.version not in ("", version)):
                return uploaded(storage, folders[1], size=size, version=version, clock=clock)
    now = clock()
    named = [bucket, key, version, *([sequencer] if sequencer else [])]
    job = Job(
        id=str(uuid.uuid5(UPLOAD_NAMESPACE, "\0".join(named))),
        state=State.FAILED if error else State.QUEUED,
        error=error,
        finished=now if error else None,
        options=dict(options or {}),
        input=StoredFile(key=key, name=file_name(key), content_type=content_type, bytes=size, version=version),
        created=now,
        updated=now,
        expires=now + ttl,
        # The id says it all: two events for one upload may differ in the rest without being a conflict.
        request_hash=_hash(named),
        revision=uuid.uuid4().hex,
    )
    return _create(storage, job)[0]


def retry(storage: Storage, old: Job, version: str, *, expires: datetime, clock: Clock = utc_now) -> tuple[Job, bool]:
    """A new job that does again what one that failed or was cancelled should have done, from the same upload.

    What has ended stays as it is: it was reported. The new job's id follows from the old one's, so that asking twice
    makes one job.

    Args:
        storage: where jobs are.
        old: the job that has ended.
        version: ETag of its upload as it is now.
        expires: when the new job may be gone, which is before its upload is.
        clock: gives the time.

    Returns:
        The new job, and whether it was made by this call.

    Raises:
        IllegalTransition: the old job has not ended, or has succeeded, or is a part of an archive.
    """
    if old.pictures is not None:
        raise IllegalTransition("a part of an archive is tried again by the archive's command, with --redo")
    if old.state not in (State.FAILED, State.CANCELLED):
        raise IllegalTransition(f"a job that is {old.state} cannot be tried again")
    now = clock()
    return _create(
        storage,
        Job(
            id=retry_id(old.id),
            state=State.QUEUED,
            options=old.options,
            model=old.model,
            input=old.input.model_copy(update={"version": version}),
            webhook=Webhook(url=old.webhook.url) if old.webhook else None,
            created=now,
            updated=now,
            expires=expires,
            request_hash=_hash([old.id, "retry"]),
            revision=uuid.uuid4().hex,
        ),
    )


def _create(storage: Storage, job: Job) -> tuple[Job, bool]:
    """Store a new job, or give the one that is there, and whether it is new.

    Raises:
        Conflict.
    """
    try:
        storage.create(job_key(job.id), dumps(job))
    except Exists:
        found = get(storage, job.id)
        if (found.request_hash, found.owner) != (job.request_hash, job.owner):
            raise Conflict("this id belongs to a job that was asked for with another request") from None
        return found, found.revision == job.revision
    return job, True


def _hash(value: JsonValue | list[str]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
