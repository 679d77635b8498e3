#!/usr/bin/env bash
# The Dockerfile's steps in an empty virtual environment, then a server that takes a video, answers and stops.
#   deploy/smoke.sh [FOLDER]      (default: a new folder, removed afterwards)
# TORCH_INDEX= (empty) takes torch from pip's own index.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
TORCH_INDEX=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
EXTRAS=${EXTRAS:-service,otel,labels}

if [ $# -gt 0 ]; then
    work=$1
    mkdir -p "$work"
else
    work=$(mktemp -d)
fi
server=
ended() {
    if [ -n "$server" ]; then kill -KILL "$server" 2>/dev/null || true; fi
    if [ $# -eq 0 ]; then rm -rf "$work"; fi
}
trap 'ended "$@"' EXIT

say() { printf '== %s\n' "$*"; }
fail() { printf 'smoke: %s\n' "$*" >&2; exit 1; }

say "install"
mkdir -p "$work/source"
for name in constraints.txt pyproject.toml README.md LICENSE adapters api catalog nvpstore; do
    cp -RP "$root/$name" "$work/source/"
done
python3 -m venv "$work/venv"
cd "$work/source"
"$work/venv/bin/python" -m pip install --quiet --no-cache-dir -c constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[$EXTRAS]"
cd "$work"
rm -rf "$work/source" # what was installed has to be enough
export PATH="$work/venv/bin:$PATH"

say "start"
export NVP_ARCHIVE="$work/archive" NVP_STATE="$work/state" NVP_CACHE="$work/cache"
nvp init
key=$(nvp keys add smoke --scope admin)
nvp serve --port 0 --workers 1 >"$work/stdout" 2>"$work/log" &
server=$!
for _ in $(seq 1500); do
    if grep -q '^serving ' "$work/stdout"; then break; fi
    kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; fail "the server ended"; }
    sleep 0.2
done
url=$(sed -n 's/^serving .* at //p' "$work/stdout")
[ -n "$url" ] || fail "the server did not start"

ask() { curl -sS --fail-with-body --max-time 120 -H "Authorization: Bearer $key" "$@"; }
field() { python -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

for _ in $(seq 1500); do
    if curl -sf "$url/readyz" >/dev/null; then break; fi
    sleep 0.2
done
curl -sS --fail-with-body "$url/readyz" >/dev/null || fail "not ready"
status=$(curl -s -o /dev/null -w '%{http_code}' "$url/v1/videos")
[ "$status" = 401 ] || fail "without a key: $status instead of 401"

say "upload"
python - "$work/clip.mp4" <<'PYTHON'
import sys
from fractions import Fraction

import av
import numpy as np

with av.open(sys.argv[1], "w") as container:
    stream = container.add_stream("libx264", rate=Fraction(10))
    stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
    for index in range(12):
        rgb = np.zeros((64, 96, 3), np.uint8)
        rgb[20:40, 5 * index : 5 * index + 20] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
    container.mux(stream.encode())
PYTHON
job=$(ask -F "file=@$work/clip.mp4" -F mode=add -F name=smoke "$url/v1/videos" | field id)
for _ in $(seq 3000); do
    state=$(ask "$url/v1/jobs/$job" | field state)
    case $state in
        done) break ;;
        failed | cancelled) ask "$url/v1/jobs/$job" >&2; fail "the job ended: $state" ;;
    esac
    sleep 0.2
done
[ "$state" = done ] || fail "the job is still $state"

say "query"
rows=$(ask -H 'Content-Type: application/json' -H 'Accept: text/csv' \
    -d '{"sql": "SELECT count(*) FROM labels l JOIN videos v USING (video_id) WHERE v.name = '"'smoke'"' AND rank = 1"}' \
    "$url/v1/query" | tail -n 1 | tr -d '\r')
[ "$rows" = 12 ] || fail "$rows rows instead of 12"
ask "$url/metrics" | grep -q '^nvp_jobs{kind="add",state="done"} 1' || fail "the job is not in the metrics"

say "stop"
kill -TERM "$server"
status=0
wait "$server" || status=$?
server=
[ "$status" = 0 ] || { cat "$work/log" >&2; fail "exit status $status"; }
secret=${key##*_}
if grep -qF "$secret" "$work/log"; then fail "the log holds the key"; fi
say "all well"
