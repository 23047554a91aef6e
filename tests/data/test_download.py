import contextlib
import errno
import gzip
import hashlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_jax import data
from mnist_jax.data import download, registry
from mnist_jax.data.download import IDX_NAMES
from mnist_jax.errors import InputError
from tests.conftest import idx_bytes, tiny_arrays
from tests.data.test_files import write_cache, write_idx


class Server:
    """Stands in for the network: serves the files in `folder`, with the fault `how`."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.how: Any = None
        self.at = 0.5
        self.sent = 0
        self.released = threading.Event()
        self.together = threading.Barrier(2, timeout=20)

    def register(self):
        """Tells TFDS that the files that are in `folder` now are the published ones."""
        from tensorflow_datasets.core.download import checksums

        infos = {
            self.url + file.name: checksums.UrlInfo(
                size=file.stat().st_size,
                checksum=hashlib.sha256(file.read_bytes()).hexdigest(),
                filename=file.name,
            )
            for file in self.folder.iterdir()
        }
        self.monkeypatch.setattr(checksums, "get_all_url_infos", lambda: infos)

    def answer(self, handler):
        content = (self.folder / Path(handler.path).name).read_bytes()
        handler.send_response(200)
        if self.how != "endless":
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: int(self.at * len(content))])
        if self.how == "stall":
            self.released.wait()
        while self.how == "endless" and self.sent < 10**8:
            self.sent += handler.wfile.write(bytes(2**16))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves tiny arrays at the addresses that TFDS has for MNIST, Fashion-MNIST and EMNIST."""
    import tensorflow_datasets as tfds

    served = Server(tmp_path / "served", monkeypatch)
    write_idx(served.folder, tiny_arrays())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(served.folder))

        def log_message(self, format, *args):
            pass

        def do_GET(self):
            if served.how == "together":
                served.together.wait()
            if served.how in (None, "together"):
                super().do_GET()
            else:
                with contextlib.suppress(OSError):  # the client has gone
                    served.answer(self)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        served.url = f"http://127.0.0.1:{httpd.server_port}/"
        for builder, name in (("MNIST", ""), ("FashionMNIST", ""), ("EMNIST", "gzip.zip")):
            builders = tfds.image_classification
            monkeypatch.setattr(getattr(builders, builder), "URL", served.url + name)
        served.register()
        yield served
        served.released.set()
        httpd.shutdown()


@pytest.fixture(autouse=True)
def small_mnist(monkeypatch):
    """Makes tiny arrays pass as MNIST."""
    hashes = tuple(hashlib.sha256(idx_bytes(array)).hexdigest() for array in tiny_arrays())
    monkeypatch.setattr(registry, "MNIST_SHA256", hashes)


def downloading():
    """Another process that downloads MNIST from the server."""
    code = (
        "from mnist_jax.data import download, load\n"
        "from mnist_jax.data.download import PublishedFile\n"
        f"download.published = lambda name: {download.published('mnist')}\n"
        "load('mnist')"
    )
    return subprocess.Popen([sys.executable, "-c", code])


def assert_tiny(dataset):
    for array, expected in zip((*dataset.train, *dataset.test), tiny_arrays(), strict=True):
        np.testing.assert_array_equal(array, expected)


def left_over():
    return list(download.cache_dir().rglob("*.part"))


def load_fails(match):
    """Loads MNIST, which must fail in one line and leave no file."""
    with pytest.raises(data.DataUnavailable, match=match) as caught:
        data.load("mnist")
    assert "\n" not in str(caught.value)
    assert not left_over()


# Downloads that succeed


def test_a_download_is_verified_decoded_and_cached(server, monkeypatch):
    assert_tiny(data.load("mnist"))

    def no_network(*_):
        raise AssertionError("the second load must read the cache")

    monkeypatch.setattr(download, "fetch", no_network)
    assert_tiny(data.load("mnist"))
    assert not left_over()


def test_a_damaged_download_is_rejected_and_not_cached(server):
    file = server.folder / f"{IDX_NAMES[1]}.gz"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    load_fails(match=f"{IDX_NAMES[1]}.gz arrived damaged, or is another file; try again")
    file.write_bytes(content)
    assert_tiny(data.load("mnist"))


def test_a_damaged_cache_is_downloaded_again(server, capsys):
    data.load("mnist")
    file = download.cache_dir() / "mnist.npz"
    content = bytearray(file.read_bytes())
    content[400] ^= 1
    file.write_bytes(bytes(content))
    assert_tiny(data.load("mnist"))
    assert "downloading mnist again" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["half", "flipped bit", "longer", "folder"])
def test_a_file_from_an_earlier_download_is_verified_again(server, damage):
    first, second, *_ = download.fetch("mnist")
    sent = server.folder / second.name
    content = second.read_bytes()
    if damage == "folder":
        second.unlink()
        second.mkdir()
        load_fails(match="could not be downloaded .* directory")
        return
    wrong = {"half": content[:9], "flipped bit": content[:-1] + b"x", "longer": content + b"x"}
    second.write_bytes(wrong[damage])
    (server.folder / first.name).unlink()  # is not asked for again
    assert_tiny(data.load("mnist"))
    assert second.read_bytes() == sent.read_bytes()


def test_a_dataset_that_cannot_be_cached_is_still_loaded(server, capsys):
    (download.cache_dir() / "mnist.npz").mkdir(parents=True)
    assert_tiny(data.load("mnist"))
    assert "mnist could not be cached in" in capsys.readouterr().err
    assert not left_over()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="stands in for a full disk")
