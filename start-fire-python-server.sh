#!/bin/sh
# Starts the server in the scanner's chroot (chroot_command in fire.ini), or in a container.
#
#     start-fire-python-server.sh [LOGFILE [OPTION...]]
#
# LOGFILE takes all output, added to what it holds; without it, or when it is empty, output is discarded. Further options
# go to main.py. From the environment: MRD_CODE_DIR, the folder of the code; PORT; PYTHON, the interpreter.
set -eu

code=${MRD_CODE_DIR:-/opt/code/python-ismrmrd-server}
log=${1:-}
[ $# -eq 0 ] || shift
case $log in
    "") log=/dev/null ;;
    /*) ;;
    *) log=$PWD/$log ;;
esac
[ -d "${log%/*}/" ] || mkdir -p "${log%/*}"

# A chroot command may be started with hardly any environment; the interpreter of the container image is in /usr/local.
PATH=${PATH:+$PATH:}/usr/local/bin:/usr/bin:/bin
export PATH

cd "$code"
# -r: the log is read on the Windows host. exec: signals for this process reach the server.
exec "${PYTHON:-python3}" main.py -v -r -H 0.0.0.0 -p "${PORT:-9002}" "$@" </dev/null >>"$log" 2>&1
