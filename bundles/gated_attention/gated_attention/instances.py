"""From the attention map to the boxes of the instances, for a whole batch; nothing here has a gradient."""

import torch
from torch.nn import functional as F

from .components import label_components


def normalised_attention(attention_map: torch.Tensor, image_size: int) -> torch.Tensor:
    """Stretch each attention map to 0..1 and enlarge it to a quarter of the global branch's resolution, the mask's.

    Args:
        attention_map: B x h x w; h and w are a 32nd of that resolution.
        image_size: Pixels a side of the global branch's input.

    Returns:
        B x m x m in 0..1, m = image_size / 4; all 0 where the attention is the same everywhere.
    """
    low, high = attention_map.amin(dim=(1, 2), keepdim=True), attention_map.amax(dim=(1, 2), keepdim=True)
    # A spread within rounding is none: it would be enlarged to a pattern that nobody looked at.
    spread = high - low
    flat = spread <= 1e-6 * high.abs()
    stretched = torch.where(flat, torch.zeros_like(attention_map), (attention_map - low) / spread.clamp_min(1e-30))
    side = max(image_size // 4, attention_map.shape[1])
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
    shorter = image_shape.amin(dim=1, keepdim=True)
    total = attention.sum(dim=(1, 2)).clamp_min(1e-12)
    cell = image_shape.flip(1) / side  # width and height of a cell of the mask in pixels

    labels = label_components(mask).flatten(1)
    # A sum for each label, 0 (outside) to side * side; there may be fewer of them than instances.
    sums = torch.zeros(labels.shape[0], side * side + num_instances, device=labels.device)
    sums = sums.scatter_add(1, labels, (attention * mask).flatten(1))
    # Of components with the same sum the one nearer to the middle, whichever way the image is turned or mirrored.
    away = (torch.arange(side, device=labels.device) - (side - 1) / 2).double().square() / side**2
    nearer = (attention.double() * mask * (1 - 1e-5 * (away + away.unsqueeze(1)))).flatten(1)
    names = sums.double().zero_().scatter_add(1, labels, nearer).topk(num_instances, dim=1).indices
    sums = sums.gather(1, names)
    found = sums > 0
    members = (labels.view_as(mask).unsqueeze(1) == names[:, :, None, None]) & found[:, :, None, None]
    left, right = _extent(members.any(dim=2))
    top, bottom = _extent(members.any(dim=3))
    edges = torch.stack([left, top, right, bottom], dim=2) * cell.repeat(1, 2).unsqueeze(1)
    length = (edges[:, :, 2:] - edges[:, :, :2]).amax(dim=2)
    limit = (max_box * shorter if max_box > 0 else torch.full_like(shorter, 1e9)).expand_as(length)
    # Of a component that is too large the window with most attention; all of a batch at once.
    centre = (edges[:, :, :2] + edges[:, :, 2:]) / 2
    inside = (attention.unsqueeze(1) * members).flatten(0, 1)
    windows, across, down = _windows(inside, limit.flatten(), cell.unsqueeze(1).expand_as(centre).flatten(0, 1))
    best = _strongest(windows, across, down)[1].view_as(centre)
    middle = torch.where((length > limit).unsqueeze(2), best, centre)
    wanted = torch.minimum(torch.maximum(length, min_box * shorter), limit)
    boxes = _square(middle, wanted, image_shape.unsqueeze(1))
    share = attention / total[:, None, None]
    boxes, scores = _fill(boxes, sums / total.unsqueeze(1), found, share, window_box * shorter[:, 0], cell, image_shape)
    # Nothing stands out: the whole image is the instance.
    nothing = ~mask.flatten(1).any(dim=1)
    whole = _square(image_shape.flip(1) / 2, image_shape.amax(dim=1), image_shape).unsqueeze(1)
    boxes = torch.where(nothing[:, None, None], whole, boxes)
    return boxes, torch.where(nothing[:, None], torch.ones_like(scores), scores)


def _extent(occupied: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First occupied position and the one after the last, along the last dimension; 0 and 0 if there is none."""
    length = occupied.shape[-1]
    position = torch.arange(length, device=occupied.device, dtype=torch.float32)
    first = torch.where(occupied, position, torch.full_like(position, float(length))).amin(dim=-1)
    last = torch.where(occupied, position + 1, torch.zeros_like(position)).amax(dim=-1)
    return torch.minimum(first, last), last


def _square(centre: torch.Tensor, length: torch.Tensor, image_shape: torch.Tensor) -> torch.Tensor:
    """Squares around `centre` (... x 2: x, y), moved into the image where they fit: ... x 4."""
    side = length.unsqueeze(-1)
    room = image_shape.flip(-1) - side
    corner = torch.minimum((centre - side / 2).clamp_min(0), room.clamp_min(0))
    corner = torch.where(room < 0, room / 2, corner)
    return torch.cat([corner, corner + side], dim=-1)


def _windows(
    attention: torch.Tensor, length: torch.Tensor, cell: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All square windows of side `length` (B, in pixels) on maps B x m x m.

    Returns:
        Attention in the window that begins at each cell, B x m x m, far below 0 where none fits; the centre of the
        windows that begin at each column, and at each row, B x m, in pixels.
    """
    side = attention.shape[1]
    cells = (length.unsqueeze(1) / cell).round().clamp(1, side).long()
    integral = F.pad(attention.double().cumsum(1).cumsum(2), [1, 0, 1, 0])
    begin = torch.arange(side, device=attention.device).unsqueeze(0)
    right, bottom = begin + cells[:, :1], begin + cells[:, 1:]
    fits = (bottom <= side).unsqueeze(2) & (right <= side).unsqueeze(1)
    left, top = begin.expand_as(right), begin.expand_as(bottom)
    right, bottom = right.clamp(max=side), bottom.clamp(max=side)
    sums = _corner(integral, bottom, right) - _corner(integral, top, right)
    sums = sums - _corner(integral, bottom, left) + _corner(integral, top, left)
    sums = torch.where(fits, sums, torch.full_like(sums, -1e6)).float()  # below any number of `_fill`'s penalties
    return sums, (begin + cells[:, :1] / 2) * cell[:, :1], (begin + cells[:, 1:] / 2) * cell[:, 1:]


def _strongest(sums: torch.Tensor, across: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Place (B x 1) of the largest sum of `_windows`, and the centre of its window (B x 2: x, y in pixels).

    Of windows that are equal, the middle: where all of something fits into the window in one direction, the window can
    be moved without losing any of it, and what was found belongs in its middle, as a whole component does.
    """
    side = sums.shape[1]
    best = sums.amax(dim=(1, 2), keepdim=True)
    tied = ~(sums < best - 1e-6 * best.abs())  # of NaN all: the loss refuses it
    # Of two groups of them that are equally near to the middle of all, the one nearer to that of the image.
    away = _from_middle(tied) + 1e-6 * _from_middle(sums > -5e5)
    place = torch.where(tied, away, torch.full_like(away, 1e30)).flatten(1).argmin(dim=1, keepdim=True)
    row = torch.div(place, side, rounding_mode="floor")
    first, last = _run(tied.gather(1, row.unsqueeze(2).expand(-1, 1, side)).squeeze(1), place % side)
    column = torch.div(first + last, 2, rounding_mode="floor")
    top, bottom = _run(tied.gather(2, column.unsqueeze(2).expand(-1, side, 1)).squeeze(2), row)
    x, y = across.gather(1, first) + across.gather(1, last), down.gather(1, top) + down.gather(1, bottom)
    return place, torch.cat([x, y], dim=1) / 2


def _from_middle(chosen: torch.Tensor) -> torch.Tensor:
    """Squared distance, in cells, of every cell from the mean place of those chosen (bool B x m x m): B x m x m."""
    index = torch.arange(chosen.shape[1], device=chosen.device).double()
    count = chosen.sum(dim=(1, 2)).unsqueeze(1)
    across = index - (chosen.sum(dim=1) * index).sum(dim=1, keepdim=True) / count
    down = index - (chosen.sum(dim=2) * index).sum(dim=1, keepdim=True) / count
    return down.square().unsqueeze(2) + across.square().unsqueeze(1)


def _run(tied: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last place of the unbroken run in bool B x m that a place (B x 1) is in, B x 1 both."""
    index = torch.arange(tied.shape[1], device=tied.device).expand_as(tied)
    before = torch.where(tied | (index > at), torch.full_like(index, -1), index).amax(dim=1, keepdim=True)
    after = torch.where(tied | (index < at), torch.full_like(index, tied.shape[1]), index).amin(dim=1, keepdim=True)
    return before + 1, after - 1


def _corner(integral: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values of B x n x n at all pairs of rows (B x m) and columns (B x m): B x m x m."""
    place = y.unsqueeze(2) * integral.shape[2] + x.unsqueeze(1)
    return integral.flatten(1).gather(1, place.flatten(1)).view_as(place)


def _fill(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    found: torch.Tensor,
    share: torch.Tensor,
    length: torch.Tensor,
    cell: torch.Tensor,
    image_shape: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of side `length` (B) with most attention in place of the boxes not found, apart from what is there.

    A window whose centre is less than half a window from that of an earlier box is taken only if no other is left.
    """
    sums, across, down = _windows(share, length, cell)
    penalised = sums
    filled: list[torch.Tensor] = []
    filled_scores: list[torch.Tensor] = []
    for k in range(boxes.shape[1]):
        place, centre = _strongest(penalised, across, down)
        box = torch.where(found[:, k : k + 1], boxes[:, k], _square(centre, length, image_shape))
        filled.append(box)
        score = sums.flatten(1).gather(1, place).squeeze(1)
        filled_scores.append(torch.where(found[:, k], scores[:, k], score))
        middle = (box[:, :2] + box[:, 2:]) / 2
        near_across = ((across - middle[:, :1]).abs() < length.unsqueeze(1) / 2).unsqueeze(1)
        near_down = ((down - middle[:, 1:]).abs() < length.unsqueeze(1) / 2).unsqueeze(2)
        # More than all attention: a window apart from the others always comes first.
        penalised = penalised - 2.0 * (near_across & near_down)
    return torch.stack(filled, dim=1), torch.stack(filled_scores, dim=1)
