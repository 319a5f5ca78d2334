#!/usr/bin/env bash
# Plans, trains and evaluates a small autoencoder on procedural tiles, then draws what it rebuilds.
# Uses every GPU that torch can use, or two CPU ranks where there is none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rigfit=.venv/bin/rigfit
number=1
while [ -e "runs/autoencoder/demo-$number" ]; do number=$((number + 1)); done
run=runs/autoencoder/demo-$number

# Sized for about three minutes of training on two slow cores.
options=(data=sample name="demo-$number" img_size=128 embed_dim=192 num_layers=4
    effective_batch_size=32 micro_batch_size=16 lr=1e-3 epochs=40)
if ! .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "torch sees no GPU here: the demo trains on two CPU ranks."
    options+=(--rig cpu:2)
fi

say() { printf '\n$ %s\n' "$*"; "$@"; }

say "$rigfit" train autoencoder "${options[@]}"
say "$rigfit" eval "$run"
say "$rigfit" autoencoder reconstruct "$run"

printf '\nThe run folder is %s. Pictures to look at:\n' "$run"
find "$run" -name '*.png' -o -name '*.gif' | sort | sed 's/^/  /'
