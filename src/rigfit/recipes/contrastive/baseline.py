"""What is known without a network: neighbours of small pictures, and a loss of chance."""

from __future__ import annotations

import torch
from torch import Tensor

from rigfit.recipes.contrastive.knn import as_pixels, vote
from rigfit.task import Batch, MetricSums, Task
from rigfit.workload import Samples


class PixelBaseline(Task):
    """Votes with the pixels of the same training pictures that the network's neighbours are found among."""

    def __init__(self, pictures: Samples, *, chance: float, num_classes: int, neighbours: int) -> None:
        super().__init__()
        self.pictures = pictures
        self.num_classes = num_classes
        self.neighbours = neighbours
        self.register_buffer("chance", torch.tensor(chance, dtype=torch.float64))
        self.chance: Tensor
        self.bank: dict[str, Tensor] = {}

    def count_items(self, batch: Batch) -> int:
        """Return the number of pictures."""
        return len(batch["plain"])

    def forward(self, batch: Batch) -> Tensor:
        """Return the chance level for every picture."""
        return self.chance * len(batch["plain"])

    def bank_samples(self) -> Samples | None:
        """Return the training pictures, where they have classes."""
        return self.pictures if self.num_classes else None

    def remember(self, batch: Batch) -> dict[str, Tensor]:
        """Return small pictures, classes and numbers."""
        return {"features": as_pixels(batch["plain"]), "labels": batch["label"], "numbers": batch["index"]}

    def take_bank(self, found: dict[str, Tensor]) -> None:
        """Keep the bank, in the order of the pictures' numbers."""
        order = torch.argsort(found["numbers"])
        self.bank = {name: value[order] for name, value in found.items()}

    def evaluate(self, batch: Batch) -> MetricSums:
        """Return the chance level as `loss`, and `knn` of the pixels where there are classes."""
        size = len(batch["plain"])
        metrics: dict[str, tuple[Tensor, int]] = {"loss": (self.chance * size, size)}
        if self.bank:
            found = vote(
                as_pixels(batch["plain"]),
                self.bank["features"],
                self.bank["labels"],
                neighbours=self.neighbours,
                num_classes=self.num_classes,
            )
            metrics["knn"] = ((found == batch["label"]).sum(), size)
        return metrics
