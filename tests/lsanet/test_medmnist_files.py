"""MedMNIST files: found, downloaded whole or not at all from a server on this machine, and refused when altered."""

import hashlib
import http.server
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import medmnist.info
import numpy as np
import pytest

from label_efficient.settings import SettingsError
from lsanet import medmnist_files
from lsanet.data import load_data
from lsanet.medmnist_files import MEDMNIST_FLAGS, find_npz


def content_of_file(seed: int = 0) -> bytes:
    """A file with the layout of BreastMNIST."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (6, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(6)[:, None] % 2
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


CONTENT = content_of_file()
DIGEST = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Answers by the last part of the path."""

    def do_GET(self):
        """Send the file, or something else."""
        kind = self.path.rsplit("/", 1)[1].split("?")[0]
        self.server.asked.append(self.path)
        if kind == "garbage":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
            return
        if kind == "together":
            self.server.barrier.wait(timeout=10)
        self.send_response(404 if kind == "missing" else 200)
        body = content_of_file(1) if kind == "altered" else CONTENT
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if kind == "cut" else body)

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def server(monkeypatch):
    """A server of this machine; its `offer(kind)` makes it what MedMNIST says the address of breastmnist is."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.asked, server.barrier = [], threading.Barrier(2)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    info = dict(medmnist.info.INFO["breastmnist"], MD5=DIGEST, MD5_64=DIGEST)

    def offer(kind: str) -> str:
        url = f"http://127.0.0.1:{server.server_port}/{kind}?download=1"
        monkeypatch.setitem(medmnist.info.INFO, "breastmnist", dict(info, url=url, url_64=url.replace("?", "?64&")))
        return url

    server.offer = offer
    offer("breastmnist.npz")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def own_folder(tmp_path, monkeypatch) -> Path:
    """What takes the place of medmnist's own folder."""
    folder = tmp_path / "medmnist"
    folder.mkdir()
    monkeypatch.setattr(medmnist.info, "DEFAULT_ROOT", str(folder))
    return folder


def test_flags_are_the_twelve_2d_sets_in_four_sizes_as_medmnist_has_them():
    flat = [name for name, info in medmnist.info.INFO.items() if not info["python_class"].endswith("3D")]
    assert len(flat) == 12
    assert sorted(MEDMNIST_FLAGS) == sorted(name + size for name in flat for size in ("", "_64", "_128", "_224"))
    published = [medmnist_files._published(flag) for flag in MEDMNIST_FLAGS]
    assert len({url for url, _ in published}) == len({digest for _, digest in published}) == 48
    for flag, (url, _) in zip(MEDMNIST_FLAGS, published, strict=True):
        assert f"/{flag}.npz" in url


def test_download_arrives_in_dataset_dir_and_is_used_again(server, own_folder, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    data = load_data("breastmnist", dataset_dir=str(folder))
    assert (folder / "breastmnist.npz").read_bytes() == CONTENT
    assert [p.name for p in folder.iterdir()] == ["breastmnist.npz"] and not list(own_folder.iterdir())
    assert data.task == "binary-class" and data.classes == ["malignant", "normal, benign"]
    load_data("breastmnist", dataset_dir=str(folder))
    assert len(server.asked) == 1


def test_download_without_dataset_dir_goes_to_medmnists_folder_even_a_new_one(server, own_folder):
    own_folder.rmdir()
    assert find_npz("breastmnist_64", None) == own_folder / "breastmnist_64.npz"
    assert server.asked == ["/breastmnist.npz?64&download=1"]


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("altered", "what arrived has MD5"),
        ("cut", "."),
        ("missing", "404"),
        ("garbage", "no HTTP"),
        ("gone", "refused"),
    ],
)
def test_failed_download_leaves_nothing_and_names_file_address_and_folder(server, own_folder, kind, found):
    url = server.offer(kind)
    if kind == "gone":
        server.shutdown()
        server.server_close()
    with pytest.raises(ConnectionError, match=found) as caught:
        load_data("breastmnist")
    for part in ("dataset='breastmnist'", f"put it there as {own_folder / 'breastmnist.npz'}", url, DIGEST):
        assert part in str(caught.value)
    assert list(own_folder.iterdir()) == []


def test_interrupted_download_leaves_nothing(server, own_folder, monkeypatch):
    class Interrupted:
        def update(self, block):
            raise KeyboardInterrupt

    monkeypatch.setattr(medmnist_files.hashlib, "md5", lambda **kwargs: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        find_npz("breastmnist", None)
    assert list(own_folder.iterdir()) == []


def test_processes_that_download_at_once_do_not_disturb_each_other(server, own_folder, monkeypatch):
    server.offer("together")
    # Threads in the place of processes: each with the number that a process of its own would have.
    monkeypatch.setattr("label_efficient.files.os.getpid", threading.get_ident)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: find_npz("breastmnist", None), range(2)))
    assert len(server.asked) == 2 and set(found) == {own_folder / "breastmnist.npz"}
    assert [p.name for p in own_folder.iterdir()] == ["breastmnist.npz"] and hashlib.md5(
        found[0].read_bytes()
    ).hexdigest() == DIGEST


def test_dataset_dir_comes_before_medmnists_folder(server, own_folder, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (own_folder / "breastmnist.npz").write_bytes(CONTENT)
    assert find_npz("breastmnist", str(folder)) == own_folder / "breastmnist.npz"
    (folder / "breastmnist.npz").write_bytes(CONTENT)
    assert find_npz("breastmnist", str(folder)) == folder / "breastmnist.npz"
    assert server.asked == []


def test_file_of_the_name_with_another_checksum_is_refused_by_flag_and_read_by_path(server, own_folder):
    path = own_folder / "breastmnist.npz"
    path.write_bytes(content_of_file(1))
    with pytest.raises(ValueError, match=rf"its MD5 is \w{{32}}, and MedMNIST's breastmnist has {DIGEST}") as caught:
        load_data("breastmnist")
    assert f"--dataset {path}" in str(caught.value)
    assert path.read_bytes() == content_of_file(1) and server.asked == []
    assert load_data(str(path)).classes == ["class 0", "class 1"]


def test_folders_that_do_not_exist(server, monkeypatch, tmp_path):
    with pytest.raises(SettingsError, match=r"dataset_dir=.*nowhere.*no such folder"):
        load_data("breastmnist", dataset_dir=str(tmp_path / "nowhere"))
    monkeypatch.setattr(medmnist.info, "DEFAULT_ROOT", None)  # as medmnist has it where the home is read-only
    with pytest.raises(SettingsError, match="give dataset_dir"):
        load_data("breastmnist")
    assert server.asked == []
