"""Inference on a folder or a list of image files: predictions, instances, overlays, the least certain images."""

import logging
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

import torch
from ignite.engine import Engine, Events
from PIL import Image

from label_efficient.data.picture_transforms import load_image
from label_efficient.engine.autocast import AutocastInferer
from label_efficient.engine.log import log_to_file
from label_efficient.evaluation.predictions import normalised_entropy, prediction_rows, write_predictions
from label_efficient.files import write_csv
from label_efficient.networks.weights import read_model_info
from label_efficient.settings import Settings

from .inference_report import write_inference_report
from .instance_figures import InstancePictures, save_picture
from .network import GatedAttentionNet
from .settings import OF_THE_NETWORK

logger = logging.getLogger(__name__)

INSTANCE_COLUMNS = ("file", "rank", "x0", "y0", "x1", "y1", "attention")
_LOOKS, _LOOK_PIXELS = 6, 512  # pictures in the report, and the longer side of each


def read_info(ckpt_path: str) -> dict[str, Any]:
    """What weights are, from the `.json` beside them: the classes and all arguments of the network.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If they are the weights of another bundle, or the description is incomplete.
    """
    bundle = read_model_info(ckpt_path, ["bundle"])["bundle"]
    if bundle != "gated_attention":
        path = Path(ckpt_path).with_suffix(".json")
        raise ValueError(f"{path}: these are weights of the bundle {bundle!r}, expected 'gated_attention'")
    return read_model_info(ckpt_path, ["classes", *OF_THE_NETWORK])


