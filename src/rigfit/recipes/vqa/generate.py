"""Answers written greedily for a whole batch, free or only along a tree of allowed answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rigfit.recipes.vqa.model import base_of, to_patches
from rigfit.recipes.vqa.tokens import Chat
from rigfit.recipes.vqa.trie import Trie


@torch.no_grad()
def generate(
    model: Any,
    image: Tensor,
    prompts: Sequence[Tensor],
    *,
    chat: Chat,
    tries: Sequence[Trie | None],
    longest: int,
    is_synced: bool = False,
) -> list[str]:
    """Return the answer to every prompt.

    Args:
        model: Adapted or not, in eval mode.
        image: uint8 (batch, 3, size, size).
        prompts: Token ids of each prompt, of any length; padded on the left here.
        chat: Knows the special tokens.
        tries: Allowed answers of each question, or None where it is free.
        longest: Most tokens of an answer.
        is_synced: True where ranks share weights and must all take equally many steps.
    """
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), chat.pad, device=image.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    side = image.shape[-1] // 14
    is_constrained = any(trie is not None for trie in tries)
    everything = list(range(base_of(model).config.text_config.vocab_size)) if is_constrained else []

    def allowed(row: int, sequence: Tensor) -> list[int]:
        trie = tries[row]
        if trie is None:
            return everything
        return trie.allowed(sequence[length:].tolist()) or [chat.end]

    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=to_patches(image),
        image_grid_thw=torch.tensor([[1, side, side]] * len(prompts), device=image.device),
        mm_token_type_ids=(ids == base_of(model).config.image_token_id).int(),
        max_new_tokens=longest,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=[chat.end, chat.pad],
        pad_token_id=chat.pad,
        prefix_allowed_tokens_fn=allowed if is_constrained else None,
        synced_gpus=is_synced,
    )
    return [chat.decode(row.tolist()) for row in made[:, length:]]
