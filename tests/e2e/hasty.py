"""The function for uploads, which keeps a second back for the end of its work: for a test of what a time-out leaves."""

from __future__ import annotations

from handler import s3_event

s3_event.RESERVE = 1.0
handler = s3_event.handler
