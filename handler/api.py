"""The HTTP interface: behind API Gateway or a function URL by Mangum (`handler`), on one machine by uvicorn (`app`)."""

from __future__ import annotations

import os

from mangum import Mangum
from mangum.adapter import DEFAULT_TEXT_MIME_TYPES

from handler import logs
from handler.settings import get_settings
from handler.web import problems
from handler.web.app import build
from handler.web.warm import warm

#: The longest that an instance which is kept warm loads its model before it is ready.
PROVISIONED_SECONDS = 60.0

app = build(get_settings())
handler = Mangum(app, lifespan="off", text_mime_types=[*DEFAULT_TEXT_MIME_TYPES, problems.MEDIA_TYPE])

if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:  # in INIT, beside what the runtime still has to do
    logs.setup(get_settings().log_level)
    warming = warm(get_settings(), lambda: app.state.service.limiter.idle)
    if warming and os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "provisioned-concurrency":
        # It is frozen after INIT, threads and all, until the first request: that must not wait for the model. INIT may
        # take minutes here, and 10 seconds otherwise.
        warming.join(PROVISIONED_SECONDS)
