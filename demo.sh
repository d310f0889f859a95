#!/usr/bin/env bash
# Reconstructs a phantom: sets up .venv, makes raw data, sends them through the server, makes pictures.
set -euo pipefail
cd "$(dirname "$0")"
. ./setup-venv.sh requirements.txt

folder=demo
port=${PORT:-9042}
mkdir -p "$folder"
rm -f "$folder"/*.h5 "$folder"/*.gif "$folder"/*.png

echo "1. A phantom: raw data of 8 coils"
.venv/bin/python generate_cartesian_shepp_logan_dataset.py -m 192 -c 8 -n 0.02 -o "$folder/phantom_raw.h5"

echo "2. The server, on port $port; its log is $folder/server.log"
.venv/bin/python main.py -v -p "$port" -l "$folder/server.log" >/dev/null &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null || true' EXIT

echo "3. The client sends the raw data and keeps the images"
.venv/bin/python client.py -p "$port" -c simplefft -G dataset -o "$folder/phantom_img.h5" "$folder/phantom_raw.h5" \
    2>"$folder/client.log" || { cat "$folder/client.log" >&2; exit 1; }

echo "4. Pictures of them"
.venv/bin/python mrd2gif.py --png "$folder/phantom_img.h5"

echo "Done. Look at the picture above, or at the images in $folder/phantom_img.h5."
