#!/bin/sh
# infra/requirements.txt from pyproject.toml: every version with its hashes, for every platform. The Dockerfile installs
# torch, and with CUDA what it needs of NVIDIA, by version alone: its index differs from platform to platform.
# Run by `make requirements`; UV is the program of https://docs.astral.sh/uv.
set -eu
cd "$(dirname "$0")/.."
list=$(mktemp)
# Torch imports these only to compile and trace networks, huggingface_hub hf-xet only to download faster.
# OpenVINO computes the embedded models in bf16 on processors with AMX; a cold start would read 180 MB more for it, and a
# card does not need it.
unused="sympy mpmath networkx jinja2 markupsafe setuptools hf-xet openvino openvino-telemetry"
trap 'rm -f "$list"' EXIT
compile() {
    "${UV:-uv}" pip compile pyproject.toml --extra service --extra torch --universal --python-version 3.11 \
        --quiet --no-annotate --no-header "$@"
}
compile --output-file "$list"
apart=$(sed -nE 's/^((torch|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==.*)/\1/p' "$list" | cut -d= -f1 | sort -u)
{
    echo "# Made by \`make requirements\` from pyproject.toml; do not edit."
    # shellcheck disable=SC2046 # one argument for each name
    compile --generate-hashes $(printf -- '--no-emit-package %s ' $apart $unused) | sed '/^# The following/,$d'
} >infra/requirements.txt
