#!/usr/bin/env bash
# Plans, trains and evaluates a small autoencoder on procedural tiles, then draws what it rebuilds.
# Uses every GPU that torch can use, or two CPU ranks where there is none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rigfit=.venv/bin/rigfit
# The rig, and an effective batch of about 16 that its ranks can share.
read -r rig effective_batch < <(.venv/bin/python -c '
import torch
from rigfit.hardware.detect import count_cores

gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
ranks = gpus or min(2, count_cores())
print("auto" if gpus else f"cpu:{ranks}", ranks * max(1, 16 // ranks))')

number=1
while [ -e "runs/autoencoder/demo-$number" ]; do number=$((number + 1)); done
run=runs/autoencoder/demo-$number

say() { printf '\n$ %s\n' "$*"; "$@"; }

# Sized for about three minutes of training on two slow cores.
say "$rigfit" train autoencoder --rig "$rig" data=sample "name=demo-$number" img_size=128 embed_dim=192 num_heads=6 \
    num_layers=4 decoder_dim=192 decoder_layers=2 augment=flips "effective_batch_size=$effective_batch" lr=1e-3 \
    epochs=40 eval_every_steps=80
say "$rigfit" eval "$run"
say "$rigfit" autoencoder reconstruct "$run"

printf '\nThe run folder is %s. Pictures to look at:\n' "$run"
find "$run" -path "$run/data" -prune -o \( -name '*.png' -o -name '*.gif' \) -print | sort | sed 's/^/  /'
