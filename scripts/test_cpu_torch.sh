#!/usr/bin/env bash
# Read training steps on paper with a torch built without CUDA, in an environment of its own: .venv-cpu, or one that is
# there already and is left as it is, named with CPU_VENV=.
#
# Such a torch is no package of the usual index: its version ends in +cpu. Where pip's own configuration leads to one
# (a wheel in a find-links folder, or an extra index), it is tested; elsewhere this says so and ends well.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
version=${CPU_TORCH:-2.13.0+cpu}
venv=${CPU_VENV:-.venv-cpu}

if [ -n "${CPU_VENV:-}" ] && [ ! -x "$venv/bin/python" ]; then
    echo "There is no $venv/bin/python. Name the folder of an environment with CPU_VENV=, or leave it out." >&2
    exit 2
fi
if [ ! -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv"
fi
if [ -z "${CPU_VENV:-}" ] && ! "$venv/bin/python" -c "import sys, torch; sys.exit(torch.__version__ != '$version')" 2>/dev/null; then
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    if ! "$venv/bin/python" -m pip download --quiet --no-deps --dest "$wheels" "torch==$version" 2>"$wheels/why"; then
        echo "Skipped: pip finds no torch $version here. Name another with CPU_TORCH=, or tell pip where it is" \
            "(PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL). pip said: $(tail -n 1 "$wheels/why")"
        exit 0
    fi
    "$venv/bin/python" -m pip install --quiet "$wheels"/torch-*.whl \
        numpy pydantic PyYAML Pillow safetensors psutil nvidia-ml-py typer rich scikit-learn pytest pytest-timeout hypothesis
fi

export PYTHONPATH="$PWD/src" OMP_NUM_THREADS=1
"$venv/bin/python" -c "import torch; assert torch.version.cuda is None; print('torch', torch.__version__, 'without CUDA')"
exec "$venv/bin/python" -m pytest tests/measuring/test_trace.py tests/measuring/test_memo.py tests/measuring/test_rewritten.py "$@"
