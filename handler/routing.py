"""Inline, Lambda or Batch: where a request runs, and what starts it there.

Inline is the answer to the request itself. "Lambda" is a worker that takes jobs: the function that S3 upload events
call, or in local mode a thread of the server. Batch is for what Lambda has not the time or the memory for.
"""

from __future__ import annotations

import math
from dataclasses import replace

import core
from core import downloads, model_folder, models
from core.errors import NotHereYet
from core.limits import check_output_size
from core.picture import frames_kept
from handler.jobs import Backend, Estimate
from handler.options import in_models_dir, limits
from handler.settings import MIB, Settings

#: Machines that make one picture at most: each decodes what is above its part, and all are started.
MAX_MACHINES = 100
#: US dollars for a GiB of memory and a second of Lambda (x86, us-east-1, 2025; the free tier is not counted).
LAMBDA_GIB_SECOND = 1.66667e-5
#: Seconds that an estimate waits for a model's numbers where they are being downloaded.
PATIENCE = 1.0
#: How much longer than INLINE_SECONDS a request may take in AWS when the machine is slower than usual: API Gateway
#: waits for 29 seconds.
_AWS_PATIENCE = 1.25


def machines(on_batch: core.Estimate, settings: Settings) -> int:
    """How many machines of Batch share a picture. A pure function.

    Args:
        on_batch: what it takes on one of them.
        settings: BATCH_SPLIT_SECONDS.
    """
    if not settings.batch_split_seconds:
        return 1
    return max(1, min(math.ceil(on_batch.seconds / settings.batch_split_seconds), MAX_MACHINES, on_batch.tiles))


def route(estimate: core.Estimate, settings: Settings, on_batch: core.Estimate | None = None) -> Backend:
    """Where work of this size runs. A pure function.

    What is answered at once goes by the work, at the machine's usual speed and not by its mood: the same picture is not
    an answer now and a job in a minute. Limits of AWS go by what is expected now.

    Args:
        estimate: what it takes here, or in Lambda.
        settings: the budgets.
        on_batch: what it takes on a machine of Batch, where that differs.

    Raises:
        core.TooLarge: more than Lambda can do, and there is no Batch, or more than that can do.
    """
    inline = estimate.seconds / estimate.mood <= settings.inline_seconds
    if settings.local:  # one machine: its worker takes whatever the limits let through
        return Backend.INLINE if inline else Backend.LAMBDA
    fits = estimate.seconds <= settings.lambda_seconds and estimate.memory <= settings.lambda_memory_mb * MIB
    largest = on_batch or estimate
    if not fits and settings.has_batch and fits_batch(largest, machines(largest, settings), settings):
        return Backend.BATCH
    if not fits:
        largest = largest if settings.has_batch else estimate
        shared = machines(largest, settings) if settings.has_batch else 1
        raise core.TooLarge(
            f"this would take about {largest.seconds / shared:,.0f} s{f' on {shared} machines' if shared > 1 else ''} "
            f"and {largest.memory / 1e9:,.1f} GB of memory, "
            f"more than there is here: give a smaller picture or ask for a smaller scale"
        )
    in_time = estimate.seconds <= _AWS_PATIENCE * settings.inline_seconds
    return Backend.INLINE if inline and in_time else Backend.LAMBDA


def fits_batch(on_batch: core.Estimate | Estimate, shared: int, settings: Settings) -> bool:
    """Whether Batch has the memory and the time for it. A pure function.

    Args:
        on_batch: what it takes on one machine there.
        shared: how many machines share the time.
        settings: BATCH_MEMORY_MB, BATCH_SECONDS.
    """
    return on_batch.memory <= settings.batch_memory_mb * MIB and on_batch.seconds / shared <= settings.batch_seconds


def plan(picture: core.Probe, options: core.Options, settings: Settings) -> Estimate:
    """Check a picture against the limits, and say what it will take and where it runs.

    Args:
        picture: what its header says; of a picture that is still to come, format and sides are enough.
        options: from `handler.options.parse`.
        settings: the limits and the budgets.

    Raises:
        core.TooLarge: over a limit, or no backend is large enough.
        core.OptionsError: the options do not fit this picture.
    """
    with downloads.patience(PATIENCE):
        return _plan(picture, options, settings)


def _plan(picture: core.Probe, options: core.Options, settings: Settings) -> Estimate:
    allowed = limits(settings)
    name = in_models_dir(options.model, settings)
    asked, options = options, model_folder.fit_scale(replace(options, model=name))
    width, height = picture.width, picture.height
    if width * height * picture.frames > allowed.input_pixels:
        raise core.TooLarge(
            f"the input has {width}x{height} pixels, over the limit of {allowed.input_pixels / 1e6:,.6g} megapixels"
        )
    format = options.format or picture.result_format
    check_output_size(format, *options.output_size(width, height), allowed, frames_kept(format, picture))
    found = _estimate(picture, options)
    # Batch has cards, whatever there is here.
    there = _estimate(picture, replace(options, device="cuda")) if settings.has_batch else found
    backend = route(found, settings, there)
    shared = 1
    if backend is Backend.BATCH:
        found = there
        # The frames of an animation and pages depend on each other, or may differ in size.
        shared = machines(there, settings) if frames_kept(format, picture) == 1 else 1
        if not fits_batch(there, shared, settings):
            raise core.TooLarge(
                f"this would take about {there.seconds:,.0f} s on one machine, more than it is given: "
                f"give it frame by frame, or ask for a smaller scale"
            )
    cost = None
    if not settings.local and backend is not Backend.BATCH:
        cost = found.seconds * settings.lambda_memory_mb / 1024 * LAMBDA_GIB_SECOND
    return Estimate(
        route=backend,
        seconds=found.seconds,
        memory=found.memory,
        tiles=found.tiles,
        width=found.width,
        height=found.height,
        model=str(asked.model) if found.model == name else found.model,
        machines=shared,
        cost=cost,
        measured=found.measured,
    )


def _estimate(picture: core.Probe, options: core.Options) -> core.Estimate:
    """Of the first model in the fall-back chain whose numbers can be had soon.

    Of a model that is still being downloaded the numbers are assumed, by those of the next one.
    """
    factor = options.factor(picture.width, picture.height)
    *others, last = models.fallback_chain(options.model, factor, picture.format)
    awaited = None
    for name in others:
        try:
            found = core.estimate(picture.width, picture.height, replace(options, model=name), picture=picture)
        except NotHereYet:
            awaited = awaited or name
        except core.ModelError:
            continue
        else:
            return replace(found, model=awaited, measured=False) if awaited else found
    return core.estimate(picture.width, picture.height, replace(options, model=last), picture=picture)
