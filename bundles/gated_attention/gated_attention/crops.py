"""The instances, cut from the original images and resized: all of a batch at once, on the images' device."""

import torch

from .exporting import is_exporting


def cut_instances(images: list[torch.Tensor], boxes: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut square boxes out of images of any sizes and resize them, bilinearly.

    Each value takes the four pixels around its place (as a sample of ROI align, He et al. 2017). Of a box more than
    twice as large as the output it is the mean of several such samples, evenly spread, at most two pixels apart.

    Args:
        images: B images 3 x H_i x W_i, uint8 or float, on one device.
        boxes: B x K x 4: left, top, right, bottom edge in pixels.
        size: Pixels a side of the crops, s.

    Returns:
        crops: float32 B x K x 3 x s x s in the images' range; 0 outside the image.
        inside: float32 B x K x 1 x s x s: 1 inside the image, 0 outside.
    """
    device = images[0].device
    shape = torch.tensor([[image.shape[1], image.shape[2]] for image in images], device=device)
    # What an axis gives to a value does not depend on the other axis: B x K x 2 (y, x) x n x s, n samples.
    # Positions need more digits than float32 has left within a large image.
    begin = boxes[:, :, :2].flip(2).to(device=device, dtype=torch.float64)[:, :, :, None, None]
    length = boxes[:, :, 2:].flip(2).to(device=device, dtype=torch.float64)[:, :, :, None, None] - begin
    samples = (length / (2 * size)).ceil().clamp_min(1)
    exporting = is_exporting()
    if exporting:
        # A number that the data decide cannot be exported: that of the largest box, which is around an image.
        most = -(-max([max(image.shape[1], image.shape[2]) for image in images]) // (2 * size))
    else:
        most = int(samples.max())
    number = torch.arange(most, device=device).view(-1, 1)
    step = torch.arange(size, device=device)
    place = begin + (step + (number + 0.5) / samples) * (length / size)
    limit = shape[:, None, :, None, None]
    used = (place >= 0) & (place <= limit) & (number < samples)
    count = used.sum(dim=3, keepdim=True)
    # Pixel i has its centre at i + 0.5; in the outer half of the border's pixels their value holds.
    position = torch.minimum((place - 0.5).clamp_min(0), (limit - 1).to(place.dtype))
    first = position.floor()
    share = used / count.clamp_min(1)
    weight = torch.cat([(first + 1 - position) * share, (position - first) * share], dim=3).float()
    pixel = torch.cat([first.long(), torch.minimum(first.long() + 1, limit - 1)], dim=3)
    crops = _by_matrices(images, pixel, weight) if exporting else _by_pixels(images, pixel, weight)
    reached = (count > 0).float()
    inside = reached[:, :, 0].transpose(2, 3) * reached[:, :, 1]
    return crops, inside.unsqueeze(2)


def _by_pixels(images: list[torch.Tensor], pixel: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sum of the weighted pixels of every value, whose places along y and x and weights are B x K x 2 x n x s."""
    shape = torch.tensor([[image.shape[1], image.shape[2]] for image in images], device=pixel.device)
    area = shape.prod(dim=1)
    first = (area.cumsum(0) - area).view(-1, 1, 1, 1)
    row = (pixel[:, :, 0] * shape[:, 1].view(-1, 1, 1, 1) + first).unsqueeze(4)
    column = pixel[:, :, 1].unsqueeze(3)
    down, across = weight[:, :, 0].unsqueeze(4), weight[:, :, 1].unsqueeze(3)

    size = pixel.shape[4]
    crops = torch.zeros(pixel.shape[0], pixel.shape[1], 3, size, size, device=pixel.device)
    # Channel by channel and pixel by pixel: beside a large image there is neither a copy of it nor room for many.
    for channel in range(3):
        plane = torch.cat([image[channel].reshape(-1) for image in images])
        for y in range(row.shape[2]):
            for x in range(column.shape[2]):
                value = torch.take(plane, row[:, :, y] + column[:, :, x]).float()
                crops[:, :, channel] += value.mul_(down[:, :, y]).mul_(across[:, :, x])
    return crops


@torch.jit.unused
def _by_matrices(images: list[torch.Tensor], pixel: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same as products of matrices: in an exported graph their number does not grow with the boxes."""
    crops: list[torch.Tensor] = []
    for image, pixels, weights in zip(images, pixel.transpose(3, 4), weight.transpose(3, 4), strict=True):
        down, across = (
            torch.zeros(pixels.shape[0], pixels.shape[2], length, device=image.device).scatter_add(
                2, pixels[:, axis], weights[:, axis]
            )
            for axis, length in enumerate(image.shape[1:])
        )
        crops.append(down.unsqueeze(1) @ image.float() @ across.transpose(1, 2).unsqueeze(1))
    return torch.stack(crops)
