"""Data of gated attention: images at their stored size, random changes, and the first weights of both branches."""

import csv
import functools
import hashlib
import http.server
import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image
from torch import nn

from gated_attention import transforms
from gated_attention.data import load_data
from gated_attention.first_weights import init_network
from gated_attention.network import GatedAttentionNet
from gated_attention.transforms import AUGMENTATIONS, Augment, PrepareBatch
from label_efficient.data.image_data import ImageData
from label_efficient.data.stored_images import StoredImages
from label_efficient.networks.backbones import build_backbone
from label_efficient.networks.imagenet_weights import FILES

SPLITS = ("train", "val", "test")
SIZES = ((9, 14), (20, 6), (1, 1), (30, 30))

# Lists and the demo


def write_images(folder: Path, sizes=SIZES) -> list[tuple[str, str, str]]:
    """Twelve colour images of two classes, four a split; (file, class, split)."""
    rng = np.random.default_rng(1)
    entries = []
    for index in range(12):
        name, split = f"{index}.png", SPLITS[index // 4]
        pixels = rng.integers(0, 256, (*sizes[index % len(sizes)], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        entries.append((name, ("cat", "dog")[index % 2], split))
    return entries


def write_list(folder: Path, entries) -> str:
    with open(folder / "images.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "class", "split"), *entries])
    return str(folder)


def pixels_of(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / name))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("sizes", [SIZES, ((9, 14),)], ids=["sizes differ", "one size"])
def test_images_keep_their_size_and_pixels(tmp_path, sizes, cache):
    entries = write_images(tmp_path, sizes)
    data = load_data(write_list(tmp_path, entries), cache=cache, num_workers=2)
    assert (data.task, data.classes, data.name) == ("binary-class", ["cat", "dog"], tmp_path.name)
    for split in SPLITS:
        part, own = StoredImages(data.splits[split]), [e for e in entries if e[2] == split]
        assert len(part) == 4 and part.data.files == [e[0] for e in own]
        batch = part[[2, 0, 3]]
        assert batch["label"].dtype == torch.int64
        assert batch["label"].tolist() == [data.classes.index(own[i][1]) for i in (2, 0, 3)]
        for image, position in zip(batch["image"], (2, 0, 3), strict=True):
            expected = pixels_of(tmp_path, own[position][0])
            assert image.dtype == torch.uint8 and image.shape == (3, *expected.shape[:2])
            assert np.array_equal(image.permute(1, 2, 0), expected)
            assert np.array_equal(part.image(position), expected)


def test_a_batch_can_be_one_position(tmp_path):
    data = load_data(write_list(tmp_path, write_images(tmp_path)))
    batch = StoredImages(data.splits["val"])[1]
    assert len(batch["image"]) == 1 and batch["label"].tolist() == [1]


def test_a_batch_is_not_the_stored_images(tmp_path):
    part = load_data(write_list(tmp_path, write_images(tmp_path, ((8, 8),)))).splits["train"]
    before = part.images.copy()
    PrepareBatch(Augment("strong"))(StoredImages(part)[[0, 1]])
    assert np.array_equal(part.images, before)


@pytest.mark.parametrize("label", ["dog", "DOG", 1])
def test_entries_of_another_program(tmp_path, label):
    write_images(tmp_path)
    (tmp_path / "label.txt").write_text(str(label))
    entries = [{"image": str(tmp_path / "1.png"), "label": str(tmp_path / "label.txt")}]
    batch = StoredImages(entries, classes=["cat", "dog"])[[0]]
    assert batch["label"].tolist() == [1]
    assert np.array_equal(batch["image"][0].permute(1, 2, 0), pixels_of(tmp_path, "1.png"))


def handed_over(folder: Path, **lists: Any) -> ImageData:
    """`load_data` in a config into which another program has put its images."""
    (folder / "model.json").write_text(json.dumps({"task": "multi-class", "classes": ["cat", "dog"]}))
    parser = ConfigParser()
    parser["train"] = {"dataset": {"data": lists.get("train")}}
    parser["validate"] = {"dataset": {"data": lists.get("val")}}
    released = str(folder / "model.json")
    parser["data"] = {"_target_": "gated_attention.data.load_data", "dataset": "nowhere.csv", "released": released}
    return parser.get_parsed_content("data")


def test_images_handed_over_have_the_released_classes(tmp_path):
    entries = write_images(tmp_path)
    items = [{"image": str(tmp_path / f), "label": ("cat", "dog").index(c)} for f, c, _ in entries]
    data = handed_over(tmp_path, train=items[:8], val=items[8:])
    assert data.classes == ["cat", "dog"] and [len(data.splits[s]) for s in SPLITS] == [8, 4, 4]
    assert data.splits["test"] is data.splits["val"] and "validation again" in data.notes[0]
    with pytest.raises(RuntimeError) as caught:
        handed_over(tmp_path, train=items)
    assert "any for val: give a val_split" in str(caught.value.__cause__)


def demo(seed: int = 0) -> ImageData:
    return load_data("demo", seed=seed, demo_counts=dict.fromkeys(SPLITS, 6))


def test_the_demo_is_the_same_every_time_and_balanced():
    first = demo()
    assert first.fingerprint() == demo().fingerprint()
    assert [row["train"] for row in first.counts()] == [2, 2, 2, 6]
    assert first.task == "multi-class" and "no clinical meaning" in first.source
    assert len(set(first.splits["train"].files) | set(first.splits["test"].files)) == 12


@pytest.mark.parametrize("seed", [1, 1000])
def test_the_seed_of_a_demo_changes_training_alone_and_repeats_no_picture(seed):
    first, other = demo(), demo(seed)
    for split in SPLITS:
        pairs = zip(first.splits[split].images, other.splits[split].images, strict=True)
        same = all(np.array_equal(a, b) for a, b in pairs)
        assert same == (split != "train")
    stored = [image.tobytes() for part in other.splits.values() for image in part.images]
    assert len(set(stored)) == 18


@pytest.mark.parametrize(("budget", "kept"), [({"labels_per_class": 1}, 3), ({"label_fraction": 0.5}, 3)])
def test_label_budgets_leave_training_images_out(budget, kept):
    data = load_data("demo", demo_counts=dict.fromkeys(SPLITS, 6), **budget)
    assert [len(data.splits[s]) for s in SPLITS] == [kept, 6, 6] and data.unlabelled == 6 - kept
    assert sorted(Counter(data.splits["train"].labels.tolist()).values()) == [1, 1, 1]
    whole = {image.tobytes() for image in demo().splits["train"].images}
    assert all(image.tobytes() in whole for image in data.splits["train"].images)


def test_real_images_of_two_sizes(real_data, tmp_path):
    folder = real_data / "microscopy"
    kinds = [("fungus", sorted((folder / "aspergillus_512x384" / "A_niger_AI1").glob("*.jpg"))[:6])]
    kinds.append(("blood", sorted((folder / "bccd" / "JPEGImages").glob("*.jpg"))[:6]))
    entries = [(str(p), kind, SPLITS[i // 2]) for kind, paths in kinds for i, p in enumerate(paths)]
    data = load_data(write_list(tmp_path, entries), num_workers=2)
    batch = StoredImages(data.splits["train"])[[0, 1, 2, 3]]
    sizes = {"fungus": (3, 384, 512), "blood": (3, 480, 640)}
    assert [tuple(image.shape) for image in batch["image"]] == [sizes[data.classes[k]] for k in batch["label"]]
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1]
    assert all(30 < float(image.float().mean()) < 225 for image in batch["image"])


# Random changes


def picture(height: int = 5, width: int = 7) -> torch.Tensor:
    """Every pixel another value: 3 x H x W."""
    return torch.arange(3 * height * width, dtype=torch.uint8).view(3, height, width)


def eight(image: torch.Tensor) -> list[np.ndarray]:
    """All turns and mirrorings, by numpy."""
    turned = [np.rot90(image.numpy(), k, (1, 2)) for k in range(4)]
    return turned + [t[:, :, ::-1] for t in turned]


def test_none_changes_nothing_and_takes_no_random_number():
    images = [picture(), picture(2, 3)]
    state = torch.get_rng_state()
    found = Augment("none")(images)
    assert all(a is b for a, b in zip(found, images, strict=True)) and torch.equal(torch.get_rng_state(), state)


def test_dihedral_is_all_eight_turns_equally_often_and_nothing_else():
    image = picture()
    expected = eight(image)
    torch.manual_seed(0)
    found = Augment("dihedral")([image] * 800)
    hits = Counter(next(k for k, e in enumerate(expected) if np.array_equal(e, f)) for f in found)
    assert sorted(hits) == list(range(8)) and min(hits.values()) > 70
    assert torch.equal(image, picture())


@pytest.mark.parametrize("kind", ["dihedral", "strong"])
def test_the_seed_decides_and_every_image_has_its_own_change(kind):
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append([f.tolist() for f in Augment(kind)([picture(16, 16)] * 12)])
    assert runs[0] == runs[1] != runs[2]
    assert len({str(image) for image in runs[0]}) > 4


@pytest.mark.parametrize(("height", "width"), [(40, 60), (200, 3), (1, 1), (1, 90)])
def test_cuts_keep_aspect_and_most_of_the_image(height, width, monkeypatch):
    monkeypatch.setattr(transforms, "_jitter", lambda image: image)
    monkeypatch.setattr(transforms, "_turn", lambda image: image)
    place = torch.arange(height * width).view(1, height, width).expand(3, -1, -1)
    torch.manual_seed(0)
    shares, corners = [], set()
    for cut in Augment("strong")([place] * 300):
        rows, columns = cut[0, :, 0] // width, cut[0, 0] % width
        assert torch.equal(cut[0], place[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        tall, wide = cut.shape[1] / height, cut.shape[2] / width
        assert abs(tall - wide) <= 0.5 / height + 0.5 / width + 1e-6
        shares.append(tall * wide)
        corners.add((int(rows[0]), int(columns[0])))
    slack = 0.5 / height + 0.5 / width
    assert min(shares) >= 0.6 - slack - 1e-6 and max(shares) <= 1
    if min(height, width) > 20:
        assert min(shares) < 0.65 and max(shares) > 0.95 and len(corners) > 50


def test_contrast_brightness_and_colour_by_hand():
    # A single pixel is cut and turned to itself: what is left is the formula, from the same random numbers.
    values = torch.tensor([10, 128, 245], dtype=torch.uint8)
    clipped = 0
    for seed in range(40):
        torch.manual_seed(seed)
        found = Augment("strong")([values.view(3, 1, 1)])[0]
        torch.manual_seed(seed)
        torch.rand(()), torch.randint(1, ()), torch.randint(1, ())
        contrast, colour, brightness = (torch.rand(n).double().numpy() * 2 - 1 for n in (1, 3, 1))
        factor = np.exp(0.3 * contrast + 0.08 * colour)
        exact = (values.numpy() - 127.5) * factor + 127.5 + 255 * 0.15 * brightness
        assert found.dtype == torch.uint8 and found.shape == (3, 1, 1)
        assert np.abs(found.flatten().numpy() - exact.clip(0, 255)).max() <= 0.501
        clipped += bool((exact < 0).any() or (exact > 255).any())
    assert clipped  # and does not wrap around


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match=rf"augment is 'heavy', expected one of {', '.join(AUGMENTATIONS)}"):
        Augment("heavy")


def test_prepared_batches():
    images, label = [picture(), picture(2, 3)], torch.tensor([1, 0])
    found, targets = PrepareBatch()({"image": images, "label": label}, "cpu", non_blocking=True)
    assert all(torch.equal(a, b) for a, b in zip(found, images, strict=True)) and torch.equal(targets, label)
    assert PrepareBatch()({"image": images})[1] is None
    torch.manual_seed(1)
    changed, _ = PrepareBatch(Augment("dihedral"))({"image": images, "label": label})
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(changed, Augment("dihedral")(images), strict=True))


# First weights

OPTIONS: dict[str, Any] = {
    "num_classes": 3, "global_backbone": "resnet18", "instance_backbone": "resnet18", "image_size": 64,
    "instance_size": 32, "num_instances": 2,
}  # fmt: skip
BRANCHES = ("global_branch.", "instance_branch.")


def network_of(**changes: Any) -> GatedAttentionNet:
    return GatedAttentionNet(**{**OPTIONS, **changes})


def started(network: GatedAttentionNet, *, names=("resnet18", "resnet18"), **source: Any) -> dict[str, torch.Tensor]:
    """The weights before; `network` has its first ones then."""
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert init_network(network, global_backbone=names[0], instance_backbone=names[1], **source) is network
    return before


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and logs nothing."""

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def site(tmp_path, monkeypatch) -> Iterator[tuple[Path, str]]:
    """An empty folder and the address it is served at, with torch's cache in another empty folder."""
    folder, home = tmp_path / "site", tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(home))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def published(name: str) -> dict[str, torch.Tensor]:
    """Random weights under torchvision's published names, with its classifier of 1000 classes."""
    generator = torch.Generator().manual_seed(9)
    theirs = {}
    for key, value in build_backbone(name, 1000).state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        if name.startswith("densenet"):
            key = re.sub(r"\.layers\.(norm|conv)([12])\.", r".\1.\2.", key).replace("class_layers.out.", "classifier.")
        if name.startswith("vgg"):
            key = re.sub(r"^fc\.", "classifier.6.", key)
        theirs[key] = torch.rand(value.shape, generator=generator) + 0.1
    return theirs


def serve(folder: Path, monkeypatch, name: str, weights: dict[str, torch.Tensor], digits: str = "") -> str:
    path = folder / "file"
    torch.save(weights, path)
    file_name = f"{name}-{digits or hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    path.rename(folder / file_name)
    monkeypatch.setitem(FILES, name, file_name)
    return file_name


@pytest.mark.parametrize(
    "names", [("resnet18", "resnet18"), ("resnet18", "densenet121"), ("vgg16", "resnet18")], ids=" and ".join
)
def test_imagenet_weights_arrive_in_both_branches_and_nowhere_else(names, site, monkeypatch):
    folder, address = site
    theirs = {name: published(name) for name in set(names)}
    for name, weights in theirs.items():
        serve(folder, monkeypatch, name, weights)
    network = network_of(global_backbone=names[0], instance_backbone=names[1])
    before = started(network, names=names, pretrained=True, address=address)
    arrived = Counter()
    for key, value in network.state_dict().items():
        branch = next((b for b in BRANCHES if key.startswith(b)), None)
        if branch is None or key.endswith("num_batches_tracked"):
            assert torch.equal(value, before[key]), key
            continue
        name = names[BRANCHES.index(branch)]
        published_key = re.sub(r"\.layers\.(norm|conv)([12])\.", r".\1.\2.", key.removeprefix(branch))
        assert torch.equal(value, theirs[name][published_key]), key
        arrived[branch] += 1
    for branch, name in zip(BRANCHES, names, strict=True):
        assert arrived[branch] == sum(not k.startswith(("fc.", "classifier.")) for k in theirs[name])


def test_the_global_branch_alone_asks_for_its_own_file_only(site, monkeypatch):
    folder, address = site
    theirs = published("resnet18")
    serve(folder, monkeypatch, "resnet18", theirs)
    network = network_of(method="global", instance_backbone="resnet50")
    started(network, names=("resnet18", "resnet50"), pretrained=True, address=address)
    assert torch.equal(network.global_branch.get_parameter("conv1.weight"), theirs["conv1.weight"])


@pytest.mark.parametrize("missing", ["resnet18", "resnet34"])
def test_without_a_file_the_error_names_address_folder_and_file(missing, site, monkeypatch, tmp_path):
    folder, address = site
    if missing == "resnet34":
        serve(folder, monkeypatch, "resnet18", published("resnet18"))
    with pytest.raises(ConnectionError) as caught:
        started(
            network_of(instance_backbone="resnet34"), names=("resnet18", "resnet34"), pretrained=True, address=address
        )
    message = str(caught.value)
    assert address + FILES[missing] in message and f"as {FILES[missing]}" in message
    assert str(tmp_path / "home" / "hub" / "checkpoints") in message and "pretrained=false" in message


def test_a_damaged_download_is_refused_and_not_kept(site, monkeypatch, tmp_path):
    folder, address = site
    serve(folder, monkeypatch, "resnet18", {"conv1.weight": torch.zeros(1)}, digits="0123abcd")
    with pytest.raises(RuntimeError, match="invalid hash"):
        started(network_of(method="global"), pretrained=True, address=address)
    assert not list((tmp_path / "home").rglob("*.pth"))


def test_without_a_source_the_random_weights_stay():
    network = network_of(method="global")
    before = started(network)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


# Weights of an earlier run


def saved(folder: Path, **changes: Any) -> tuple[str, dict[str, torch.Tensor]]:
    weights = {
        k: torch.rand(v.shape) + 2 if v.is_floating_point() else v + 7
        for k, v in network_of(**changes).state_dict().items()
    }
    torch.save(weights, folder / "model.pt")
    return str(folder / "model.pt"), weights


@pytest.mark.parametrize(
    ("earlier", "now", "anew", "said"),
    [
        ({}, {}, (), ()),
        ({}, {"threshold": 0.3, "min_box": 0.2, "mean": [0.1, 0.2, 0.3]}, (), ()),
        ({"num_classes": 5}, {}, ("fusion_head.", "global_head."), ("other classes", "fusion_head, global_head")),
        ({"num_instances": 3}, {}, ("fusion_head.",), ("instances: fusion_head start anew",)),
        ({"pooling": "attention"}, {}, ("fusion_head.",), ("fusion_head start anew",)),
        ({"method": "global"}, {}, ("fusion_head.", "instance_branch."), ("fusion_head, instance_branch start anew",)),
        ({}, {"method": "global"}, (), ("fusion_head, instance_branch left out", "method='global'")),
        (
            {"num_classes": 5}, {"method": "global"}, ("global_head.",),
            ("other classes", "global_head start anew", "fusion_head, instance_branch left out"),
        ),
    ],
)  # fmt: skip
def test_what_fits_is_taken_and_the_log_says_what_is_not(earlier, now, anew, said, tmp_path, caplog):
    path, weights = saved(tmp_path, **earlier)
    network = network_of(**now)
    with caplog.at_level(logging.WARNING):
        before = started(network, ckpt_path=path)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith(tuple(anew)) and anew else weights[key]), key
    assert bool(caplog.records) == bool(said)
    assert [part for part in said if part not in caplog.text] == []
    assert not said or path in caplog.text


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ({"global_backbone": "resnet34"}, {}),
        ({}, {"global_backbone": "resnet34"}),
        # By names and shapes the smaller one is a part of the larger: half a network is none.
        ({"instance_backbone": "resnet34"}, {}),
        ({}, {"instance_backbone": "resnet34"}),
        ({"instance_backbone": "resnet50"}, {"instance_backbone": "resnet18"}),
        ({"attention": "se"}, {}),
        ({}, {"attention": "channel"}),
        ({"attention": "channel"}, {}),
    ],
    ids=lambda options: "-".join(options.values()) or "default",
)
def test_weights_of_another_network_are_refused(earlier, now, tmp_path):
    path, _ = saved(tmp_path, **earlier)
    network = network_of(**now)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"ckpt_path: .*model\.pt does not fit.*attention and both backbones"):
        init_network(network, global_backbone="", instance_backbone="", ckpt_path=path)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def lsanet_weights() -> dict[str, torch.Tensor]:
    from lsanet.shipped import build_shipped

    return build_shipped(backbone="resnet18", num_classes=3, image_size=28).state_dict()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (lsanet_weights, "'conv1.weight'"),
        (lambda: {"model": {}, "optimizer": {}}, "'model', 'optimizer'"),  # a run's checkpoint.pt
        (lambda: [torch.zeros(1)], "it holds a list"),
        (lambda: torch.zeros(3), "it holds a Tensor"),
        (dict, "it holds a"),
    ],
    ids=["lsanet", "checkpoint", "list", "tensor", "empty"],
)
def test_a_file_that_is_no_weights_of_this_bundle(content, part, tmp_path):
    torch.save(content(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"ckpt_path: .*other\.pt is of another bundle") as caught:
        started(network_of(method="global"), ckpt_path=str(tmp_path / "other.pt"))
    assert part in str(caught.value) and "expected the model.pt of a run of this bundle" in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "whole module"])
def test_a_damaged_file(damage, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2) if damage == "whole module" else {"global_branch.a": torch.zeros(999)}, path)
    content = path.read_bytes()
    changed = {"truncated": content[: len(content) // 2], "text": b"hello", "empty": b"", "whole module": content}
    path.write_bytes(changed[damage])
    with pytest.raises(
        ValueError, match=r"(?s)ckpt_path: .*model\.pt is not readable as weights.*expected the model\.pt"
    ):
        started(network_of(method="global"), ckpt_path=str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ckpt_path: .*nothing\.pt does not exist"):
        started(network_of(method="global"), ckpt_path=str(tmp_path / "nothing.pt"))
