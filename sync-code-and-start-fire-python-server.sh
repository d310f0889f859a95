#!/bin/sh
# Copies the code that lies in the folder shared with the host over the installed one, then starts the server like
# start-fire-python-server.sh. For development: what is shared replaces what was installed.
#
#     sync-code-and-start-fire-python-server.sh [LOGFILE]
#
# From the environment, besides what start-fire-python-server.sh takes: MRD_SHARE_CODE_DIR, the shared folder.
set -eu

# The shell reads this function to its end before it runs it, so the copy may replace this very file.
main() {
    here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
    share=${MRD_SHARE_CODE_DIR:-/tmp/share/code}
    code=${MRD_CODE_DIR:-/opt/code/python-ismrmrd-server}
    if [ -d "$share" ]; then
        mkdir -p "$code"
        cp -R "$share/." "$code/"
    else
        echo "There is no folder $share: the server starts with the code that is installed." >&2
    fi
    exec sh "$here/start-fire-python-server.sh" "$@"
}

main "$@"
