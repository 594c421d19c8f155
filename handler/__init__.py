"""Where requests come in: HTTP, S3 upload events, AWS Batch, or the same on one machine (`python -m handler`).

`settings`, `storage`, `jobs` and `webhook` are the lower half and know nothing of HTTP or of the networks;
`api`, `s3_event` and `batch_job` are three thin entry points on top of them, which all end in `core.upscale`.
"""
