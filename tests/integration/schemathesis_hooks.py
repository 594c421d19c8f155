"""What no schema says: that a file is a picture. Loaded by schemathesis."""

from __future__ import annotations

import base64
import io

import schemathesis
from hypothesis import strategies
from PIL import Image


def _picture() -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


PICTURE = _picture()
BASE64 = base64.b64encode(PICTURE).decode()

schemathesis.openapi.format("binary", strategies.just(PICTURE))
schemathesis.openapi.format("byte", strategies.just(BASE64))
schemathesis.openapi.format("uri", strategies.just(f"data:image/png;base64,{BASE64}"))
