"""One step of training on all streams, for MONAI's `SupervisedTrainer`."""

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents

from label_efficient.engine.distributed import rank_and_size

from .augment import Augment
from .transforms import to_input


class PrepareStreams:
    """Stored batches to the network's streams and the loss's targets, augmented on the device.

    What is drawn depends on the seed, the epoch, the step and the rank alone.

    Args:
        mask_augment: One of `augment.AUGMENTATIONS`, for the images with a mask, together with it.
        class_augment: The same for the labelled images for classification.
        seed: Of the random changes.
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
        targets = {
            name: batch[name].to(device, non_blocking=True)
            for name in ("label", "hidden_label", "mask")
            if name in batch
        }
        streams: dict[str, torch.Tensor] = {}
        for index, (name, augment) in enumerate(self.augments.items()):
            stored = batch.get("class_unlabelled" if name in ("class_weak", "class_strong") else name)
            if stored is None:
                continue
            augment.seed(self.seed, epoch, iteration, self.rank, index)
            images = to_input(stored, device)
            if name == "mask_labelled":
                streams[name], targets["mask"] = augment(images, targets["mask"])
            else:
                streams[name] = augment(images)
        return streams, targets


class MultiMixStep:
    """`iteration_update` of a `SupervisedTrainer`: forward, loss and update on the batches of all streams.

    Args:
        prepare: A `PrepareStreams`.
    """

    def __init__(self, prepare: PrepareStreams) -> None:
        self.prepare = prepare

    def __call__(self, engine: SupervisedTrainer, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Batch of `streams.StreamSet` to the engine's output: `loss`, detached, and `num_images` of all streams."""
        device = torch.device(engine.state.device)
        streams, targets = self.prepare(batch, device, engine.state.epoch, engine.state.iteration)
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
        outputs: Any = engine.inferer(streams, engine.network)  # type: ignore[arg-type]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        loss = engine.loss_function(outputs, targets)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        if engine.scaler is not None:
            engine.scaler.scale(loss).backward()
            engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
            engine.scaler.step(engine.optimizer)
            engine.scaler.update()
        else:
            loss.backward()
            engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
            engine.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        num_images = sum(len(images) for name, images in batch.items() if name.startswith(("mask_", "class_")))
        return {"loss": loss.detach(), "num_images": num_images}
