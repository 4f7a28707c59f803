"""Customary training loops that the lsanet bundle is compared with: MedMNIST's published one, and MONAI's."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from monai.data import CacheDataset
from monai.data import DataLoader as MonaiDataLoader
from monai.engines import SupervisedTrainer
from monai.networks.nets import resnet18
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    NormalizeIntensityd,
    ScaleIntensityRanged,
)
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.lsanet_loads import NUM_CLASSES, Load, synthetic
from benchmarks.measure import seconds


class PictureSet(Dataset):
    """Images one by one through PIL, as MedMNIST's data sets with `ToTensor` and `Normalize(0.5, 0.5)`."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = images
        self.labels = labels[:, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, np.ndarray]:
        picture = Image.fromarray(self.images[index]).convert("RGB")
        pixels = torch.from_numpy(np.array(picture, copy=True)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255).sub_(0.5).div_(0.5), self.labels[index]


def plain_network(load: Load, channels_last: bool) -> nn.Module:
    """MONAI's ResNet-18 with the layers of the bundle's, to train."""
    network = resnet18(
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_stride=2,  # MONAI's default of 1 computes four times as much
        num_classes=NUM_CLASSES,
        feed_forward=True,
        bias_downsample=False,
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return network.to(load.device).to(memory_format=layout).train()  # type: ignore[call-overload]


def picture_loader(load: Load, num_workers: int) -> DataLoader:
    """The loader of MedMNIST's published training script."""
    split = synthetic(load).splits["train"]
    return DataLoader(
        PictureSet(np.asarray(split.images), split.labels),
        batch_size=load.batch_size,
        shuffle=True,
        num_workers=num_workers,
        # The script starts them anew for every epoch, which would weigh too much in one as short as this.
        persistent_workers=num_workers > 0,
    )


def picture_epoch(load: Load, num_workers: int, channels_last: bool = False) -> Callable[[], float]:
    """Seconds of an epoch of the loop of MedMNIST's published training script."""
    loader = picture_loader(load, num_workers)
    network = plain_network(load, channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    criterion = nn.CrossEntropyLoss()

    def epoch() -> None:
        losses = []
        for images, labels in loader:
            optimizer.zero_grad()
            outputs = network(images.to(load.device))
            loss = criterion(outputs, torch.squeeze(labels, 1).long().to(load.device))
            losses.append(loss.item())
            loss.backward()
            optimizer.step()

    return lambda: seconds(epoch, load.device)


def cache_dataset_loader(load: Load) -> MonaiDataLoader:
    """MONAI's customary loader: CacheDataset and dictionary transforms."""
    split = synthetic(load).splits["train"]
    half = np.full(3, 0.5, dtype=np.float32)
    transforms = Compose(
        [
            EnsureChannelFirstd("image", channel_dim=-1),
            ScaleIntensityRanged("image", a_min=0, a_max=255, b_min=0, b_max=1),
            NormalizeIntensityd("image", subtrahend=half, divisor=half, channel_wise=True),
            EnsureTyped(["image", "label"]),
        ]
    )
    items = [{"image": i, "label": int(n)} for i, n in zip(split.images, split.labels, strict=True)]
    dataset = CacheDataset(items, transforms, cache_rate=1.0, num_workers=None, progress=False)
    return MonaiDataLoader(dataset, batch_size=load.batch_size, shuffle=True, num_workers=0)


def cache_dataset_epoch(load: Load, channels_last: bool = False) -> Callable[[], float]:
    """Seconds of an epoch of MONAI's customary training, which decollates every batch."""
    network = plain_network(load, channels_last)
    trainer = SupervisedTrainer(
        device=torch.device(load.device),
        max_epochs=1,
        train_data_loader=cache_dataset_loader(load),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=0.001),
        loss_function=nn.CrossEntropyLoss(),
    )
    trainer.logger.setLevel(logging.WARNING)
    return lambda: seconds(trainer.run, load.device)
