"""A Lambda handler written the obvious way, to compare with: everything is imported and loaded at module level.

transformers' Swin2SR from the checkpoint in CHECKPOINT, FastAPI and Mangum. Run by bench.cold_start.
"""

from __future__ import annotations

import io
import os

import numpy as np
import torch
from fastapi import FastAPI, File, Response, UploadFile
from mangum import Mangum
from PIL import Image
from transformers import Swin2SRForImageSuperResolution

app = FastAPI()
model = Swin2SRForImageSuperResolution.from_pretrained(os.environ["CHECKPOINT"])
model.eval()  # type: ignore[no-untyped-call]


@app.post("/upscale")
def upscale(file: UploadFile = File()) -> Response:  # noqa: B008 - as FastAPI's own examples have it
    """Twice as large, as PNG."""
    picture = Image.open(file.file).convert("RGB")
    values = torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1)[None]  # (1, 3, h, w)
    below, right = -values.shape[2] % 8, -values.shape[3] % 8  # the model fails on other sides
    values = torch.nn.functional.pad(values, (0, right, 0, below), mode="reflect")
    with torch.no_grad():
        made = model(values).reconstruction[0].clamp(0, 1)  # (3, 2 h, 2 w)
    pixels = (made.permute(1, 2, 0) * 255).round().byte().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).crop((0, 0, 2 * picture.width, 2 * picture.height)).save(stream, "PNG")
    return Response(stream.getvalue(), media_type="image/png")


handler = Mangum(app)
