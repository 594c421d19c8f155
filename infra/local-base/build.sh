#!/bin/sh
# A base image that speaks Lambda's runtime protocol, made on this machine without pulling anything:
#
#     infra/local-base/build.sh NAME [SUITE]
#
# For machines that reach no registry of images, such as those of continuous integration (.ci/run). Users do not need
# it: the Dockerfile's own bases are public. Needs root, debootstrap, a Docker engine, and these variables:
#
#     RIE      path of the runtime interface emulator (aws-lambda-rie-x86_64; the wheel of aws-sam-cli carries it)
#     WHEELS   a folder of wheels that pip prefers to its index in every build on this base; optional. A wheel of torch
#              for CPUs in it saves the build from downloading one: it is chosen whatever TORCH_INDEX holds.
set -eu
name=${1:?name of the image}
suite=${2:-bookworm}
: "${RIE:?path of aws-lambda-rie}"
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

debootstrap --variant=minbase --include=python3,python3-pip,python-is-python3,ca-certificates "$suite" "$work/root" \
    >"$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; exit 1; }
rm -rf "$work"/root/var/cache/apt "$work"/root/var/lib/apt/lists "$work"/root/var/log
tar -C "$work/root" -c . | docker import - "$name:system" >/dev/null
rm -rf "$work/root"

mkdir -p "$work/context/wheels"
# What this machine needs to reach its package index belongs to the base, so that the Dockerfile stays clean.
cp /etc/ssl/certs/ca-certificates.crt "$RIE" "$here/Dockerfile" "$here/lambda-entrypoint.sh" "$work/context/"
[ -z "${WHEELS:-}" ] || cp "$WHEELS"/*.whl "$work/context/wheels/"
docker build --build-arg "SYSTEM=$name:system" --tag "$name" "$work/context"
