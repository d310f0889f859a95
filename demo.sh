#!/usr/bin/env bash
# Reconstructs a phantom: sets up .venv, makes raw data, sends them through the server, makes pictures.
set -euo pipefail
cd "$(dirname "$0")"
. ./setup-venv.sh requirements.txt requirements-fftw.txt

folder=demo
mkdir -p "$folder"
rm -f "$folder"/*.h5 "$folder"/*.gif "$folder"/*.png "$folder"/*.log

echo "1. Raw data: a phantom, Cartesian, and a beating, breathing chest, spiral"
.venv/bin/python generate_cartesian_shepp_logan_dataset.py -m 192 -c 8 -n 0.02 -o "$folder/phantom_raw.h5"
.venv/bin/python generate_spiral_dataset.py --arms 480 -o "$folder/spiral_raw.h5"

echo "2. The server; its log is $folder/server.log, the settings of TFD are in $folder/configs"
mkdir -p "$folder/configs" # settings in the folder where the server is started go before its own; these are quick ones
cat >"$folder/configs/rtspiral_bart_tvrecon_config.toml" <<'END'
[reconstruction]
backend = "native"
arms_per_frame = 7
num_recon_frames = 64
num_chunks = 0
num_iter = 20
fov_oversampling = 1.0
END
(cd "$folder" && exec ../.venv/bin/python ../main.py -v -p 0 -l server.log >/dev/null) &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null || true' EXIT
port=""
for _ in $(seq 100); do # it takes any free port, and says which
    port=$(sed -n 's/.*Listening on .*:\([0-9]*\)$/\1/p' "$folder/server.log" 2>/dev/null || true)
    if [ -n "$port" ] || ! kill -0 $server 2>/dev/null; then break; fi
    sleep 0.1
done
if [ -z "$port" ]; then
    echo "error: the server has not started:" >&2
    cat "$folder/server.log" >&2
    exit 1
fi

echo "3. The client sends them and keeps the images"
reconstruct() { # config, name of the raw data, name of the images
    .venv/bin/python client.py -p "$port" --timeout 60 -c "$1" -G dataset -o "$folder/$3_img.h5" "$folder/$2_raw.h5" \
        2>"$folder/client.log" || { cat "$folder/client.log" >&2; exit 1; }
}
reconstruct simplefft phantom phantom
reconstruct simplenufft1arm spiral spiral          # view-sharing: 55 arms in a frame
reconstruct rtspiral_bart_tvrecon spiral spiral_tfd # temporal constraints: 7 arms in a frame
reconstruct rtspiral_live_tvrecon spiral spiral_live # the same live; without --realtime, which paces the client as a scanner

echo "4. Pictures of them: an image, and the same scan as three movies"
.venv/bin/python mrd2gif.py --png "$folder/phantom_img.h5"
.venv/bin/python mrd2gif.py "$folder/spiral_img.h5"
.venv/bin/python mrd2gif.py "$folder/spiral_tfd_img.h5"
.venv/bin/python mrd2gif.py "$folder/spiral_live_img.h5"

echo "Done. Look at the four pictures named above. To see scans live in a browser, type"
echo "    .venv/bin/python main.py --view 9003"
echo "and in a second terminal"
echo "    .venv/bin/python client.py --realtime --loop -w -c rtspiral_live_tvrecon $folder/spiral_raw.h5"
echo "and open http://127.0.0.1:9003/"
