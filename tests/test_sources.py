import gzip
import hashlib
import http.server
import socket
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mnist_jax import data, sources
from mnist_jax.config import InputError
from mnist_jax.sources import IDX_NAMES, NPZ_KEYS, parse_idx

from .conftest import idx_bytes, tiny_arrays

# The parser


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=1, max_side=50))
    | hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9))
)
def test_parsing_gives_back_what_was_written(array):
    parsed = parse_idx(idx_bytes(array))
    assert parsed.dtype == np.uint8
    np.testing.assert_array_equal(parsed, array)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused_in_one_line(content):
    try:
        array = parse_idx(content)
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    else:
        assert idx_bytes(array) == content


@given(st.integers(0, 15), st.integers(1, 255))
def test_a_changed_header_never_passes_for_the_same_images(place, change):
    array = tiny_arrays()[0]
    content = bytearray(idx_bytes(array))
    content[place] = (content[place] + change) % 256
    with pytest.raises(InputError):
        parse_idx(bytes(content))


def test_a_header_that_promises_terabytes_is_refused_at_once():
    content = b"\x00\x00\x08\x03" + 3 * b"\xff\xff\xff\xff" + b"few"
    with pytest.raises(InputError, match="4294967295 x 4294967295 x 4294967295"):
        parse_idx(content)


# Folders


def write_idx(folder, arrays, suffix=".gz", names=IDX_NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, arrays, strict=True):
        content = idx_bytes(array)
        file = folder / f"{name}{suffix}"
        file.write_bytes(gzip.compress(content) if suffix == ".gz" else content)


@pytest.mark.parametrize("form", ["gz", "idx", "npz", "npz file", "subfolder"])
def test_a_folder_in_every_form(tmp_path, form):
    arrays = tiny_arrays()
    place = tmp_path
    if form in ("gz", "idx"):
        write_idx(tmp_path, arrays, ".gz" if form == "gz" else "")
    elif form == "subfolder":
        write_idx(tmp_path / "local", arrays)
    else:
        np.savez(tmp_path / "mnist.npz", **dict(zip(NPZ_KEYS, arrays, strict=True)))
        place = tmp_path / "mnist.npz" if form == "npz file" else tmp_path
    dataset = data.load("local", place)
    found = (*dataset.train, *dataset.test)
    for array, expected in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(array, expected)
    assert dataset.class_names == ("0", "1", "2")


def test_the_environment_variable_names_a_folder(tmp_path, monkeypatch):
    write_idx(tmp_path, tiny_arrays())
    monkeypatch.setenv("MNIST_JAX_DATA", str(tmp_path))
    assert data.load("local").name == "local"


def test_mnists_folder_in_the_environment_is_not_asked_for_other_data(tmp_path, monkeypatch):
    write_idx(tmp_path, tiny_arrays())
    monkeypatch.setenv("MNIST_JAX_DATA", str(tmp_path))
    monkeypatch.setattr(sources, "read_cache", lambda name: tiny_arrays())
    assert data.load("kmnist").name == "kmnist"  # from the cache
    write_idx(tmp_path / "emnist" / "digits", tiny_arrays()[:2], names=["other", "another"])
    with pytest.raises(InputError, match="has no emnist-digits-train-images"):
        data.load("emnist/digits")


def test_official_mnist_in_every_form(mnist_dir, mnist, tmp_path):
    arrays = (*mnist.train, *mnist.test)
    write_idx(tmp_path / "plain", arrays, "")
    write_idx(tmp_path / "packed_again", arrays, ".gz")
    np.savez(tmp_path / "mnist.npz", **dict(zip(NPZ_KEYS, arrays, strict=True)))
    for place in (tmp_path / "plain", tmp_path / "packed_again", tmp_path / "mnist.npz"):
        again = data.load("mnist", place)
        np.testing.assert_array_equal(again.train.images, mnist.train.images)
        np.testing.assert_array_equal(again.test.labels, mnist.test.labels)