def test_a_full_disk_is_reported(server, monkeypatch):
    with Path("/dev/full").open("wb", 0) as full:
        monkeypatch.setattr(download, "atomic_write", lambda _: full)
        load_fails(match=rf"{os.strerror(errno.ENOSPC)}\); check the network and the room in")


def test_emnist_is_read_from_its_archive(server):
    with zipfile.ZipFile(server.folder / "gzip.zip", "w") as archive:
        for name, array in zip(IDX_NAMES, tiny_arrays(), strict=True):
            member = f"gzip/emnist-digits-{name.replace('t10k', 'test')}.gz"
            archive.writestr(member, gzip.compress(idx_bytes(array)))
    server.register()
    dataset = data.load("emnist/digits")
    np.testing.assert_array_equal(dataset.train.images, tiny_arrays()[0].transpose(0, 2, 1))


def test_files_in_a_data_folder_are_verified_like_a_download(server):
    dataset = data.load("fashion_mnist", server.folder)
    np.testing.assert_array_equal(dataset.train.images, tiny_arrays()[0])
    images = tiny_arrays()[0]
    images[7, 1, 1] ^= 1
    write_idx(server.folder, [images], names=IDX_NAMES[:1])
    with pytest.raises(InputError, match="does not hold fashion_mnist"):
        data.load("fashion_mnist", server.folder)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("mnist", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        ("fashion_mnist", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
        ("kmnist", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"),
        ("emnist/letters", "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip"),
    ],
)
def test_each_dataset_has_its_address(name, url, monkeypatch):
    requested = []

    def record(url):
        requested.append(url)
        raise data.DataUnavailable(url)

    monkeypatch.setattr(download, "_get", record)
    with pytest.raises(data.DataUnavailable):
        data.load(name)
    assert requested[0].startswith(url)


def test_a_cached_load_imports_nothing_heavy():
    write_cache("kmnist", tiny_arrays())
    code = (
        "import sys; from mnist_jax import data; data.load('kmnist');"
        "print(sorted({'tensorflow_datasets', 'sklearn', 'requests'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Downloads that fail


def test_a_file_that_is_missing_on_the_server_is_reported(server):
    (server.folder / f"{IDX_NAMES[2]}.gz").unlink()
    load_fails(match=r"mnist could not be downloaded \(127.0.0.1: 404 .*check the network")


def test_a_connection_that_drops_is_reported(server):
    server.how = "drop"
    load_fails(match=r"could not be downloaded \(127.0.0.1: .*\d+ bytes read, \d+ more expected")


def test_a_connection_that_stalls_times_out(server, monkeypatch):
    monkeypatch.setattr(download, "READ_TIMEOUT_SECONDS", 0.1)
    server.how = "stall"
    load_fails(match=r"could not be downloaded \(127.0.0.1: .*timed out")


def test_a_download_that_is_too_long_is_stopped(server):
    server.how = "endless"
    load_fails(match="arrived damaged")
    assert server.sent < 5 * 10**7


@pytest.mark.parametrize("silent", ["server", "name"])
def test_a_server_or_name_lookup_without_an_answer_times_out(server, monkeypatch, silent):
    assert download.RESPONSE_TIMEOUT_SECONDS < 5
    monkeypatch.setattr(download, "RESPONSE_TIMEOUT_SECONDS", 0.1)
    if silent == "name":
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: server.released.wait())
    else:
        monkeypatch.setattr(Server, "answer", lambda *_: server.released.wait())
        server.how = "silent"
    load_fails(match=r"127.0.0.1: (no answer|.*timed out)")


def test_a_process_does_not_wait_for_a_name_lookup_when_it_exits():
    code = (
        "import socket, time\n"
        "from mnist_jax.data import download, load\n"
        "socket.getaddrinfo = lambda *args, **options: time.sleep(120)\n"
        "download.RESPONSE_TIMEOUT_SECONDS = 0.1\n"
        "load('mnist')"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, timeout=100)
    assert "storage.googleapis.com: no answer" in done.stderr


# Downloads that are interrupted


def test_an_interrupted_download_leaves_nothing(server, monkeypatch):
    import requests

    def interrupted(*_):
        yield b"some"
        assert len(left_over()) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(requests.Response, "iter_content", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist")
    assert not left_over()


def test_an_interrupted_decoding_leaves_nothing(server, monkeypatch):
    def interrupted(stream, **_):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist")
    assert not (download.cache_dir() / "mnist.npz").exists()
    assert not left_over()


def test_nothing_of_a_killed_download_is_trusted(server):
    server.how = "stall"
    killed = downloading()
    while not left_over():
        assert killed.poll() is None
    killed.kill()
    killed.wait()
    server.how = None
    assert_tiny(data.load("mnist"))


def test_two_downloads_at_once_both_succeed(server):
    server.how = "together"
    with ThreadPoolExecutor(2) as pool:
        for dataset in pool.map(data.load, ["mnist", "mnist"]):
            assert_tiny(dataset)
    assert not left_over()


def test_a_cache_of_other_data_is_downloaded_again(server, capsys):
    data.load("mnist")
    x_train, *others = tiny_arrays()
    write_cache("mnist", (x_train ^ 1, *others))
    assert_tiny(data.load("mnist"))
    assert "is not MNIST's" in capsys.readouterr().err


def test_sizes_are_plain_numbers():
    """Those of TensorFlow Datasets cannot be added to fractions, as tqdm does."""
    assert {type(source.size) for source in download.published("mnist")} == {int}
