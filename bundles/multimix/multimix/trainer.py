"""One step of training on all streams, for MONAI's `SupervisedTrainer`."""

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import SupervisedTrainer

from label_efficient.engine.distributed import rank_and_size

from .augment import Augment
from .transforms import to_input


class PrepareStreams:
    """Stored batches to the network's streams and the loss's targets, augmented on the device.

    What is drawn depends on the seed, the epoch, the step and the rank alone.
    """

    def __init__(self, *, mask_augment: str = "none", class_augment: str = "weak", seed: int = 0) -> None:
        self.augments = {
            "mask_labelled": Augment(mask_augment),
            "mask_unlabelled": Augment(mask_augment),
            "class_labelled": Augment(class_augment),
            "class_weak": Augment("weak"),
            "class_strong": Augment("strong"),
        }
        self.seed = seed
        self.rank = rank_and_size()[0]

    def __call__(
        self, batch: Mapping[str, torch.Tensor], device: torch.device, epoch: int, iteration: int
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """A batch of `streams.StreamSet` to streams (float32 B x 1 x S x S in 0..1 by name) and targets.

        The unlabelled images for classification become `class_weak` and `class_strong`, two views of the same.
        """
        names = [name for name in ("label", "hidden_label", "mask") if name in batch]
        targets = {name: batch[name].to(device, non_blocking=True) for name in names}
        streams: dict[str, torch.Tensor] = {}
        for index, (name, augment) in enumerate(self.augments.items()):
            stored = batch.get("class_unlabelled" if name in ("class_weak", "class_strong") else name)
            if stored is None:
                continue
            augment.seed(self.seed, epoch, iteration, self.rank, index)
            mask = {"label": targets["mask"]} if name == "mask_labelled" else {}
            view = augment({"image": to_input(stored, device), **mask})
            streams[name] = view["image"]
            if mask:
                targets["mask"] = view["label"]
        return streams, targets


class MultiMixStep:
    """`iteration_update` of a `SupervisedTrainer`: its own step, on the streams of that epoch and iteration."""

    def __init__(self, prepare: PrepareStreams) -> None:
        self.prepare = prepare

    def __call__(self, engine: SupervisedTrainer, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Batch of `streams.StreamSet` to the engine's output: `loss`, detached, and `num_images` of all streams."""
        state = engine.state
        # MONAI does not tell a `prepare_batch` which step it is.
        engine.prepare_batch = lambda stored, device, *_: self.prepare(stored, device, state.epoch, state.iteration)
        loss = engine._iteration(engine, dict(batch))["loss"]
        num_images = sum(len(images) for name, images in batch.items() if name.startswith(("mask_", "class_")))
        return {"loss": loss.detach(), "num_images": num_images}