def break_file(folder, how):
    """Damages a good folder; returns what the message must say."""
    images, labels = folder / f"{IDX_NAMES[0]}.gz", folder / f"{IDX_NAMES[1]}.gz"
    _, y_train, x_test, _ = tiny_arrays()
    if how == "missing":
        labels.unlink()
        return f"has no {IDX_NAMES[1]}"
    if how == "truncated gzip":
        images.write_bytes(images.read_bytes()[:-20])
        return "truncated or damaged"
    if how == "no gzip":
        images.write_bytes(b"hello")
        return "truncated or damaged"
    if how == "flipped bit":
        content = bytearray(images.read_bytes())
        content[len(content) // 2] ^= 4
        images.write_bytes(bytes(content))
        return "truncated or damaged"
    if how == "lying header":
        content = bytearray(idx_bytes(tiny_arrays()[0]))
        content[7] += 1
        images.write_bytes(gzip.compress(bytes(content)))
        return "does not fit its header: 41 x 3 x 2"
    if how == "no header":
        images.write_bytes(gzip.compress(b"not an IDX file"))
        return "is no IDX file"
    if how == "fewer labels":
        labels.write_bytes(gzip.compress(idx_bytes(y_train[:-1])))
        return "40 training images and 39 labels"
    if how == "labels for images":
        images.write_bytes(gzip.compress(idx_bytes(y_train)))
        return "expected uint8 (n, height, width)"
    if how == "test label out of range":
        write_idx(folder, (x_test[:0], y_train[:0] + 7), names=IDX_NAMES[2:])
        (folder / f"{IDX_NAMES[2]}.gz").write_bytes(gzip.compress(idx_bytes(x_test[:1])))
        (folder / f"{IDX_NAMES[3]}.gz").write_bytes(gzip.compress(idx_bytes(y_train[:1] + 7)))
        return "labels run from 7 to 7; expected whole numbers from 0 to 2"
    if how == "no images":
        write_idx(folder, (x_test[:0], y_train[:0]), names=IDX_NAMES[:2])
        return "0 training images"
    if how == "other size":
        (folder / f"{IDX_NAMES[2]}.gz").write_bytes(gzip.compress(idx_bytes(x_test[:, :2])))
        return "test images of (2, 2)"
    raise AssertionError(how)


@pytest.mark.parametrize(
    "how",
    [
        "missing",
        "truncated gzip",
        "no gzip",
        "flipped bit",
        "lying header",
        "no header",
        "fewer labels",
        "labels for images",
        "test label out of range",
        "no images",
        "other size",
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, how):
    write_idx(tmp_path, tiny_arrays())
    expected = break_file(tmp_path, how)
    with pytest.raises(InputError) as caught:
        data.load("local", tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mnist_by_name_must_be_mnist(tmp_path, mnist):
    x_train, y_train, x_test, y_test = *mnist.train, *mnist.test
    altered = y_train.copy()
    altered[4711] = (altered[4711] + 1) % 10
    write_idx(tmp_path, (x_train, altered, x_test, y_test))
    with pytest.raises(InputError, match="train-labels-idx1-ubyte is not MNIST's: its SHA-256"):
        data.load("mnist", tmp_path)
    assert data.load("local", tmp_path).name == "local"


def test_a_label_out_of_range_is_named_before_the_checksum(tmp_path):
    x_train, y_train, x_test, y_test = tiny_arrays()
    write_idx(tmp_path, (x_train, y_train + 9, x_test, y_test))
    with pytest.raises(InputError, match=r"labels run from 9 to 11; expected .* 0 to 9"):
        data.load("mnist", tmp_path)


def test_fashion_mnist_is_not_mistaken_for_mnist(mnist_dir):
    with pytest.raises(InputError, match="does not hold fashion_mnist"):
        data.load("fashion_mnist", mnist_dir)


def test_a_gzip_bomb_stops_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST_FILE", 1000)
    write_idx(tmp_path, tiny_arrays())
    (tmp_path / f"{IDX_NAMES[0]}.gz").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(InputError, match="holds more than 1000 bytes"):
        data.load("local", tmp_path)


@pytest.mark.parametrize("content", ["pickle", "text", "missing key", "truncated"])
def test_a_bad_npz_is_refused(tmp_path, content):
    file = tmp_path / "mnist.npz"
    arrays = dict(zip(NPZ_KEYS, tiny_arrays(), strict=True))
    if content == "pickle":
        arrays["y_test"] = np.array([print], object)
    if content == "missing key":
        del arrays["y_test"]
    np.savez(file, **arrays)
    if content == "text":
        file.write_text("hello")
    if content == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"mnist.npz is no npz file"):
        data.load("local", tmp_path)


@pytest.mark.parametrize("labels", [np.int64([-1, 0]), np.float32([0.5, 1.0])])
def test_labels_that_count_no_classes_are_refused(tmp_path, labels):
    x_train, y_train, x_test, _ = tiny_arrays()
    arrays = (x_train, y_train, x_test[:2], labels)
    np.savez(tmp_path / "mnist.npz", **dict(zip(NPZ_KEYS, arrays, strict=True)))
    with pytest.raises(InputError, match="expected whole numbers from 0 to 2"):
        data.load("local", tmp_path)


def test_labels_of_another_integer_type_will_do(tmp_path):
    x_train, y_train, x_test, y_test = tiny_arrays()
    arrays = (x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int32))
    np.savez(tmp_path / "mnist.npz", **dict(zip(NPZ_KEYS, arrays, strict=True)))
    dataset = data.load("local", tmp_path)
    assert dataset.train.labels.dtype == dataset.test.labels.dtype == np.uint8


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        data.load("mnist", tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no train-images"):
        data.load("mnist", tmp_path)


def test_emnist_is_turned_upright_and_counts_from_zero(tmp_path, capsys):
    x_train, y_train, x_test, y_test = tiny_arrays()
    names = [f"emnist-letters-{name.replace('t10k', 'test')}" for name in IDX_NAMES]
    write_idx(tmp_path, (x_train, y_train + 1, x_test, y_test + 1), names=names)
    dataset = data.load("emnist/letters", tmp_path)
    assert dataset.train.images.shape == (40, 2, 3)
    np.testing.assert_array_equal(dataset.train.images[5], x_train[5].T)
    np.testing.assert_array_equal(dataset.test.labels, y_test)
    assert dataset.class_names[:3] == ("A", "B", "C")
    assert "not verified" in capsys.readouterr().err


# The network, for which a server on this machine stands in


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves a folder, and has TFDS believe that MNIST and EMNIST live there."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{httpd.server_port}/"
        monkeypatch.setattr(tfds.image_classification.MNIST, "URL", url)
        monkeypatch.setattr(tfds.image_classification.EMNIST, "URL", f"{url}gzip.zip")

        def register():
            infos = {
                url + file.name: checksums.UrlInfo(
                    size=file.stat().st_size,
                    checksum=hashlib.sha256(file.read_bytes()).hexdigest(),
                    filename=file.name,
                )
                for file in folder.iterdir()
            }
            monkeypatch.setattr(checksums, "get_all_url_infos", lambda: infos)

        yield folder, register
        httpd.shutdown()


@pytest.fixture
def small_mnist(monkeypatch):
    """Lets tiny arrays pass for MNIST."""
    hashes = tuple(hashlib.sha256(idx_bytes(array)).hexdigest() for array in tiny_arrays())
    monkeypatch.setattr(data, "MNIST_SHA256", hashes)


def test_a_download_is_verified_decoded_and_cached(server, small_mnist, monkeypatch):
    folder, register = server
    write_idx(folder, tiny_arrays())
    register()
    first = data.load("mnist")
    np.testing.assert_array_equal(first.train.images, tiny_arrays()[0])

    def no_network(*_):
        raise AssertionError("the second load must come from the cache")

    monkeypatch.setattr(sources, "_fetch", no_network)
    again = data.load("mnist")
    np.testing.assert_array_equal(again.test.labels, first.test.labels)


def test_a_damaged_download_is_refused_and_not_cached(server, small_mnist):
    folder, register = server
    write_idx(folder, tiny_arrays())
    register()
    (folder / f"{IDX_NAMES[1]}.gz").write_bytes(b"something else")
    with pytest.raises(data.DataUnavailable, match="wrong checksum"):
        data.load("mnist")
    write_idx(folder, tiny_arrays())
    register()
    assert data.load("mnist").name == "mnist"


def test_a_damaged_cache_is_fetched_anew(server, small_mnist, capsys):
    folder, register = server
    write_idx(folder, tiny_arrays())
    register()
    data.load("mnist")
    file = sources._cache_file("mnist")
    content = bytearray(file.read_bytes())
    content[400] ^= 1
    file.write_bytes(bytes(content))
    np.testing.assert_array_equal(data.load("mnist").train.images, tiny_arrays()[0])
    assert "fetching mnist anew" in capsys.readouterr().err


def test_emnist_comes_out_of_its_one_archive(server):
    folder, register = server
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for name, array in zip(IDX_NAMES, tiny_arrays(), strict=True):
            member = f"gzip/emnist-digits-{name.replace('t10k', 'test')}.gz"
            archive.writestr(member, gzip.compress(idx_bytes(array)))
    register()
    dataset = data.load("emnist/digits")
    np.testing.assert_array_equal(dataset.train.images, tiny_arrays()[0].transpose(0, 2, 1))


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("mnist", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        ("fashion_mnist", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
        ("kmnist", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"),
        ("emnist/letters", "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip"),
    ],
)
def test_each_dataset_is_asked_for_where_it_lives(name, url, monkeypatch):
    asked = []

    def remember(name, url):
        asked.append(url)
        raise data.DataUnavailable(name)

    monkeypatch.setattr(sources, "_require_reachable", remember)
    with pytest.raises(data.DataUnavailable):
        data.load(name)
    assert asked[0].startswith(url)


def test_a_missing_file_on_the_server_is_said(server):
    _, register = server
    register()
    with pytest.raises(data.DataUnavailable, match="could not be downloaded"):
        data.load("mnist")


def test_a_server_that_never_answers_is_given_up_early(monkeypatch):
    """Before the download manager is asked, which would try for minutes."""
    import tensorflow_datasets as tfds

    assert sources.REACH_SECONDS < 5
    monkeypatch.setattr(sources, "REACH_SECONDS", 0.1)
    monkeypatch.delattr(tfds.download, "DownloadManager")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(tfds.image_classification.MNIST, "URL", url)
        with pytest.raises(data.DataUnavailable, match=r"127.0.0.1: no answer"):
            data.load("mnist")


def test_a_cached_load_imports_nothing_heavy(tmp_path, monkeypatch):
    cache = tmp_path / "mnist_jax"
    cache.mkdir()
    np.savez(cache / "kmnist.npz", **dict(zip(NPZ_KEYS, tiny_arrays(), strict=True)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = (
        "import sys; from mnist_jax import data; data.load('kmnist');"
        "print(sorted({'tensorflow_datasets', 'sklearn', 'requests'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
