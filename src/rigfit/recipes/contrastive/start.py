"""What a run starts from: a run with another queue, or a backbone alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from rigfit.recipes.contrastive.queue import resized


def adapt(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], backbone: Collection[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return what loads of `state` into a task whose entries are `own`, and what was changed, in words.

    Args:
        state: Of another run of this recipe, or of a bare backbone (an export, a file of timm).
        own: The task's own, with a fresh queue.
        backbone: Names of the backbone's entries.
    """
    bare = {name: value for name, value in state.items() if name in backbone}
    if bare and not any(name.startswith("encoder.") for name in state):
        both = {
            f"{encoder}.backbone.{name}": value.clone()
            for encoder in ("encoder", "momentum_encoder")
            for name, value in bare.items()
        }
        return both, (f"{len(bare)} tensors of a bare backbone, for encoder and momentum encoder",)
    kept = {name: value for name, value in state.items() if name in own}
    old, fresh = kept.get("queue.keys"), own.get("queue.keys")
    if old is None or fresh is None or old.shape[1] != fresh.shape[1] or old.shape == fresh.shape:
        return kept, ()
    keys, numbers, pushed = resized(old.to(fresh), state["queue.numbers"].cpu(), int(state["queue.num_pushed"]), fresh)
    kept |= {"queue.keys": keys, "queue.numbers": numbers, "queue.num_pushed": pushed}
    return kept, (f"the queue went from {len(old):,} to {len(fresh):,} keys, the newest {int(pushed):,} kept",)
