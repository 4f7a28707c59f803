"""Connected components of a batch of masks, in plain torch: on any device, and in TorchScript."""

import torch
from torch.nn import functional as F

from .exporting import is_exporting


def label_components(mask: torch.Tensor) -> torch.Tensor:
    """Label the connected components of masks, bool B x h x w; pixels that touch at a side or a corner belong together.

    Every pixel takes the largest label around it, hands it on to the pixel that its own label names, and takes the
    label of the pixel that its new label names, until nothing changes: 12 rounds for a spiral of 1700 pixels. The
    result, int64 B x h x w, is 0 outside the mask, and in a component the largest index (from 1, row by row) of its
    pixels.
    """
    count, height, width = mask.shape
    index = torch.arange(1, height * width + 1, device=mask.device).view(1, height, width)
    labels = index * mask
    # Each round makes every label larger until all of a component agree: never more rounds than pixels. An export
    # cannot stop by what it finds: it gets a round for each row and column, several times what a spiral needs.
    unrolled = is_exporting()
    for _ in range(height + width if unrolled else height * width):
        # Whole numbers up to 2^24 are exact in float32, which poolings need.
        spread = F.max_pool2d(labels.float().unsqueeze(1), 3, stride=1, padding=1).squeeze(1).long() * mask
        # A label is the number of the pixel that it names; 0 is outside.
        named = F.pad(labels.flatten(1), [1, 0]).scatter_reduce(1, labels.flatten(1), spread.flatten(1), "amax")
        spread = named.gather(1, spread.flatten(1)).view(count, height, width)
        if not unrolled and torch.equal(spread, labels):
            break
        labels = spread
    return labels
