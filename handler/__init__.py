"""Where requests come in: HTTP, S3 upload events, AWS Batch, or the same on one machine (`python -m handler`).

`settings`, `storage`, `jobs` and `webhook` are the lower half and know nothing of HTTP or of the networks; `worker`
does one job; `api` (its routes in `web`), `s3_event`, `batch_event` and `batch_job` are thin entry points on top.
"""
