"""Loading a model before the first picture comes."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from PIL import Image

import core
from handler import options, s3_models
from handler.settings import Settings

log = logging.getLogger(__name__)


def warm(settings: Settings, idle: Callable[[], bool] = lambda: True) -> threading.Thread | None:
    """Load WARM_MODEL in a thread, so that the first picture does not wait for it; never waited for itself.

    A tiny picture goes all the way, since codecs and kernels have a first time, too; then the rate is measured that
    estimates are made with, unless it is known on this machine.

    Args:
        settings: of the service.
        idle: whether no picture is in work: measuring waits for that.

    Returns:
        The thread; None where nothing is to be loaded.
    """
    if settings.warm_model == "none":
        return None

    def load() -> None:
        try:
            asked = replace(options.parse({}, settings), model=settings.warm_model, format="png")
            chosen, _ = s3_models.with_local_model(asked, settings)
            picture = io.BytesIO()
            Image.new("L", (8, 8)).save(picture, "PNG")
            core.upscale(picture.getvalue(), chosen, limits=options.limits(settings))
            while not idle():  # measuring beside a picture gives a wrong rate, and takes its time
                time.sleep(1)
            core.estimate(64, 64, chosen, measure=True)
        except Exception:  # the first request reports it
            log.exception("the model %s could not be warmed up", settings.warm_model)

    thread = threading.Thread(target=load, name="warm", daemon=True)
    thread.start()
    return thread
