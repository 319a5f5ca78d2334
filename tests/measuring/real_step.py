"""Print the peak of live tensor bytes over two real steps on the CPU, from the memory events of torch's profiler."""

from __future__ import annotations

import json
import sys

import torch
from torch.autograd.profiler import profile

from rigfit.measuring.subject import one_batch
from rigfit.recipes import build_task, load_recipe
from rigfit.training.distributed import World
from rigfit.training.loader import MicroBatch
from rigfit.training.optimizer import build_optimizer, set_rate
from rigfit.training.precision import build_scaler
from rigfit.training.step import StepSettings, accumulate_gradients, update_weights
from rigfit.training.wrap import prepare_model

name, values, precision, recomputed, size = json.loads(sys.argv[1])
recipe = load_recipe(name)
config = recipe.config(**values)
device = torch.device("cpu")
settings = StepSettings(
    precision=precision, channels_last=False, clip_grad_norm=config.clip_grad_norm, seed=0, seeds_model=False
)
with profile(use_cpu=True, profile_memory=True) as found:
    task = build_task(recipe, config).train()
    batch = one_batch(recipe, config, None, size)
    prepare_model(task, recomputed=recomputed, is_channels_last=False)
    optimizer = build_optimizer(task, weight_decay=config.weight_decay, beta2=config.beta2, variant=config.optimizer)
    set_rate(optimizer, 1e-6)
    scaler = build_scaler(device, precision)
    micro = MicroBatch(batch=batch, num_samples=size, fingerprint=0, first_position=0, is_filler=False)
    for _ in range(2):
        accumulate_gradients(
            task,
            [micro, micro],
            num_items=size,
            world=World(rank=0, local_rank=0, size=1, device=device),
            scaler=scaler,
            settings=settings,
        )
        update_weights(task, optimizer, scaler, clip_grad_norm=config.clip_grad_norm)

memory = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
live = peak = 0
for _, _, num_bytes in sorted((event.start_ns(), n, event.nbytes()) for n, event in enumerate(memory)):
    live += num_bytes
    peak = max(peak, live)
print(peak)
