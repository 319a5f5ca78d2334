"""Segmentation models of the mmsegmentation zoo whose training memory was published, built on the CPU with plain torch.

The packages are imported by this benchmark only. A separate environment, which may share an installed torch:

    python3.11 -m venv mmseg-venv
    echo PATH_TO_SITE_PACKAGES_WITH_TORCH > mmseg-venv/lib/python3.11/site-packages/shared_torch.pth
    mmseg-venv/bin/pip install --no-deps mmsegmentation==1.2.2 mmengine==0.10.7 mmcv-lite==2.1.0 mmpretrain==1.2.0 \
        addict yapf termcolor platformdirs prettytable wcwidth opencv-python-headless timm matplotlib ftfy regex \
        einops mat4py model-index ordered-set markdown importlib_metadata==8.7.0 zipp
    mmseg-venv/bin/python benchmarks/planner/mmseg_models.py --list --truth TABLE.csv

What the published figure is. The logger writes the highest `torch.cuda.max_memory_allocated()` over the ranks, floored
to MiB (`mmengine/device/utils.py`; `TextLoggerHook._get_max_memory` of mmcv 0.x and 1.x). The unit of "Mem (GB)" was
asked of the maintainers: "Mem(GB) = 'memory' / 1024 when cudnn_benchmark = False" (mmsegmentation#1215, where the asker
then got the same figure) and "11 * 1024MB" (mmsegmentation#1184). So 1 GB in the table is 2^30 bytes, rounded to 0.1 or
0.01. That is the project's stated rule; nothing proves that every later contributor followed it.

cuDNN benchmark. `default_runtime.py` of 0.x and 1.x sets `cudnn_benchmark=True`, and the published logs therefore
show far more: 18773 MiB where the table says 6.1 GB (mmsegmentation#1215). The table was measured apart with False
(docs/en/model_zoo.md "Common settings"; mmsegmentation#321, #1215). `Row.cudnn_benchmark_in_config` is what the config
says, `Row.cudnn_benchmark_when_measured` what the documentation says; a later contributor may have forgotten it.

What a trace of `Built` does not hold but the measured runs did, all with DistributedDataParallel on 1 to 16 GPUs:
- gradients alive through the forward pass: the optimizer hook of mmcv 0.x and 1.x calls `zero_grad()` after the forward
  pass, and torch before 2.0 filled gradients with zeros instead of dropping them;
- DDP's flat buckets: once more the bytes of the trainable parameters (no `gradient_as_bucket_view` in mmcv 0.x/1.x);
- SyncBatchNorm where a config asks for it, here a BatchNorm over one rank (it, too, keeps mean and inverse deviation).
- the inputs of softmax and log_softmax, which torch up to 1.10 saved for the backward pass (pytorch#49600, #64000,
  ended by #65242): enter `mmseg_stand_ins.OldTorchSoftmax()` around `Built.loss` to have them;
The figures come from torch 1.5 to 1.11 (0.x of mmsegmentation), the modules here from mmsegmentation 1.2.2.

Mixed precision: mmcv 0.x ran the losses outside autocast on logits cast to float32 (`force_fp32`). `Built.loss` does so
where `Built.amp` is set; the caller opens the autocast context around `Built.loss`. Outside one it changes nothing.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import functools
import hashlib
import importlib
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmseg_stand_ins
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

VERSION = "1.2.2"
USABLE = Path(__file__).with_name("mmseg_usable.json")
OPTIMIZERS = {"SGD": "sgd", "AdamW": "adamw", "Adam": "adamw"}  # Adam and AdamW keep the same two moments
# The metafile's path on the left does not exist in the package; the file on the right is the one it means.
MISSPELT = {
    "configs/deeplabv3plus/ddeeplabv3plus_r101-d16-mg124_4xb2-40k_cityscapes-512x1024.py": (
        "configs/deeplabv3plus/deeplabv3plus_r101-d16-mg124_4xb2-40k_cityscapes-512x1024.py"
    ),
    "configs/poolformer/fpn_poolformer_s36_8xb4-40k_ade20k-512x512.py": (
        "configs/poolformer/fpn_poolformer_s36_8x4_512x512_40k_ade20k.py"
    ),
}
NOT_BUILT = {
    "mask2former": "needs mmdet and its deformable attention kernel; memory depends on the classes in each picture",
    "maskformer": "needs mmdet; Hungarian matching; memory depends on the classes in each picture",
    "san": "Hungarian matching on the host; memory depends on the classes in each picture",
}


class NotBuiltError(Exception):
    """The config asks for something that this benchmark does not rebuild; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published figure with the settings that produced it.

    `crop` is (height, width) in pixels, `model_key` is equal for rows whose step is the same but for its length.
    """

    config: str
    measured_gb: float
    crop: tuple[int, int]
    micro_batch: int
    num_gpus: int
    gpu: str
    amp: bool
    optimizer: str
    clips_gradients: bool
    cudnn_benchmark_in_config: bool
    cudnn_benchmark_when_measured: bool
    model_key: str

    @property
    def measured_bytes(self) -> int:
        """Peak allocated bytes, reading 1 GB as 2^30 bytes (see the module's docstring)."""
        return round(self.measured_gb * 2**30)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """One published figure that cannot be used, and why."""

    config: str
    reason: str


class Samples(list[Any]):
    """mmseg's list of samples that also carries the batch's labels (batch, 1, height, width) unsplit."""

    label: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A model in training mode with random weights on CPU, and how the zoo trained it; `crop` is (height, width)."""

    model: nn.Module
    optimizer: str
    amp: bool
    micro_batch: int
    crop: tuple[int, int]
    num_classes: int
    has_edges: bool

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the scalar training loss, auxiliary heads included, of a batch shaped like `example`'s."""
        terms = self.model(batch["image"], self._samples(batch), mode="loss")
        losses = [value for name, value in terms.items() if "loss" in name]
        return torch.stack([term.mean() for value in losses for term in _as_list(value)]).sum()

    def example(self, micro_batch: int, crop: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Return noise: image float32 (batch, 3, height, width), label (or edge) int64 (batch, 1, height, width)."""
        size = crop or self.crop
        batch = {
            "image": torch.randn(micro_batch, 3, *size),
            "label": torch.randint(0, self.num_classes, (micro_batch, 1, *size)),
        }
        if self.has_edges:
            batch["edge"] = torch.randint(0, 2, (micro_batch, 1, *size))
        return batch

    def _samples(self, batch: dict[str, Tensor]) -> Samples:
        structures = importlib.import_module("mmseg.structures")
        pixel_data = importlib.import_module("mmengine.structures").PixelData
        samples = Samples()
        samples.label = batch["label"]
        for index, label in enumerate(batch["label"]):
            sample = structures.SegDataSample(gt_sem_seg=pixel_data(data=label))
            if self.has_edges:
                sample.gt_edge_map = pixel_data(data=batch["edge"][index])
            samples.append(sample)
        return samples


def rows(truth_csv: Path) -> list[Row]:
    """Return the usable published figures, one a config, read from the table and the configs of the package."""
    return _sort_out(truth_csv)[0]


def left_out(truth_csv: Path) -> list[LeftOut]:
    """Return the published figures that `rows` leaves out, with reasons."""
    return _sort_out(truth_csv)[1]


@functools.cache
def _sort_out(truth_csv: Path) -> tuple[list[Row], list[LeftOut]]:
    with truth_csv.open(newline="") as file:
        table = [line for line in csv.DictReader(file) if line["repo"] == "mmsegmentation"]
    figures: dict[str, set[str]] = collections.defaultdict(set)
    lines: dict[str, dict[str, str]] = {}
    kept, dropped = [], []
    for line in table:
        if line["version"] != VERSION:
            reason = f"version {line['version']}: the measurement that {VERSION} lists under a new config name"
            dropped.append(LeftOut(config=line["config"], reason=reason))
            continue
        config = MISSPELT.get(line["config"], line["config"])
        figures[config].add(line["train_memory_gb"])
        lines.setdefault(config, line)
    for config, line in lines.items():
        row = _row(config, line, figures[config])
        (kept if isinstance(row, Row) else dropped).append(row)  # type: ignore[arg-type]
    return kept, dropped


def _row(config: str, line: dict[str, str], figures: set[str]) -> Row | LeftOut:
    if len(figures) > 1:
        return LeftOut(config=config, reason=f"two figures are published: {' and '.join(sorted(figures))} GB")
    if not (_configs_folder() / config).exists():
        return LeftOut(config=config, reason=f"the config is not in mmsegmentation {VERSION}")
    cfg = read_config(config)
    crop = tuple(cfg.crop_size)
    pipeline = cfg.train_dataloader.dataset.get("pipeline", cfg.get("train_pipeline", []))
    crops = {tuple(step.crop_size) for step in pipeline if step.type == "RandomCrop"}
    if crops - {crop}:
        return LeftOut(config=config, reason=f"crop_size is {crop} but the training pipeline crops {crops.pop()}")
    micro_batch = cfg.train_dataloader.batch_size
    if line["samples_per_gpu_in_name"] not in ("", str(micro_batch)):
        reason = f"the name says {line['samples_per_gpu_in_name']} samples a GPU, the config {micro_batch}"
        return LeftOut(config=config, reason=reason)
    gpus, _, gpu = line["training_resources"].partition("x ")
    return Row(
        config=config,
        measured_gb=float(line["train_memory_gb"]),
        crop=(crop[0], crop[1]),
        micro_batch=micro_batch,
        num_gpus=int(gpus),
        gpu=gpu.removesuffix(" GPUS"),
        amp=_uses_amp(cfg),
        optimizer=OPTIMIZERS[cfg.optim_wrapper.optimizer.type],
        clips_gradients=bool(cfg.optim_wrapper.get("clip_grad")),
        cudnn_benchmark_in_config=bool(cfg.env_cfg.cudnn_benchmark),
        cudnn_benchmark_when_measured=False,
        model_key=_model_key(cfg),
    )


def _model_key(cfg: Any) -> str:
    step = [cfg.model.to_dict(), list(cfg.crop_size), cfg.train_dataloader.batch_size, _uses_amp(cfg)]
    step.append(OPTIMIZERS[cfg.optim_wrapper.optimizer.type])
    step[0].pop("test_cfg", None)
    return hashlib.sha1(json.dumps(_without_weights(step), sort_keys=True, default=str).encode()).hexdigest()[:12]


def _uses_amp(cfg: Any) -> bool:
    # `fp16` is how 0.x asked for it; one config of 1.2.2 still does, and its name says amp.
    return cfg.optim_wrapper.type == "AmpOptimWrapper" or "fp16" in cfg


def _configs_folder() -> Path:
    spec = importlib.util.find_spec("mmseg")
    if spec is None or spec.origin is None:
        raise SystemExit("mmsegmentation is not installed here. Make the environment at the top of this file.")
    return Path(spec.origin).parent / ".mim"


def read_config(config: str) -> Any:
    """Return mmengine's Config of a path such as `configs/pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py`."""
    return importlib.import_module("mmengine.config").Config.fromfile(
        _configs_folder() / config, import_custom_modules=False
    )


def build(config_name: str) -> Built:
    """Build a config's model with random weights. Raises `NotBuiltError` where it needs what is not rebuilt here."""
    family = config_name.split("/")[1]
    if family in NOT_BUILT:
        raise NotBuiltError(NOT_BUILT[family])
    mmseg_stand_ins.install()
    cfg = read_config(config_name)
    if any("mmpretrain" in name for name in cfg.get("custom_imports", {}).get("imports", [])):
        importlib.import_module("mmpretrain.models")
    importlib.import_module("mmengine.registry").init_default_scope("mmseg")
    model = importlib.import_module("mmseg.registry").MODELS.build(_without_weights(cfg.model))
    mmseg_stand_ins.replace_sync_batch_norm(model)
    heads = [module for module in model.modules() if hasattr(module, "loss_by_feat") and hasattr(module, "num_classes")]
    amp = _uses_amp(cfg)
    for head in heads:
        _share_labels(head)
        if amp:
            head.loss_by_feat = _in_float32(head.loss_by_feat)
    return Built(
        model=model.train(),
        optimizer=OPTIMIZERS[cfg.optim_wrapper.optimizer.type],
        amp=amp,
        micro_batch=cfg.train_dataloader.batch_size,
        crop=tuple(cfg.crop_size),
        num_classes=min(head.num_classes for head in heads),
        has_edges=any(type(head).__name__ == "PIDHead" for head in heads),
    )


def _without_weights(node: Any) -> Any:
    """Return a config node whose entries that would fetch pretrained weights are None."""
    if isinstance(node, dict):
        pairs = (
            (key, None if key in ("init_cfg", "pretrained") else _without_weights(value)) for key, value in node.items()
        )
        return type(node)(pairs)
    return type(node)(_without_weights(value) for value in node) if isinstance(node, list | tuple) else node


def _share_labels(head: Any) -> None:
    """Let a head take the batch's labels as they are; 0.x did not stack a copy for every head as 1.x does."""
    stack = head._stack_batch_gt
    if type(head).__name__ != "PIDHead":
        head._stack_batch_gt = lambda samples: samples.label if isinstance(samples, Samples) else stack(samples)


def _in_float32(loss_by_feat: Callable[..., Any]) -> Callable[..., Any]:
    def loss(logits: Any, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for kind in {tensor.device.type for tensor in _as_list(logits)}:
                stack.enter_context(torch.autocast(kind, enabled=False))
            return loss_by_feat(_to_float32(logits), *args, **kwargs)

    return loss


def _to_float32(logits: Any) -> Any:
    return logits.float() if isinstance(logits, Tensor) else type(logits)(_to_float32(item) for item in logits)


def _as_list(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [tensor for item in value for tensor in _as_list(item)]


def trace(config: str) -> list[str]:
    """Run loss and backward on tensors without storage; return the trainable parameters that got no gradient."""
    with mmseg_stand_ins.no_random_weights():
        built = build(config)
    mode = FakeTensorMode()
    for module in built.model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = mode.from_tensor(tensor)
    batch = {name: mode.from_tensor(tensor) for name, tensor in built.example(built.micro_batch).items()}
    with mode:
        loss = built.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
    assert loss.shape == (), loss.shape
    return _without_gradient(built.model)


def _without_gradient(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]


def try_all(found: Iterable[Row]) -> dict[str, Any]:
    """Trace every distinct step once; return, by config, what works and why the others do not."""
    by_key: dict[str, list[str]] = collections.defaultdict(list)
    for row in found:
        by_key[row.model_key].append(row.config)
    works: dict[str, dict[str, Any]] = {}
    fails: dict[str, str] = {}
    for number, configs in enumerate(by_key.values(), start=1):
        started = time.perf_counter()
        try:
            unused = trace(configs[0])
        except Exception as error:  # whatever a model raises is the reason that is recorded
            reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
            fails |= dict.fromkeys(configs, str(error) if isinstance(error, NotBuiltError) else reason)
        else:
            works |= {config: {"num_parameters_without_gradient": len(unused)} for config in configs}
        state = "works" if configs[0] in works else fails[configs[0]]
        print(f"{number}/{len(by_key)} {configs[0]} {time.perf_counter() - started:.1f} s: {state}", flush=True)
    return {"works": dict(sorted(works.items())), "fails": dict(sorted(fails.items()))}


def check(config: str, side: int | None) -> None:
    """Run one real forward and backward pass of two samples in float32 and print what came out."""
    built = build(config)
    crop = built.crop if side is None else (side, side)
    loss = built.loss(built.example(2, crop))
    loss.backward()  # type: ignore[no-untyped-call]
    unused = _without_gradient(built.model)
    total = sum(1 for parameter in built.model.parameters() if parameter.requires_grad)
    print(f"{config}: 2 x 3 x {crop[0]} x {crop[1]}, loss {loss.item():.4f}, shape {tuple(loss.shape)}")
    print(
        f"{total - len(unused)} of {total} trainable parameters got gradients; without: {', '.join(unused) or 'none'}"
    )
    assert loss.shape == ()
    assert torch.isfinite(loss)


def print_list(truth_csv: Path) -> None:
    """Print how many published figures are usable, how many of those build and trace, and why the rest do not."""
    found, dropped = rows(truth_csv), left_out(truth_csv)
    tried = json.loads(USABLE.read_text())
    works = [row for row in found if row.config in tried["works"]]
    print(f"{len(found)} usable figures ({len({row.model_key for row in found})} distinct steps)")
    print(f"{len(works)} of them build and trace ({len({row.model_key for row in works})} distinct steps)")
    reasons = collections.Counter(tried["fails"].get(row.config, "never tried") for row in found if row not in works)
    print("usable but not traced:", *(f"  {count} x {reason}" for reason, count in reasons.most_common()), sep="\n")
    reasons = collections.Counter(entry.reason for entry in dropped)
    print("left out:", *(f"  {count} x {reason}" for reason, count in reasons.most_common()), sep="\n")


def main() -> None:
    """Read the command line and do one of the three things."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", action="store_true", help="say what is usable, from the table and mmseg_usable.json")
    action.add_argument("--trace-all", action="store_true", help="trace all usable configs; writes mmseg_usable.json")
    action.add_argument("--check", metavar="CONFIG", help="one real step of one config on the CPU")
    parser.add_argument("--truth", type=Path, help="the table of published figures, mm_train_memory.csv")
    parser.add_argument("--side", type=int, help="side of --check's square crop, pixels; without it the config's crop")
    parser.add_argument("--only", default="", help="with --trace-all: configs that contain this text; writes nothing")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # mmseg warns for every head about settings that its own configs choose
    if options.check:
        return check(options.check, options.side)
    if options.truth is None:
        parser.error("--list and --trace-all need --truth TABLE.csv")
    if options.list:
        return print_list(options.truth)
    result = try_all(row for row in rows(options.truth) if options.only in row.config)
    if not options.only:
        USABLE.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(result['works'])} work, {len(result['fails'])} do not")
    return None


if __name__ == "__main__":
    sys.exit(main())
