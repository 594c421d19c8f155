# The service as three images, which share everything but torch and their base:
#
#   lambda   torch for CPUs, what the functions of template.yaml run; the default
#   server   without torch, the whole service on one machine: docker run -p 8000:8000
#   batch    torch with CUDA, what AWS Batch runs; works on a CPU too
#
# `sam build` uses Docker's classic builder, which builds every stage above the one that was asked for and knows no
# mounts. So the others stand below `lambda`, and `batch`, with its gigabytes, below all.
#
# checkov:skip=CKV_DOCKER_2:Lambda and Batch watch the process themselves; nothing listens on a port but in server
# checkov:skip=CKV_DOCKER_7:the last FROM names a stage, the bases have versions

ARG BASE_IMAGE=public.ecr.aws/lambda/python:3.13
# Its Python must have the same minor version as that of BASE_IMAGE.
ARG BATCH_BASE_IMAGE=public.ecr.aws/docker/library/python:3.13-slim
# As in pyproject.toml.
ARG TORCH_VERSION=2.13.0


# ---- torch, in a layer that only a new version changes. Its dependencies are in infra/requirements.txt.
FROM ${BASE_IMAGE} AS torch
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_VERSION
COPY infra/trim.py /build/
RUN python3 -m pip install --no-cache-dir --no-compile --no-deps --target /torch \
        --index-url "${TORCH_INDEX}" "torch==${TORCH_VERSION}" \
    && python3 /build/trim.py /torch


# ---- everything else that is not ours
FROM ${BASE_IMAGE} AS packages
COPY infra/trim.py infra/requirements.txt /build/
# pyvips is plain Python, and published without a wheel.
RUN python3 -m pip install --no-cache-dir --no-compile --no-deps --only-binary :all: --no-binary pyvips --require-hashes \
        --target /packages --requirement /build/requirements.txt \
    && python3 /build/trim.py /packages


# ---- weights: MODELS names hub ids, and folders and files such as models/mine.pth of the build context, separated by
# blanks
FROM packages AS weights
ARG MODELS=
# The pattern may match nothing, the other source is there for that. A folder's content is copied, not the folder.
COPY infra/check_models.py model[s] /build/models/
RUN cd /build && PYTHONPATH=/packages python3 models/check_models.py fetch /weights ${MODELS}


# ---- our code
FROM ${BASE_IMAGE} AS application
COPY core /application/core
COPY handler /application/handler
RUN cd /application && chmod -R u=rwX,go=rX . \
    && python3 -m compileall -q --invalidation-mode unchecked-hash .


# ---- proof: only weights with which our network equals that of transformers get past this stage, and nothing does
# unless a picture can be upscaled with what is left of the packages
FROM weights AS checked
ARG TRANSFORMERS_VERSION=5.23.0
# The others are torch's own requirements that only transformers makes it import.
RUN if [ -n "$(ls /weights)" ]; then python3 -m pip install --no-cache-dir --no-compile --target /reference \
        "transformers==${TRANSFORMERS_VERSION}" sympy networkx jinja2; fi
COPY --from=torch /torch /packages
COPY --from=application /application /application
RUN PYTHONPATH=/application:/packages:/reference HF_HUB_OFFLINE=1 \
        python3 /build/models/check_models.py check /weights \
    && PYTHONPATH=/application:/packages python3 -c "import io; from PIL import Image; import core, handler.api; \
picture = io.BytesIO(); Image.new('RGB', (16, 12)).save(picture, 'PNG'); result = core.upscale(picture); \
assert (result.width, result.height, result.degraded) == (32, 24, False), result" \
    && chmod -R u=rwX,go=rX /weights


FROM ${BASE_IMAGE} AS lambda
# Only /tmp can be written to. Nothing is downloaded: what is not in the image steps down the chain of fall-backs.
ENV HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    HF_HUB_CACHE=/opt/models/hub \
    MODELS_DIR=/opt/models \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1
COPY --from=torch /torch /var/task
COPY --from=packages /packages /var/task
COPY --from=checked /weights /opt/models
COPY --from=application /application /var/task
# Lambda runs everything as a user without rights, whatever is said here; Docker does not.
USER 10001:10001
# `sam local` builds its emulator into a copy of this image, and may not as that user.
ONBUILD USER root
CMD ["handler.api.handler"]


FROM ${BATCH_BASE_IMAGE} AS server
# Everything that is written lies under /data, so that the rest can be read-only. Nothing is downloaded.
ENV HOST=0.0.0.0 \
    PORT=8000 \
    DATA_DIR=/data/pictures \
    TMPDIR=/data/tmp \
    XDG_CACHE_HOME=/data/cache \
    HOME=/data \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1
COPY --from=packages /packages /app
COPY --from=application /application /app
WORKDIR /app
# The packages were chosen by the other base's Python.
RUN python3 -c "import core, handler.__main__, handler.web.app, onnxruntime" \
    && mkdir -p /data/pictures /data/tmp /data/cache \
    && chown -R 10001:10001 /data
VOLUME /data
EXPOSE 8000
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["python3", "-c", "import http.client, os, sys; \
server = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); \
server.request('GET', '/health'); sys.exit(server.getresponse().status != 200)"]
ENTRYPOINT []
CMD ["python3", "-m", "handler"]


FROM ${BATCH_BASE_IMAGE} AS torch-cuda
ARG BATCH_TORCH_INDEX=https://pypi.org/simple
ARG TORCH_VERSION
COPY infra/trim.py /build/
# With its dependencies, of which those that are not NVIDIA's come from the next layer.
RUN python3 -m pip install --no-cache-dir --no-compile --target /torch \
        --index-url "${BATCH_TORCH_INDEX}" "torch==${TORCH_VERSION}" \
    && python3 /build/trim.py /torch torch functorch nvidia cuda triton


FROM ${BATCH_BASE_IMAGE} AS batch
ENV HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    HF_HUB_CACHE=/opt/models/hub \
    MODELS_DIR=/opt/models \
    HF_HUB_OFFLINE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONDONTWRITEBYTECODE=1
COPY --from=torch-cuda /torch /var/task
COPY --from=packages /packages /var/task
COPY --from=checked /weights /opt/models
COPY --from=application /application /var/task
WORKDIR /var/task
# The packages were chosen by the other base's Python.
RUN python3 -c "import core, handler.batch_job"
USER 10001:10001
ENTRYPOINT []
CMD ["python", "-m", "handler.batch_job", "--help"]


# The default of `docker build`.
FROM lambda
USER 10001:10001
