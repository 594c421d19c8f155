"""Uploads that belong to a job, and those that get one."""

from __future__ import annotations

import uuid

from handler import jobs
from handler.jobs import State, StoredFile
from handler.storage import Storage
from tests.integration.jobs.support import REQUEST, TTL, claimed


def test_an_upload_without_a_job_gets_one(storage: Storage) -> None:
    key = f"uploads/{uuid.uuid4().hex[:8]}/a+b %.jpg"
    job = jobs.find_or_create_for_upload(
        storage, "bucket", key, "v1", ttl=TTL, content_type="image/jpeg", size=5, options={"scale": 3}
    )
    assert (job.state, job.options) == (State.QUEUED, {"scale": 3})
    assert job.input == StoredFile(key=key, name="a+b %.jpg", content_type="image/jpeg", bytes=5, version="v1")
    again = jobs.find_or_create_for_upload(storage, "bucket", key, "v1", ttl=TTL, size=6)
    assert again == job
    others = [("bucket", key, "v2"), ("other", key, "v1"), ("bucket", key + "x", "v1"), ("bucket", key[:-1], "gv1")]
    ids = {jobs.find_or_create_for_upload(storage, *other, ttl=TTL).id for other in others}
    assert len(ids | {job.id}) == 5


def test_an_upload_to_a_job_is_that_job(storage: Storage) -> None:
    job = jobs.create(storage, REQUEST, ttl=TTL)
    for _ in range(2):
        found = jobs.find_or_create_for_upload(storage, "bucket", job.input.key, "v1", ttl=TTL, size=77)
        assert (found.id, found.state) == (job.id, State.QUEUED)
        assert (found.input.bytes, found.input.version) == (77, "v1")
    running = claimed(storage, job.id)
    assert jobs.find_or_create_for_upload(storage, "bucket", job.input.key, "v1", ttl=TTL) == running
    beside = jobs.find_or_create_for_upload(storage, "bucket", f"uploads/{job.id}/other.jpg", "v1", ttl=TTL)
    assert beside.id != job.id, "not the file that this job declared"
    for key in (f"uploads/{uuid.uuid4()}/photo.jpg", "uploads/photo.jpg", f"uploads/{job.id}/deep/photo.jpg"):
        assert jobs.find_or_create_for_upload(storage, "bucket", key, "v1", ttl=TTL).input.key == key
