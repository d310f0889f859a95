#!/usr/bin/env bash
# Sets up .venv and runs all tests; further arguments go to pytest: ./test.sh tests/mrdio/test_codec.py -k text
set -euo pipefail
cd "$(dirname "$0")"
. ./setup-venv.sh requirements-test.txt

# Programs that are not ours, and that ours are compared with.
packages=""
command -v bart >/dev/null || packages="$packages bart"
command -v ismrmrd_recon_cartesian_2d >/dev/null || packages="$packages ismrmrd-tools"
command -v dciodvfy >/dev/null || packages="$packages dicom3tools"
command -v dcmdump >/dev/null || packages="$packages dcmtk"
command -v chromium >/dev/null || packages="$packages chromium"
command -v zip >/dev/null || packages="$packages zip"
PATH=$PATH:/usr/sbin:/sbin command -v mke2fs >/dev/null || packages="$packages e2fsprogs"
[ "$(id -u)" = 0 ] || command -v fakeroot >/dev/null || packages="$packages fakeroot"
if [ -n "$packages" ]; then
    install="apt-get update -q && apt-get install -y -q --no-install-recommends$packages"
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        echo "Installing$packages ..."
        log=$(mktemp)
        bash -c "DEBIAN_FRONTEND=noninteractive; export DEBIAN_FRONTEND; $install" >"$log" 2>&1 || {
            cat "$log" >&2
            exit 1
        }
    else
        echo "Some tests need programs that are missing here. On Debian and Ubuntu, type once:" >&2
        echo "    sudo sh -c '$install'" >&2
    fi
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Each file in one process, as its tests share what is slow to make.
.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
