#!/bin/sh
# A base image that speaks Lambda's runtime protocol, made on this machine without pulling anything:
#
#     infra/local-base/build.sh local/lambda-python bookworm
#     docker build --build-arg BASE_IMAGE=local/lambda-python --build-arg TORCH_INDEX=file:///wheels/simple .
#
# For machines that reach no registry of images, such as those of continuous integration. Users do not need it: the
# Dockerfile's own base is AWS's. Needs root, debootstrap, a Docker engine, and these variables:
#
#     RIE     path of the runtime interface emulator (aws-lambda-rie-x86_64; the wheel of aws-sam-cli carries it)
#     WHEEL   path of torch's wheel for the Python of that Debian (bookworm 3.11, trixie 3.13); optional: without it
#             torch comes from TORCH_INDEX as usual
set -eu
name=${1:?name of the image}
suite=${2:-bookworm}
: "${RIE:?path of aws-lambda-rie}"
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,python-is-python3,ca-certificates \
    "$suite" "$work/root"
rm -rf "$work/root/var/cache/apt" "$work/root/var/lib/apt/lists"
tar -C "$work/root" -c . | docker import - "$name:system" >/dev/null

# What the machine needs to reach its package index belongs to the base, so that the Dockerfile stays clean.
mkdir -p "$work/context/wheels/simple/torch" "$work/context/certificates"
cp /etc/ssl/certs/ca-certificates.crt "$work/context/certificates/"
cp "$RIE" "$work/context/aws-lambda-rie"
cp "$here/Dockerfile" "$here/lambda-entrypoint.sh" "$work/context/"
if [ -n "${WHEEL:-}" ]; then
    cp "$WHEEL" "$work/context/wheels/simple/torch/"
    file=$(basename "$WHEEL")
    # A local version's plus sign is a blank in a URL unless it is encoded.
    printf '<a href="%s">%s</a>\n' "$(echo "$file" | sed 's/+/%2B/')" "$file" >"$work/context/wheels/simple/torch/index.html"
fi
docker build --build-arg "SYSTEM=$name:system" --tag "$name" "$work/context"
