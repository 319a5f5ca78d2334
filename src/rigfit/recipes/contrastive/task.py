"""MoCo v2 and v3 as a task: two views of each picture in, the summed contrastive loss out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rigfit.recipes.contrastive.baseline import PixelBaseline
from rigfit.recipes.contrastive.config import ContrastiveConfig
from rigfit.recipes.contrastive.exported import write_backbone
from rigfit.recipes.contrastive.facts import chance_level, keys_in_use
from rigfit.recipes.contrastive.grouping import key_groups, query_groups, run_in_groups
from rigfit.recipes.contrastive.knn import momentum_at, spread_of, vote
from rigfit.recipes.contrastive.loss import batch_losses, gather_keys, queue_losses
from rigfit.recipes.contrastive.model import (
    Encoder,
    blocks_of_backbone,
    build_encoder,
    build_predictor,
    normalised,
)
from rigfit.recipes.contrastive.norm import (
    BatchNorm,
    Pass,
    finish_norms,
    replace_norms,
)
from rigfit.recipes.contrastive.queue import Queue
from rigfit.recipes.contrastive.samples import PairSamples, Pictures
from rigfit.recipes.contrastive.start import adapt
from rigfit.task import Batch, MetricSums, Ranks, Task
from rigfit.workload import Samples, Splits

_COLLAPSED = 0.1
"""Spread of the embeddings below which a person is warned: a tenth of what random directions have."""

_BANK_WITHOUT_CLASSES = 512


def build(config: ContrastiveConfig) -> ContrastiveTask:
    """Return the task with fresh weights, drawn from torch's global generator."""
    return ContrastiveTask(config)


def example_batch(config: ContrastiveConfig, micro_batch_size: int) -> Batch:
    """Return a batch of the right shapes, for counting memory where there are no data."""
    side = config.img_size
    return {
        "image": torch.zeros(micro_batch_size, 2, 3, side, side, dtype=torch.uint8),
        "index": torch.zeros(micro_batch_size, dtype=torch.int64),
    }


