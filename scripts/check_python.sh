#!/bin/sh
# Says what to install when PYTHON (first argument) cannot make a virtual environment for rigfit. Quiet when it can.
python=${1:-python3}

if ! command -v "$python" >/dev/null 2>&1; then
    echo "There is no $python on this machine; rigfit needs Python 3.11 or newer." >&2
    echo "Install it (Debian, Ubuntu: apt install python3 python3-venv), or name another: make PYTHON=/path/to/python3.12 ..." >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$python is $("$python" -V 2>&1); rigfit needs Python 3.11 or newer." >&2
    echo "Install a newer one and name it: make PYTHON=python3.12 ..." >&2
    exit 1
fi
if ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "$python has no working venv module, so no virtual environment can be made." >&2
    echo "Install it (Debian, Ubuntu: apt install python$version-venv), or name another Python: make PYTHON=/path/to/python3 ..." >&2
    exit 1
fi
