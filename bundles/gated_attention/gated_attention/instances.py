"""From the attention map to the boxes of the instances, for a whole batch; nothing here has a gradient."""

import torch
from torch.nn import functional as F

from .components import label_components

_IMPOSSIBLE = -1e6  # attention of a window that does not fit: below any number of penalties
_PENALTY = 2.0  # more than all attention, so that a window apart from the others always comes first
MASK_REDUCTION = 4  # the mask has a quarter of the global branch's resolution; the attention map has a 32nd


def normalised_attention(attention_map: torch.Tensor, image_size: int, reduction: int = MASK_REDUCTION) -> torch.Tensor:
    """Stretch each attention map to 0..1 and enlarge it to the mask's resolution.

    Args:
        attention_map: B x h x w.
        image_size: Pixels a side of the global branch's input.
        reduction: How much smaller than it the mask is.

    Returns:
        B x m x m in 0..1, m = image_size / 4; all 0 where the attention is the same everywhere.
    """
    low, high = attention_map.amin(dim=(1, 2), keepdim=True), attention_map.amax(dim=(1, 2), keepdim=True)
    # A spread within rounding is none: it would be enlarged to a pattern that nobody looked at.
    spread = high - low
    flat = spread <= 1e-6 * high.abs()
    stretched = torch.where(flat, torch.zeros_like(attention_map), (attention_map - low) / spread.clamp_min(1e-30))
    side = max(image_size // reduction, attention_map.shape[1])
    return F.interpolate(stretched.unsqueeze(1), [side, side], mode="bilinear", align_corners=False).squeeze(1)


def attention_mask(attention_map: torch.Tensor, threshold: float, image_size: int) -> torch.Tensor:
    """Where the normalised attention is above `threshold`: bool B x m x m, stretched over the whole image."""
    return normalised_attention(attention_map, image_size) > threshold


def select_instances(
    attention_map: torch.Tensor,
    sizes: torch.Tensor,
    num_instances: int,
    image_size: int,
    threshold: float,
    min_box: float,
    max_box: float,
    window_box: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of the K instances of each image: components, then windows, each with most attention first.

    The K connected components of the thresholded map with the largest sum of attention, each box made a square of at
    least `min_box`; of a component larger than `max_box` the part with most attention. Fewer components: windows of
    `window_box` with most attention. No component at all: the whole image, K times.

    Args:
        attention_map: B x h x w, not negative.
        sizes: Height and width of each image in pixels, B x 2.
        num_instances: K.
        image_size: Pixels a side of the global branch's input.
        threshold: Of the normalised attention, in [0, 1).
        min_box: Least side of a box, as a share of the image's shorter side.
        max_box: Largest side of a box, in the same unit; 0 for no limit.
        window_box: Side of a window, in the same unit.

    Returns:
        boxes: float32 B x K x 4: left, top, right, bottom edge in pixels of the image; squares, within the image where
            they fit into it.
        scores: float32 B x K: attention in the component or window, as a share of the attention in the image.
    """
    attention = normalised_attention(attention_map.detach().float(), image_size)
    mask = attention > threshold
    side = attention.shape[1]
    image_shape = sizes.to(device=attention.device, dtype=torch.float32)
    shorter = image_shape.amin(dim=1)
    total = attention.sum(dim=(1, 2)).clamp_min(1e-12)

    labels = label_components(mask)
    sums = torch.zeros(labels.shape[0], side * side + 1, device=labels.device)
    sums = sums.scatter_add(1, labels.flatten(1), (attention * mask).flatten(1))
    component_sums, names = sums.topk(min(num_instances, side * side), dim=1)
    members = (labels.unsqueeze(1) == names[:, :, None, None]) & (component_sums > 0)[:, :, None, None]
    left, right = _extent(members.any(dim=2))
    top, bottom = _extent(members.any(dim=3))
    cell = image_shape.flip(1) / side  # width and height of a cell of the mask in pixels
    edges = torch.stack([left, top, right, bottom], dim=2) * cell.repeat(1, 2).unsqueeze(1)
    centre = (edges[:, :, :2] + edges[:, :, 2:]) / 2
    length = (edges[:, :, 2:] - edges[:, :, :2]).amax(dim=2)

    boxes: list[torch.Tensor] = []
    scores: list[torch.Tensor] = []
    limit = max_box * shorter if max_box > 0 else torch.full_like(shorter, 1e9)
    for k in range(num_instances):
        if k < names.shape[1]:
            too_large = length[:, k] > limit
            best = _best_window(attention * members[:, k], limit, cell)
            middle = torch.where(too_large.unsqueeze(1), best, centre[:, k])
            wanted = torch.minimum(torch.maximum(length[:, k], min_box * shorter), limit)
            boxes.append(_square(middle, wanted, image_shape))
            scores.append(component_sums[:, k] / total)
        else:
            boxes.append(torch.zeros_like(image_shape).repeat(1, 2))
            scores.append(torch.zeros_like(total))
    chosen, score = torch.stack(boxes, dim=1), torch.stack(scores, dim=1)
    missing = torch.ones_like(score, dtype=torch.bool)
    missing[:, : names.shape[1]] = component_sums <= 0
    share = attention / total[:, None, None]
    chosen, score = _fill(chosen, score, missing, share, window_box * shorter, cell, image_shape)
    # Nothing stands out: the whole image is the instance.
    nothing = ~mask.flatten(1).any(dim=1)
    whole = _square(image_shape.flip(1) / 2, image_shape.amax(dim=1), image_shape).unsqueeze(1)
    chosen = torch.where(nothing[:, None, None], whole, chosen)
    return chosen, torch.where(nothing[:, None], torch.ones_like(score), score)


def _extent(occupied: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First occupied position and the one after the last, along the last dimension; 0 and 0 if there is none."""
    length = occupied.shape[-1]
    position = torch.arange(length, device=occupied.device, dtype=torch.float32)
    first = torch.where(occupied, position, torch.full_like(position, float(length))).amin(dim=-1)
    last = torch.where(occupied, position + 1, torch.zeros_like(position)).amax(dim=-1)
    return torch.minimum(first, last), last


def _square(centre: torch.Tensor, length: torch.Tensor, image_shape: torch.Tensor) -> torch.Tensor:
    """Squares around `centre` (B x 2: x, y), moved into the image where they fit: B x 4."""
    side = length.unsqueeze(1)
    room = image_shape.flip(1) - side
    corner = torch.minimum((centre - side / 2).clamp_min(0), room.clamp_min(0))
    corner = torch.where(room < 0, room / 2, corner)
    return torch.cat([corner, corner + side], dim=1)


def _best_window(attention: torch.Tensor, length: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """Centre (B x 2: x, y in pixels) of the square window of side `length` (B) with most attention."""
    side = attention.shape[1]
    cells = (length.unsqueeze(1) / cell).round().clamp(1, side).long()
    place = _window_sums(attention, cells).flatten(1).argmax(dim=1)
    corner = torch.stack([place % side, torch.div(place, side, rounding_mode="floor")], dim=1)
    return (corner + cells / 2) * cell


def _window_sums(attention: torch.Tensor, cells: torch.Tensor, impossible: float = _IMPOSSIBLE) -> torch.Tensor:
    """Sums over the windows with `cells` (B x 2: across, down) that begin at each cell; far below 0 where none fits."""
    side = attention.shape[1]
    integral = F.pad(attention.double().cumsum(1).cumsum(2), [1, 0, 1, 0])
    begin = torch.arange(side, device=attention.device).unsqueeze(0)
    right, bottom = begin + cells[:, :1], begin + cells[:, 1:]
    fits = (bottom <= side).unsqueeze(2) & (right <= side).unsqueeze(1)
    left, top = begin.expand_as(right), begin.expand_as(bottom)
    right, bottom = right.clamp(max=side), bottom.clamp(max=side)
    sums = _corner(integral, bottom, right) - _corner(integral, top, right)
    sums = sums - _corner(integral, bottom, left) + _corner(integral, top, left)
    return torch.where(fits, sums, torch.full_like(sums, impossible)).float()


def _corner(integral: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values of B x n x n at all pairs of rows (B x m) and columns (B x m): B x m x m."""
    place = y.unsqueeze(2) * integral.shape[2] + x.unsqueeze(1)
    return integral.flatten(1).gather(1, place.flatten(1)).view_as(place)


def _fill(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    missing: torch.Tensor,
    share: torch.Tensor,
    length: torch.Tensor,
    cell: torch.Tensor,
    image_shape: torch.Tensor,
    penalty: float = _PENALTY,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of side `length` (B) with most attention in place of the missing boxes, apart from what is there.

    A window whose centre is less than half a window from that of an earlier box is taken only if no other is left.
    """
    side = share.shape[1]
    cells = (length.unsqueeze(1) / cell).round().clamp(1, side).long()
    sums = _window_sums(share, cells)
    penalised = sums.clone()
    begin = torch.arange(side, device=share.device).unsqueeze(0)
    across = (begin + cells[:, :1] / 2) * cell[:, :1]
    down = (begin + cells[:, 1:] / 2) * cell[:, 1:]
    filled: list[torch.Tensor] = []
    filled_scores: list[torch.Tensor] = []
    for k in range(boxes.shape[1]):
        place = penalised.flatten(1).argmax(dim=1, keepdim=True)
        row, column = torch.div(place, side, rounding_mode="floor"), place % side
        centre = torch.cat([across.gather(1, column), down.gather(1, row)], dim=1)
        window = _square(centre, length, image_shape)
        box = torch.where(missing[:, k : k + 1], window, boxes[:, k])
        filled.append(box)
        score = sums.flatten(1).gather(1, place).squeeze(1)
        filled_scores.append(torch.where(missing[:, k], score, scores[:, k]))
        middle = (box[:, :2] + box[:, 2:]) / 2
        near_across = ((across - middle[:, :1]).abs() < length.unsqueeze(1) / 2).unsqueeze(1)
        near_down = ((down - middle[:, 1:]).abs() < length.unsqueeze(1) / 2).unsqueeze(2)
        penalised = penalised - penalty * (near_across & near_down)
    return torch.stack(filled, dim=1), torch.stack(filled_scores, dim=1)
