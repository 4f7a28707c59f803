"""The same picture in several places: in other formats, encodings and sizes, found again at the next start."""

import io
import sqlite3

import numpy as np
import pytest
from PIL import Image

from label_efficient.data import image_hashes
from label_efficient.data.image_copies import Compared, check_copies, copy_groups, find_copies
from label_efficient.data.image_files import read_images
from label_efficient.data.image_hashes import hash_image, hash_images
from label_efficient.data.images import read_image


def textures(number, size=96, seed=0):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (number, 7, 7, 3), dtype=np.uint8)
    return [np.array(Image.fromarray(b).resize((size, size), Image.Resampling.BICUBIC)) for b in blocks]


def jpeg(image, quality, scale=1.0):
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    picture.resize([round(scale * side) for side in picture.size]).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def compared(images, labels=None):
    names, known = [f"{i}.png" for i in range(len(images))], [{"label": v} for v in labels or [0] * len(images)]
    return Compared(names, hash_images(images), known, images.__getitem__)


def test_pixels_count_and_neither_format_nor_channels(tmp_path):
    image = textures(1)[0]
    for name in ("a.png", "b.bmp", "c.tif"):
        Image.fromarray(image).save(tmp_path / name)
    assert len({hash_image(read_image(path)) for path in tmp_path.iterdir()}) == 1
    grey = image[..., 0]
    assert hash_image(grey) == hash_image(np.stack([grey] * 3, -1)) == hash_image(grey[..., None]) != hash_image(image)
    assert hash_image(grey.reshape(48, 192))[:8] != hash_image(grey)[:8]


CHANGES = [
    (lambda i: jpeg(i, 20), True),
    (lambda i: jpeg(i, 75, 0.4), True),
    (lambda i: jpeg(i, 90, 3), True),
    (lambda i: (i * 0.8).astype(np.uint8), True),
    (lambda i: i[:, ::-1], False),
    (lambda i: i[12:, 12:], False),
]


@pytest.mark.parametrize(("change", "is_copy"), CHANGES)
def test_what_is_a_near_copy(change, is_copy):
    images = textures(40)
    found = find_copies({"train": compared(images[:30]), "test": compared([*images[30:], change(images[4])])})
    assert [(c.files, c.sections) for c in found] == [(("4.png", "10.png"), ("train", "test"))] * is_copy
    assert all(0.99 <= c.similarity < 1 and len(c.pictures) == 2 for c in found)


def test_copies_within_a_section_matter_with_two_labels():
    images = textures(10)
    sections = {"train": compared([*images, images[0], images[1], jpeg(images[2], 80)], [*[0] * 11, 1, 1])}
    assert [(c.files, c.differing, c.similarity == 1) for c in find_copies(sections)] == [
        (("1.png", "11.png"), "label", True), (("2.png", "12.png"), "label", False),
    ]  # fmt: skip
    with pytest.raises(
        ValueError, match=r"1 problem:\n  11.png .train. has the pixels of 1.png .train., under two labels"
    ):
        check_copies(sections, "list", "error")
    for options in ({"setting": "warn"}, {"setting": "error", "published": True}):
        copies, notes = check_copies(sections, "list", **options)
        assert len(copies) == len(notes) == 2
    assert check_copies(sections, "list", "ignore") == ([], [])


def test_flat_images_are_near_copies_of_nothing():
    flat = [np.full((40, 40), value, np.uint8) for value in (0, 60, 120, 200)]
    assert find_copies({"train": compared(flat[:2]), "test": compared(flat[2:])}) == []


def test_groups_of_copies():
    images = textures(4)
    groups = copy_groups(hash_images([*images, images[1], jpeg(images[1], 60), jpeg(images[3], 60)]))
    assert [groups.tolist().index(g) for g in groups] == [0, 1, 2, 3, 1, 1, 3]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(image_hashes, "_LEAST_FILES", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for index, image in enumerate(textures(5, 20)):
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
    return sorted((tmp_path / "images").iterdir())


def test_the_next_start_reads_only_what_has_changed(files, monkeypatch):
    first = read_images(files, cache=False)[1]
    files[2].write_bytes(files[3].read_bytes())
    opened = []
    read, place = read_image, "label_efficient.data.image_files.read_image"
    monkeypatch.setattr(place, lambda p, **_: (opened.append(str(p)), read(p))[1])
    second = read_images(files, cache=False)[1]
    assert opened[1:] == [str(files[2])]  # the first is opened for its size
    assert np.array_equal(first[[0, 1, 3, 4]], second[[0, 1, 3, 4]]) and second[2] == first[3]
    images, third = read_images(files, cache=True)
    assert np.array_equal(third, second) and np.array_equal(third, hash_images(images))


@pytest.mark.parametrize("kind", ["damaged", "read-only", "of another form", "a file"])
def test_a_cache_that_cannot_be_used_is_done_without(files, tmp_path, caplog, kind):
    folder = tmp_path / "cache" / "label_efficient"
    folder.mkdir(parents=True)
    place = folder / "image_hashes.sqlite3"
    if kind == "damaged":
        place.write_bytes(b"no database" * 500)
    elif kind == "of another form":
        with sqlite3.connect(place) as database:
            database.execute("CREATE TABLE hashes (other TEXT)")
    else:
        folder.rmdir()
        folder.symlink_to("/proc" if kind == "read-only" else files[0])
    assert len(read_images(files)[1]) == 5
    assert caplog.text.count("cannot be used") == 1


def test_processes_read_what_threads_read(files, monkeypatch):
    threads = read_images(files, 2)
    monkeypatch.setattr("label_efficient.data.image_files._MANY", 3)
    processes = read_images(files, 2)
    assert all(np.array_equal(one, other) for one, other in zip(threads, processes, strict=True))
