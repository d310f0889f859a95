#!/bin/sh
# Starts the server like start-fire-python-server.sh, and keeps all that comes in. Raw data fill a disk quickly.
#
#     start-fire-python-server-with-data-storage.sh [LOGFILE]
#
# From the environment, besides what start-fire-python-server.sh takes: MRD_SAVED_DATA_DIR, where the data go.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
exec sh "$here/start-fire-python-server.sh" "${1:-}" -s -S "${MRD_SAVED_DATA_DIR:-/tmp/share/saved_data}"
