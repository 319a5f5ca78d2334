"""Read language models and a ResNet-50 on paper, in the shapes of the NeuSight and Lambda tables.

    python benchmarks/planner/language_models.py FOLDER

writes FOLDER/language/NAME.json.gz, which step_time.py holds against what was measured on other cards. Needs timm and
transformers beside rigfit.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from paper_models import SIZES, build_timm, build_unwritten, pretend_cuda, read_training
from torch import Tensor, nn

from rigfit.planning.trace import combine, trace_to_json


def _tokens(images: Tensor, length: int) -> Tensor:
    return torch.zeros((images.shape[0], length), dtype=torch.long, device=images.device)


def _bert(num_layers: int, width: int, heads: int, *, answers: bool) -> Callable[[], nn.Module]:
    from transformers import BertConfig, BertForQuestionAnswering, BertModel

    config = BertConfig(
        num_hidden_layers=num_layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        attn_implementation="eager",
    )
    return lambda: BertForQuestionAnswering(config) if answers else BertModel(config)


def _gpt(num_layers: int, width: int, heads: int, length: int) -> Callable[[], nn.Module]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=num_layers, n_embd=width, n_head=heads, n_positions=length, attn_implementation="eager")
    return lambda: GPT2LMHeadModel(config)


def _opt() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(
        OPTConfig(
            hidden_size=2048,
            num_hidden_layers=24,
            ffn_dim=8192,
            num_attention_heads=32,
            word_embed_proj_dim=2048,
            attn_implementation="eager",
        )
    )


def _answer(model: Any, images: Tensor) -> Tensor:
    where = torch.zeros(images.shape[0], dtype=torch.long, device=images.device)
    loss: Tensor = model(input_ids=_tokens(images, 384), start_positions=where, end_positions=where).loss
    return loss


def _encode(model: Any, images: Tensor) -> Tensor:
    mean: Tensor = model(input_ids=_tokens(images, 512)).last_hidden_state.mean()
    return mean


def _predict(length: int) -> Callable[[nn.Module, Tensor], Tensor]:
    def loss(model: Any, images: Tensor) -> Tensor:
        mean: Tensor = model(input_ids=_tokens(images, length), use_cache=False).logits.mean()
        return mean

    return loss


def _resnet() -> nn.Module:
    return build_timm("resnet50", 224)[0]


def main() -> int:
    """Read them all."""
    pretend_cuda()
    torch.set_num_threads(1)
    out = Path(sys.argv[1]) / "language"
    out.mkdir(parents=True, exist_ok=True)
    half = torch.float16
    base, large = _bert(12, 768, 12, answers=True), _bert(24, 1024, 16, answers=True)
    jobs: dict[str, tuple[Callable[[], nn.Module], Any, torch.dtype | None]] = {
        "bert_base_squad-fp16": (base, _answer, half),
        "bert_large_squad-fp16": (large, _answer, half),
        "bert_base_squad-fp32": (base, _answer, None),
        "bert_large_squad-fp32": (large, _answer, None),
        "bert_large": (_bert(24, 1024, 16, answers=False), _encode, None),
        "gpt2_large": (_gpt(36, 1280, 20, 1024), _predict(1024), None),
        "opt_13": (_opt, _predict(2048), None),
        "gpt3_27": (_gpt(32, 2560, 32, 2048), _predict(2048), None),
        "resnet50-fp16": (_resnet, None, half),
        "resnet50-fp32": (_resnet, None, None),
    }
    for name, (build, loss_of, precision) in jobs.items():
        is_image = name.startswith("resnet")
        traces = [
            read_training(
                build() if is_image else build_unwritten(build),
                size,
                (3, 224, 224) if is_image else (3, 8, 8),
                capability=(8, 6),
                precision=precision,
                channels_last=is_image and precision is not None,
                keeps_gradients=False,
                loss_of=loss_of,
                optimizer="sgd" if is_image else "adamw",
            )
            for size in SIZES
        ]
        combined = combine(*traces)
        assert combined is not None, name
        (out / f"{name}.json.gz").write_bytes(gzip.compress(trace_to_json(combined).encode(), 5))
        print(name, len(combined.calls), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
