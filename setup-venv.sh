# shellcheck shell=bash
# Sourced by demo.sh and test.sh: makes the virtual environment .venv and installs requirements files into it, once.
#
#     . ./setup-venv.sh requirements.txt
#
# Needs python3 (3.11 or later) and access to the package index; nothing is installed outside this folder.

requirements="$*"
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: Python 3.11 or later is needed as python3 (or name one: PYTHON=/path/to/python3 $0)" >&2
    exit 1
fi
# A file that remembers what was installed spares pip's check, some seconds, on every later run.
wanted=$(cat requirements*.txt | cksum)
stamp=.venv/.installed-$1
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing $requirements into .venv ..."
    [ -x .venv/bin/python ] || "$python" -m venv .venv || {
        echo "error: no virtual environment can be made; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    }
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "${@/#/-r}"
    echo "$wanted" >"$stamp"
fi
