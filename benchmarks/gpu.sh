#!/usr/bin/env bash
# benchmarks/gpu.sh [PART...]: run the CUDA benchmarks, or only the named parts. See benchmarks/GPU.md.
# CLIP=FILE measures on that clip instead of synthetic frames.
# A part whose JSON is there is not run again: delete it to measure anew. Each stops after 10 minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

PARTS=(fit latency)
PYTHON=${PYTHON:-python3}
RESULTS=${RESULTS:-benchmarks/results/gpu}
PART_SECONDS=${PART_SECONDS:-600}

run_part() {
  local part=$1 result="$RESULTS/$1.json"
  if [[ -s $result ]]; then
    echo "$part: $result is there"
    return 0
  fi
  echo "$part: running"
  # -m finds nvpstore in the current folder: such boxes cannot install anything.
  timeout "$PART_SECONDS" "$PYTHON" -m "benchmarks.$part" --device cuda --out "$result" \
    ${CLIP:+--clip "$CLIP"}
}

[[ $# -gt 0 ]] || set -- "${PARTS[@]}"
for part in "$@"; do
  if [[ ! " ${PARTS[*]} " == *" $part "* ]]; then
    echo "no part '$part': choose from ${PARTS[*]}" >&2
    exit 2
  fi
done

mkdir -p "$RESULTS"
failed=()
for part in "$@"; do
  run_part "$part" || failed+=("$part (status $?)")
done
if [[ ${#failed[@]} -gt 0 ]]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