class InstanceInferer(AutocastInferer):
    """Runs a shipped network, in half precision if asked for; of a list of images it keeps where the network looked.

    Attributes:
        found: Of the last batch, if that was a list: what `network.GatedAttentionNet.look` returns; else None.
    """

    def __init__(self, *, amp: bool | str = False) -> None:
        super().__init__(amp=amp)
        self.found: dict[str, torch.Tensor] | None = None

    def __call__(
        self, inputs: torch.Tensor | list[torch.Tensor], network: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Images in 0..255 to logits B x N.

        Args:
            inputs: B x 3 x H x W, as servers have them, which goes through any network from images to logits; or a list
                of 3 x H_i x W_i.
            network: The shipped network.
            args: For the network, with a tensor.
            kwargs: The same.
        """
        self.found = None
        if isinstance(inputs, torch.Tensor):
            return super().__call__(inputs, network, *args, **kwargs)
        self.found = super().__call__(inputs, network.look, True)
        return self.found["logits"] if "logits" in self.found else self.found["global_logits"]


class PredictionWriter:
    """Writes `predictions.csv`, `instances.csv`, `report.html` and, if asked for, overlays in `attention/`.

    Overlays are drawn in threads while the network runs.

    Args:
        output_dir: Where to write.
        network: The shipped network.
        inferer: The evaluator's; knows where the network looked.
        classes: Names of the N classes.
        settings: Of the run.
        num_workers: Threads that draw, at least one.
        overlays: Whether to draw the attention and the instances of every image.
        contact_sheet: Number of least certain images in `figures/least_certain.png`; 0 for none.
    """

    def __init__(
        self,
        *,
        output_dir: str,
        network: GatedAttentionNet,
        inferer: InstanceInferer,
        classes: Sequence[str],
        settings: Settings,
        num_workers: int = 0,
        overlays: bool = False,
        contact_sheet: int = 24,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.network = network
        self.inferer = inferer
        self.classes = list(classes)
        self.settings = settings
        self.overlays = overlays
        self.contact_sheet = contact_sheet
        self.pictures = InstancePictures(network)
        self.pool = ThreadPoolExecutor(max(num_workers, 1))
        self.pending: deque[Future[None]] = deque()
        self.names: dict[str, str] = {}
        self.drawn: set[str] = set()  # a list may name a file twice
        self.files: list[str] = []
        self.paths: list[str] = []
        self.errors: list[str] = []
        self.probabilities: list[torch.Tensor] = []
        self.found: dict[str, list[torch.Tensor]] = {}

    def attach(self, engine: Engine) -> None:
        """Register on the evaluator, after its postprocessing."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        log_to_file(self.output_dir / "inference.log")
        loader: Any = engine.state.dataloader
        self.names = overlay_names([item["file"] for item in loader.dataset.data])
        logger.info("%d files, %s", len(loader.dataset), self.settings["ckpt_path"])

    def __call__(self, engine: Engine) -> None:
        """Keep what the network says of the batch, and have its overlays drawn.

        Raises:
            ValueError: If it is not finite: the weights are broken, or half precision does not suffice.
        """
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        probabilities = torch.as_tensor(output["pred"]).double().cpu()
        if not torch.isfinite(probabilities).all():
            raise ValueError("the network's outputs are not finite: its training diverged, or amp is too coarse for it")
        assert self.inferer.found is not None
        names = ("attention_map", "instance_boxes", "instance_scores")
        found = {name: self.inferer.found[name].float().cpu() for name in names if name in self.inferer.found}
        for name, values in found.items():
            self.found.setdefault(name, []).append(values)
        self.probabilities.append(probabilities)
        self.files += batch["file"]
        self.paths += batch["path"]
        self.errors += batch["error"]
        for place, (file, error) in enumerate(zip(batch["file"], batch["error"], strict=True)):
            if self.overlays and not error and file not in self.drawn:
                self.drawn.add(file)
                own = {name: values[place] for name, values in found.items()}
                self.pending.append(self.pool.submit(self._draw, file, batch["image"][place], own))
        # Bounded: where drawing is slower than the network, the network waits.
        while len(self.pending) > len(batch["file"]):
            self.pending.popleft().result()

    def _draw(self, file: str, image: torch.Tensor, found: dict[str, torch.Tensor]) -> None:
        save_picture(self.output_dir / "attention" / self.names[file], self.pictures.draw(image, found))

    def _finish(self, engine: Engine) -> None:
        while self.pending:
            self.pending.popleft().result()
        self.pool.shutdown()
        # The report reads images again: those of the last batch need not be there, too.
        engine.state.batch = engine.state.output = None
        probabilities = torch.cat(self.probabilities)
        uncertainty = normalised_entropy(probabilities).numpy()
        found = {name: torch.cat(values) for name, values in self.found.items()}
        rows = prediction_rows(
            files=self.files,
            classes=self.classes,
            probabilities=probabilities.numpy(),
            uncertainty=uncertainty,
            errors=self.errors,
        )
        write_predictions(self.output_dir / "predictions.csv", rows)
        good = [index for index, error in enumerate(self.errors) if not error]
        instances = [row for index in good for row in instance_rows(self.files[index], index, found)]
        # Also without rows: the table of an earlier run must not stay beside the predictions of this one.
        write_csv(self.output_dir / "instances.csv", instances, INSTANCE_COLUMNS)
        bad = [(file, error) for file, error in zip(self.files, self.errors, strict=True) if error]
        chosen = sorted(good, key=lambda index: -uncertainty[index])
        write_inference_report(
            self.output_dir,
            rows=rows,
            classes=self.classes,
            least_certain=[(rows[index], self.paths[index]) for index in chosen[: self.contact_sheet]],
            looks=[(rows[index], self._look(index, found)) for index in chosen[:_LOOKS]],
            bad=bad,
            settings=self.settings,
        )
        for file, error in bad:
            logger.warning("no prediction for %s: %s", file, error)
        if "instance_boxes" not in found:
            logger.info("the weights are of the global branch alone (method='global'): instances.csv has no rows")
        logger.info("%d predictions, %d files without: %s", len(good), len(bad), self.output_dir)
        if not good:
            raise ValueError(f"none of the {len(rows)} files could be read; the first: {bad[0][1]}")

    def _look(self, index: int, found: dict[str, torch.Tensor]) -> Image.Image:
        """Picture of what the network looked at in one image, small, for the report."""
        own = {name: values[index] for name, values in found.items()}
        return self.pictures.draw(load_image(self.paths[index]), own, _LOOK_PIXELS)


def instance_rows(file: str, index: int, found: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Rows of `instances.csv` for one image: the boxes in pixels of the image as `_images.read_image` shows it.

    The rank is the network's order: the components of the mask by their attention, then the windows that stand in for
    missing ones. The attention is that of the component, or window, as a share of the image's.

    Args:
        file: Its name.
        index: Its place in `found`.
        found: `instance_boxes` (N x K x 4) and `instance_scores` (N x K), or neither.
    """
    if "instance_boxes" not in found:
        return []
    boxes, scores = found["instance_boxes"][index].tolist(), found["instance_scores"][index].tolist()
    return [
        {
            "file": file,
            "rank": rank,
            **{name: f"{edge:.2f}" for name, edge in zip(("x0", "y0", "x1", "y1"), box, strict=True)},
            "attention": f"{score:.6f}",
        }
        for rank, (box, score) in enumerate(zip(boxes, scores, strict=True), start=1)
    ]


def overlay_names(files: Sequence[str]) -> dict[str, str]:
    """Names of the overlays in their folder: the file's with `.png` behind it.

    Absolute paths and `..` are cut off, so that no picture lands elsewhere. If two names are the same then, also to
    systems that take `A.png` and `a.png` for the same file, all begin with their place in the list.
    """
    inside = {}
    for file in dict.fromkeys(files):
        path = PurePath(file)
        inside[file] = PurePath(*[part for part in path.parts if part not in (path.anchor, "..")])
    places = Counter(path.as_posix().casefold() for path in inside.values())
    number = "{}_" if max(places.values(), default=1) > 1 else ""
    return {
        file: path.with_name(f"{number.format(place)}{path.name}.png").as_posix()
        for place, (file, path) in enumerate(inside.items(), start=1)
    }