class ContrastiveTask(Task):
    """An encoder that learns, its momentum copy that makes the keys, and for v2 a queue of keys.

    A batch holds `image`: uint8 (batch, 2, 3, size, size), two views of each picture, and `index`, its number.
    """

    keeps_buffers_alike = True

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.predictor = build_predictor(config)
        self.running = Pass(group_size=config.norm_group_size if config.batch_norm == "group" else 0)
        self.momentum_encoder = copy.deepcopy(self.encoder)
        self.momentum_encoder.requires_grad_(False)
        if config.batch_norm != "plain":
            for part in (self.encoder, self.momentum_encoder, self.predictor):
                replace_norms(part, self.running, is_synced=config.batch_norm == "sync")
        self.queue = Queue(config.queue_capacity, config.widths[1]) if config.queue_capacity else None
        self.step_keys: list[tuple[Tensor, Tensor]] = []
        self.bank: dict[str, Tensor] = {}
        self.class_names: tuple[str, ...] = ()
        self.num_classes = 0
        self.train_pictures: Pictures | None = None

    def setup(self, splits: Splits) -> None:
        """Take the classes and what nearest neighbours are looked for among; fit the queue to the data.

        Where no queue size was given, the queue uses half an epoch of the room it has.
        """
        if not isinstance(splits.train, PairSamples):
            return
        self.train_pictures = splits.train
        self.num_classes = int(splits.train.labels.max()) + 1
        if self.num_classes:
            self.monitor = ("knn", "max")
        if self.queue is not None:
            self.queue.in_use = keys_in_use(self.config.queue_capacity, self.config.queue_size, len(splits.train))

    # --- training

    def count_items(self, batch: Batch) -> int:
        """Return the number of pictures."""
        return len(batch["image"])

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss summed over the pictures of `batch`, shape ().

        v2: the first view is the query, the second the key. v3: each view is both, and both directions are added.
        """
        first, second = batch["image"].unbind(dim=1)
        self.running.is_counted = not self.is_filler
        if self.queue is not None:
            query, key = self.queries(first), self.keys(second)
            self._remember_keys(key, batch["index"])
            return self._queue_losses(query, key, batch["index"]).sum()
        queries = [self.queries(view) for view in (first, second)]
        keys = [self.keys(view) for view in (second, first)]
        return sum(
            (self._batch_losses(query, key, batch["index"]).sum() for query, key in zip(queries, keys, strict=True)),
            start=queries[0].new_zeros(()),
        )

    def queries(self, pictures: Tensor) -> Tensor:
        """Return what the encoder that learns makes of uint8 pictures: (batch, width) of length 1."""
        groups = query_groups(len(pictures), self.config.norm_group_size)
        return to_length_1(self._grouped(self._predicted, pictures, groups))

    @torch.no_grad()
    def keys(self, pictures: Tensor) -> Tensor:
        """Return what the momentum encoder makes of uint8 pictures: (batch, width) of length 1."""
        groups = key_groups(len(pictures), self.config.norm_group_size, self.config.norm_shuffle)
        return to_length_1(self._grouped(self.momentum_encoder, pictures, groups))

    def _predicted(self, pictures: Tensor) -> Tensor:
        predicted: Tensor = self.predictor(self.encoder(pictures))
        return predicted

    def _grouped(self, network: Callable[[Tensor], Tensor], pictures: Tensor, groups: list[list[int]]) -> Tensor:
        """Run `network` with BatchNorm over `groups`, or over the pass."""
        is_grouped = self.config.batch_norm == "group" and self.training
        parts = groups if is_grouped else [list(range(len(pictures)))]
        return run_in_groups(lambda chosen: network(self._to_input(chosen)), pictures, parts, self.running)

    def _to_input(self, pictures: Tensor) -> Tensor:
        dtype = next(self.encoder.parameters()).dtype
        pictures = normalised(pictures, torch.promote_types(dtype, torch.float32))
        return pictures.contiguous(memory_format=torch.channels_last) if self.config.channels_last else pictures

    def _remember_keys(self, keys: Tensor, numbers: Tensor) -> None:
        if self.training and torch.is_grad_enabled() and not self.is_filler:
            self.step_keys.append((keys, numbers))

    def _queue_losses(self, queries: Tensor, keys: Tensor, numbers: Tensor) -> Tensor:
        assert self.queue is not None
        negatives, of_negatives = self.queue.negatives()
        with torch.autocast(queries.device.type, enabled=False):  # at a temperature of 0.2, 16 bits are too few
            return queue_losses(
                queries,
                keys.to(queries.dtype),
                negatives.to(queries.dtype),
                numbers=numbers,
                of_negatives=of_negatives,
                temperature=self.config.temperature,
            )

    def _batch_losses(self, queries: Tensor, keys: Tensor, numbers: Tensor) -> Tensor:
        everywhere, of_keys, offset = gather_keys(keys, numbers, is_counted=not self.is_filler)
        with torch.autocast(queries.device.type, enabled=False):
            return batch_losses(
                queries,
                everywhere.to(queries.dtype),
                offset=offset,
                numbers=numbers,
                of_keys=of_keys,
                temperature=self.config.temperature,
            )

    # --- once per optimizer step

    def finish_step(self, ranks: Ranks) -> None:
        """Move running statistics, the momentum encoder and the queue, once for the whole step."""
        finish_norms([part for part in self.modules() if isinstance(part, BatchNorm)], ranks)
        momentum = self.momentum_at(ranks.progress)
        ours: list[Tensor] = list(self.encoder.parameters())
        theirs: list[Tensor] = list(self.momentum_encoder.parameters())
        torch._foreach_lerp_(theirs, ours, 1 - momentum)
        if self.queue is not None:
            held, self.step_keys = self.step_keys, []
            width = self.queue.keys.shape[1]
            keys = torch.cat([key for key, _ in held]) if held else self.queue.keys.new_zeros((0, width))
            numbers = torch.cat([number for _, number in held]) if held else self.queue.numbers.new_zeros(0)
            self.queue.push(ranks.gather(keys), ranks.gather(numbers))

    def momentum_at(self, progress: float) -> float:
        """Return what share of itself the momentum encoder keeps: constant for v2, rising to 1 for v3."""
        given = self.config.momentum
        if not self.config.is_v3:
            return 0.999 if given is None else given
        return momentum_at(progress, start=0.99 if given is None else given)

    # --- evaluation

    def bank_samples(self) -> Samples | None:
        """Return training pictures, evenly spread: neighbours, and the negatives of held-out queries."""
        pictures = self.train_pictures
        if pictures is None:
            return None
        count = self.config.knn_pictures
        if not self.num_classes:
            count = min(count, max(_BANK_WITHOUT_CLASSES, self.config.effective_batch_size))
        return pictures.spread(count)

    def remember(self, batch: Batch) -> dict[str, Tensor]:
        """Return features, keys, classes and numbers of the plain pictures of `batch`."""
        return {
            "features": self.features(batch["plain"]),
            "keys": self.keys(batch["plain"]),
            "labels": batch["label"],
            "numbers": batch["index"],
        }

    def take_bank(self, found: dict[str, Tensor]) -> None:
        """Keep the bank, in the order of the pictures' numbers."""
        order = torch.argsort(found["numbers"])
        self.bank = {name: value[order] for name, value in found.items()}

    def features(self, pictures: Tensor) -> Tensor:
        """Return what the backbone makes of uint8 pictures: (batch, width) of length 1; in eval mode as it is."""
        return to_length_1(self.encoder.backbone(self._to_input(pictures)))

    def evaluate(self, batch: Batch) -> MetricSums:
        """Return loss and kNN hits.

        Negatives are the bank's, made by the network as it is. Those of a pass depend on the layout; the queue's are
        random directions at first, which every query is far from, and older than the network later.
        """
        first, second = batch["image"].unbind(dim=1)
        sizes = len(first)
        metrics: dict[str, tuple[Tensor, int]] = {}
        if self.bank:
            total = self._bank_losses(first, second, batch["index"])
            if self.config.is_v3:
                total = total + self._bank_losses(second, first, batch["index"])
            metrics["loss"] = (total, sizes)
        if self.num_classes and self.bank:
            known = batch["label"] >= 0
            found = vote(
                self.features(batch["plain"]),
                self.bank["features"],
                self.bank["labels"],
                neighbours=self.config.knn_neighbours,
                num_classes=self.num_classes,
            )
            metrics["knn"] = (((found == batch["label"]) & known).sum(), sizes)
        return metrics

    def _bank_losses(self, view: Tensor, other: Tensor, numbers: Tensor) -> Tensor:
        size = self._num_negatives(len(self.bank["keys"]))
        losses = queue_losses(
            self.queries(view),
            self.keys(other),
            self.bank["keys"][:size],
            numbers=numbers,
            of_negatives=self.bank["numbers"][:size],
            temperature=self.config.temperature,
        )
        return losses.sum() * (2 * self.config.temperature if self.config.is_v3 else 1)

    def _num_negatives(self, bank_size: int) -> int:
        """Return how many keys of a bank evaluation uses: as many as training has, where there are as many."""
        in_training = self.config.effective_batch_size - 1 if self.queue is None else self.queue.in_use
        return max(1, min(in_training, bank_size))

    def conclude(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return `metrics` with chance level and spread: 1 = directions as even as random ones, 0 = all alike."""
        if not self.bank:
            return metrics
        chance = self._chance(len(self.bank["keys"]))
        return {**metrics, "chance": chance, "spread": spread_of(self.bank["keys"])}

    def _chance(self, bank_size: int) -> float:
        """Return the loss of a network that tells nothing apart, among as many negatives as evaluation uses."""
        return chance_level(self.config, self._num_negatives(bank_size))

    def report(self, metrics: Mapping[str, float], folder: Path, step: int) -> Sequence[str]:
        """Warn where all embeddings are alike."""
        spread = metrics.get("spread", 1.0)
        if spread >= _COLLAPSED:
            return ()
        return (
            f"the embeddings have collapsed: their spread is {spread:.3f} (1 = as random directions, 0 = all alike); "
            "use a smaller rate or a longer warm-up",
        )

    def build_baseline(self, train: Samples) -> Task | None:
        """Return what needs no network: neighbours of small pictures, and the chance level of the loss."""
        pictures = self.bank_samples()
        if pictures is None:
            return None
        return PixelBaseline(
            pictures,
            chance=self._chance(len(pictures)),
            num_classes=self.num_classes,
            neighbours=self.config.knn_neighbours,
        )

    # --- weights

    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks of the backbone that learns; the momentum copy keeps no activations."""
        return blocks_of_backbone(self.encoder.backbone)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `state` with the queue of another size refilled, or a bare backbone put into both encoders."""
        adapted, self.adaptations = adapt(state, self.state_dict(), self.encoder.backbone.state_dict().keys())
        return adapted

    def write_export(self, folder: Path) -> bool:
        """Write the backbone alone, as timm loads it."""
        write_backbone(self.encoder.backbone, self.config, folder)
        return True


def to_length_1(values: Tensor) -> Tensor:
    """Return `values` (batch, width) divided by their lengths, in float32 or wider."""
    return F.normalize(values.to(torch.promote_types(values.dtype, torch.float32)), dim=1)


def contrastive(task: Task) -> ContrastiveTask:
    """Return the task under its own type."""
    return cast(ContrastiveTask, task)


def encoder_of(task: Task) -> Encoder:
    """Return the encoder that was trained."""
    return contrastive(task).encoder
