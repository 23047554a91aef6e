import gzip
import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mnist_jax import data
from mnist_jax.data import files
from mnist_jax.data.download import IDX_NAMES, cache_dir
from mnist_jax.data.files import NPZ_KEYS, parse_idx
from mnist_jax.errors import InputError
from tests.conftest import idx_bytes, tiny_arrays

# The parser


def parse(content):
    return parse_idx(np.frombuffer(content, np.uint8))


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=1, max_side=50))
    | hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9))
)
def test_an_idx_file_is_parsed_to_the_array_in_it(array):
    parsed = parse(idx_bytes(array))
    assert parsed.dtype == np.uint8
    np.testing.assert_array_equal(parsed, array)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_rejected_in_one_line(content):
    try:
        array = parse(content)
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    else:
        assert idx_bytes(array) == content


@given(st.integers(0, 15), st.integers(1, 255))
def test_a_changed_header_is_rejected(place, change):
    array = tiny_arrays()[0]
    content = bytearray(idx_bytes(array))
    content[place] = (content[place] + change) % 256
    with pytest.raises(InputError):
        parse(content)


def test_a_header_that_declares_terabytes_is_rejected():
    content = b"\x00\x00\x08\x03" + 3 * b"\xff\xff\xff\xff" + b"few"
    with pytest.raises(InputError, match="4294967295 x 4294967295 x 4294967295"):
        parse(content)


# Folders


def write_idx(folder, arrays, suffix=".gz", names=IDX_NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, arrays, strict=True):
        content = idx_bytes(array)
        file = folder / f"{name}{suffix}"
        file.write_bytes(gzip.compress(content) if suffix == ".gz" else content)


def write_npz(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **dict(zip(NPZ_KEYS, arrays, strict=True)))


def write_cache(name, arrays):
    write_npz(cache_dir() / f"{name}.npz", arrays)


@pytest.mark.parametrize("form", ["gz", "idx", "npz", "npz file", "subfolder"])
def test_a_folder_may_have_each_kind_of_file(tmp_path, form):
    arrays = tiny_arrays()
    place = tmp_path
    if form in ("gz", "idx"):
        write_idx(tmp_path, arrays, ".gz" if form == "gz" else "")
    elif form == "subfolder":
        write_idx(tmp_path / "local", arrays)
    else:
        write_npz(tmp_path / "mnist.npz", arrays)
        place = tmp_path / "mnist.npz" if form == "npz file" else tmp_path
    dataset = data.load("local", place)
    for array, expected in zip((*dataset.train, *dataset.test), arrays, strict=True):
        np.testing.assert_array_equal(array, expected)
    assert dataset.class_names == ("0", "1", "2")


def test_idx_files_come_before_an_npz_file(tmp_path):
    write_idx(tmp_path, tiny_arrays())
    write_npz(tmp_path / "mnist.npz", tiny_arrays(train=50))
    assert len(data.load("local", tmp_path).train.labels) == 40
    (tmp_path / f"{IDX_NAMES[1]}.gz").unlink()
    with pytest.raises(InputError, match=f"has no {IDX_NAMES[1]}"):
        data.load("local", tmp_path)


def test_the_environment_variable_names_a_folder(tmp_path, monkeypatch):
    write_idx(tmp_path, tiny_arrays())
    monkeypatch.setenv("MNIST_JAX_DATA", str(tmp_path))
    assert data.load("local").name == "local"


def test_the_mnist_folder_in_the_environment_is_not_used_for_other_datasets(tmp_path, monkeypatch):
    write_idx(tmp_path, tiny_arrays())
    monkeypatch.setenv("MNIST_JAX_DATA", str(tmp_path))
    write_cache("kmnist", tiny_arrays())
    assert data.load("kmnist").name == "kmnist"  # from the cache
    write_idx(tmp_path / "emnist" / "digits", tiny_arrays()[:2], names=["other", "another"])
    with pytest.raises(InputError, match="has no emnist-digits-train-images"):
        data.load("emnist/digits")


def test_official_mnist_is_read_from_each_kind_of_file(mnist_dir, mnist, tmp_path):
    arrays = (*mnist.train, *mnist.test)
    write_idx(tmp_path / "plain", arrays, "")
    write_idx(tmp_path / "packed_again", arrays, ".gz")
    write_npz(tmp_path / "mnist.npz", arrays)
    for place in (tmp_path / "plain", tmp_path / "packed_again", tmp_path / "mnist.npz"):
        again = data.load("mnist", place)
        np.testing.assert_array_equal(again.train.images, mnist.train.images)
        np.testing.assert_array_equal(again.test.labels, mnist.test.labels)


def break_file(folder, how):
    """Damages a good folder, and returns what the message must contain."""
    images, labels = folder / f"{IDX_NAMES[0]}.gz", folder / f"{IDX_NAMES[1]}.gz"
    _, y_train, x_test, _ = tiny_arrays()
    if how == "missing":
        labels.unlink()
        return f"has no {IDX_NAMES[1]}"
    if how == "truncated gzip":
        images.write_bytes(images.read_bytes()[:-20])
        return "truncated or damaged"
    if how == "not gzip":
        images.write_bytes(b"hello")
        return "truncated or damaged"
    if how == "bytes after the end":
        images.write_bytes(images.read_bytes() + b"hello")
        return "truncated or damaged"
    if how == "flipped bit":
        content = bytearray(images.read_bytes())
        content[len(content) // 2] ^= 4
        images.write_bytes(bytes(content))
        return "truncated or damaged"
    if how == "wrong header":
        content = bytearray(idx_bytes(tiny_arrays()[0]))
        content[7] += 1
        images.write_bytes(gzip.compress(bytes(content)))
        return "does not fit its header: 41 x 3 x 2"
    if how == "no header":
        images.write_bytes(gzip.compress(b"not an IDX file"))
        return "is not an IDX file"
    if how == "fewer labels":
        labels.write_bytes(gzip.compress(idx_bytes(y_train[:-1])))
        return "training images are uint8 (40, 3, 2), its labels (39,)"
    if how == "labels for images":
        images.write_bytes(gzip.compress(idx_bytes(y_train)))
        return "expected uint8 (n, height, width)"
    if how == "test label out of range":
        write_idx(folder, (x_test[:0], y_train[:0] + 7), names=IDX_NAMES[2:])
        (folder / f"{IDX_NAMES[2]}.gz").write_bytes(gzip.compress(idx_bytes(x_test[:1])))
        (folder / f"{IDX_NAMES[3]}.gz").write_bytes(gzip.compress(idx_bytes(y_train[:1] + 7)))
        return "labels are uint8 from 7 to 7; expected whole numbers from 0 to 2"
    if how == "no images":
        write_idx(folder, (x_test[:0], y_train[:0]), names=IDX_NAMES[:2])
        return "training images are uint8 (0, 3, 2)"
    if how == "other size":
        (folder / f"{IDX_NAMES[2]}.gz").write_bytes(gzip.compress(idx_bytes(x_test[:, :2])))
        return "test images of (2, 2)"
    raise AssertionError(how)


@pytest.mark.parametrize(
    "how",
    [
        "missing",
        "truncated gzip",
        "not gzip",
        "bytes after the end",
        "flipped bit",
        "wrong header",
        "no header",
        "fewer labels",
        "labels for images",
        "test label out of range",
        "no images",
        "other size",
    ],
)
def test_a_damaged_folder_is_rejected_in_one_line(tmp_path, how):
    write_idx(tmp_path, tiny_arrays())
    expected = break_file(tmp_path, how)
    with pytest.raises(InputError) as caught:
        data.load("local", tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_mnist_are_rejected_as_mnist(tmp_path, mnist):
    x_train, y_train, x_test, y_test = *mnist.train, *mnist.test
    altered = y_train.copy()
    altered[4711] = (altered[4711] + 1) % 10
    write_idx(tmp_path, (x_train, altered, x_test, y_test))
    with pytest.raises(InputError, match="train-labels-idx1-ubyte is not MNIST's: its SHA-256"):
        data.load("mnist", tmp_path)
    assert data.load("local", tmp_path).name == "local"


def test_a_label_out_of_range_is_reported_before_the_checksum(tmp_path):
    x_train, y_train, x_test, y_test = tiny_arrays()
    write_idx(tmp_path, (x_train, y_train + 9, x_test, y_test))
    with pytest.raises(InputError, match=r"labels are uint8 from 9 to 11; expected .* 0 to 9"):
        data.load("mnist", tmp_path)


def test_fashion_mnist_is_not_mistaken_for_mnist(mnist_dir):
    with pytest.raises(InputError, match="does not hold fashion_mnist"):
        data.load("fashion_mnist", mnist_dir)


def test_no_more_than_the_limit_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 10**6)
    write_idx(tmp_path, (np.zeros((100, 1000, 1000), np.uint8), *tiny_arrays()[1:]))
    tracemalloc.start()
    with pytest.raises(InputError, match="unpacks to more than 1000000 bytes"):
        data.load("local", tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 5 * 10**6
    tracemalloc.stop()


def test_a_file_of_the_size_of_the_limit_is_read(tmp_path, monkeypatch):
    write_idx(tmp_path, tiny_arrays())
    size = len(idx_bytes(tiny_arrays()[0]))
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", size)
    assert data.load("local", tmp_path).name == "local"
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", size - 1)
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz .* unpacks to more than"):
        data.load("local", tmp_path)


def test_pipes_and_devices_are_not_read(tmp_path):
    """Reading them would never end."""
    write_idx(tmp_path, tiny_arrays(), "")
    (tmp_path / IDX_NAMES[3]).unlink()
    os.mkfifo(tmp_path / IDX_NAMES[3])
    with pytest.raises(InputError, match="has no t10k-labels"):
        data.load("local", tmp_path)
    for place in (tmp_path / IDX_NAMES[3], "/dev/zero"):
        with pytest.raises(InputError, match=r"data folder .* does not exist"):
            data.load("local", place)


@pytest.mark.parametrize("place", ["a" * 300, "a\0b", "a/" * 3000])
def test_an_impossible_path_is_reported_in_one_line(place):
    with pytest.raises(InputError, match="check --data-dir or MNIST_JAX_DATA"):
        data.load("local", place)


@pytest.mark.parametrize(
    "content", ["pickle", "text", "npy", "missing key", "not npy", "truncated", "encrypted"]
)
def test_a_bad_npz_file_is_rejected(tmp_path, content):
    file = tmp_path / "mnist.npz"
    arrays = dict(zip(NPZ_KEYS, tiny_arrays(), strict=True))
    if content == "pickle":
        arrays["y_test"] = np.array([print], object)
    if content == "missing key":
        del arrays["y_test"]
    np.savez(file, **arrays)
    if content == "text":
        file.write_text("hello")
    if content == "npy":
        with file.open("wb") as stream:
            np.save(stream, arrays["x_train"])
    if content == "not npy":
        with zipfile.ZipFile(file, "w") as archive:
            for key in NPZ_KEYS:
                archive.writestr(key, "hello")
    if content == "encrypted":
        declare(file, 6, 1, 2)
    if content == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    expected = "images are .S5" if content == "not npy" else "mnist.npz is not an npz file"
    with pytest.raises(InputError, match=expected):
        data.load("local", tmp_path)


def npy(header: str, content: bytes = b"") -> bytes:
    """An npy file, written by hand after the description of the format."""
    packed = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(packed)) + packed + content


def write_archive(file, **options):
    """Writes an npz file."""
    with zipfile.ZipFile(file, "w", **options) as archive:
        for key, array in zip(NPZ_KEYS, tiny_arrays(), strict=True):
            stream = io.BytesIO()
            np.save(stream, array)
            archive.writestr(f"{key}.npy", stream.getvalue())


def declare(file, place, value, width):
    """Changes a field in both headers of an npz file's first member; places as in APPNOTE.TXT."""
    content = bytearray(file.read_bytes())
    for header in (
        0,
        content.index(b"PK\1\2") + 2,
    ):  # the second has a field more
        at = header + place
        content[at : at + width] = value.to_bytes(width, "little")
    file.write_bytes(content)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999999,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 28, 28)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '|V2147483647', 'fortran_order': False, 'shape': (99999,)}",
        "{'descr': " + 4000 * "(" + "}",
        4000 * "-" + "1",
        "x" * 60000,
        "print('code')",
    ],
)
def test_an_npy_header_with_an_absurd_array_is_rejected(tmp_path, header, capfd):
    file = tmp_path / "mnist.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for key in NPZ_KEYS:
            archive.writestr(f"{key}.npy", npy(header, b"cos\nsystem\n(S'echo code'\ntR."))
    with pytest.raises(InputError, match=r"mnist.npz is not an npz file"):
        data.load("local", file)
    assert capfd.readouterr() == ("", "")


def test_no_more_of_an_archive_is_unpacked_than_it_declares(tmp_path):
    file = tmp_path / "mnist.npz"
    bomb = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (100,)}", bytes(10**8))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in NPZ_KEYS:
            archive.writestr(f"{key}.npy", bomb)
    declare(file, 22, 200, 4)
    tracemalloc.start()
    with pytest.raises(InputError, match="is not an npz file"):
        data.load("local", file)
    assert tracemalloc.get_traced_memory()[1] < 5 * 10**6
    tracemalloc.stop()


def test_an_archive_that_declares_too_much_is_not_unpacked(tmp_path, monkeypatch):
    file = tmp_path / "mnist.npz"
    write_archive(file, compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 800)  # less than all, more than any
    with pytest.raises(InputError, match=r"is not an npz file .* with at most 800 bytes"):
        data.load("local", file)


@pytest.mark.parametrize("form", ["gz", "npz", "packed npz"])
def test_random_damage_is_rejected_in_one_line_or_changes_nothing(tmp_path, form, capfd):
    random = np.random.default_rng(0)
    if form == "gz":
        write_idx(tmp_path, tiny_arrays())
        file = tmp_path / f"{IDX_NAMES[0]}.gz"
    else:
        file = tmp_path / "mnist.npz"
        write_archive(file, compression=zipfile.ZIP_DEFLATED if form == "packed npz" else 0)
    good = file.read_bytes()
    for _ in range(300):
        damaged = bytearray(good[: random.integers(len(good)) if random.random() < 0.3 else None])
        for place in random.integers(0, max(1, len(damaged)), min(len(damaged), 3)):
            damaged[place] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        try:
            dataset = data.load("local", tmp_path)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            np.testing.assert_array_equal(dataset.train.images, tiny_arrays()[0])
    assert capfd.readouterr() == ("", "")


def test_images_that_are_not_bytes_are_rejected(tmp_path):
    x_train, *other_arrays = tiny_arrays()
    write_npz(tmp_path / "mnist.npz", (x_train / 255, *other_arrays))
    with pytest.raises(InputError, match=r"training images are float64 .* expected uint8"):
        data.load("local", tmp_path)


@pytest.mark.parametrize("labels", [np.int64([-1, 0]), np.float32([0.5, 1.0])])
def test_labels_that_are_not_class_numbers_are_rejected(tmp_path, labels):
    x_train, y_train, x_test, _ = tiny_arrays()
    arrays = x_train, y_train, x_test[:2], labels
    write_npz(tmp_path / "mnist.npz", arrays)
    with pytest.raises(InputError, match="expected whole numbers from 0 to 2"):
        data.load("local", tmp_path)


@pytest.mark.parametrize(
    "labels", [np.int64([0, 300]), np.uint32([0, 2**32 - 1]), np.float32([0, np.nan])]
)
def test_labels_above_255_are_rejected(tmp_path, labels):
    x_train, _, x_test, y_test = tiny_arrays()
    arrays = (x_train[:2], labels, x_test, y_test)
    write_npz(tmp_path / "mnist.npz", arrays)
    with pytest.raises(InputError, match="expected whole numbers from 0 to 255"):
        data.load("local", tmp_path)


def test_labels_of_other_integer_types_are_accepted(tmp_path):
    x_train, y_train, x_test, y_test = tiny_arrays()
    arrays = (x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int32))
    write_npz(tmp_path / "mnist.npz", arrays)
    dataset = data.load("local", tmp_path)
    assert dataset.train.labels.dtype == dataset.test.labels.dtype == np.uint8


def test_a_missing_or_empty_folder_is_rejected(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        data.load("mnist", tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no train-images"):
        data.load("mnist", tmp_path)


def test_emnist_images_are_upright_and_labels_start_at_zero(tmp_path, capsys):
    x_train, y_train, x_test, y_test = tiny_arrays()
    names = [f"emnist-letters-{name.replace('t10k', 'test')}" for name in IDX_NAMES]
    write_idx(tmp_path, (x_train, y_train + 1, x_test, y_test + 1), names=names)
    dataset = data.load("emnist/letters", tmp_path)
    assert dataset.train.images.shape == (40, 2, 3)
    np.testing.assert_array_equal(dataset.train.images[5], x_train[5].T)
    np.testing.assert_array_equal(dataset.test.labels, y_test)
    assert dataset.class_names[:3] == ("A", "B", "C")
    assert "no checksums are known" in capsys.readouterr().err
    write_idx(tmp_path, (y_train + 1, y_train + 1, x_test, y_test + 1), names=names)
    with pytest.raises(InputError, match=r"training images are uint8 \(40,\)"):
        data.load("emnist/letters", tmp_path)


# Images that stay on disk


@pytest.fixture
def image_file(tmp_path):
    """A file of ten images, and what they are."""
    array = tiny_arrays(train=10)[0]
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(array))
    return path, array


limits = st.none() | st.integers(-12, 12)
slices = st.builds(slice, limits, limits, st.none() | st.integers(-3, 3).filter(bool))


@given(st.lists(slices, max_size=3), limits, limits)
def test_any_part_of_a_map_is_read_as_from_an_array(tmp_path_factory, parts, start, stop):
    array = tiny_arrays(train=10)[0]
    path = tmp_path_factory.mktemp("images") / "images"
    path.write_bytes(idx_bytes(array))
    images = np.memmap(path, np.uint8, "r", 16, array.shape)
    for part in parts:
        array, images = array[part], images[part]
    start, stop, _ = slice(start, stop).indices(len(array))
    images = files.read_images(images, start, stop)
    assert type(images) is np.ndarray
    np.testing.assert_array_equal(images, array[start:stop])


def test_a_map_is_read_from_its_file_even_from_another_folder(image_file, monkeypatch):
    path, array = image_file
    monkeypatch.chdir(path.parent)
    images = np.memmap(Path(path.name), np.uint8, "r", 16, array.shape)
    monkeypatch.chdir("/")
    part = files.read_images(images, 2, 7)
    assert not np.may_share_memory(part, images)
    np.testing.assert_array_equal(part, array[2:7])


def test_arrays_in_memory_are_not_copied(image_file):
    path, array = image_file
    changed = np.memmap(path, np.uint8, "c", 16, array.shape)  # its changes are only in memory
    changed[4] ^= 1
    for images in (array, changed):
        part = files.read_images(images, 2, 7)
        assert np.may_share_memory(part, images)
        np.testing.assert_array_equal(part, images[2:7])


@pytest.mark.parametrize("problem", ["shorter", "gone"])
def test_a_mapped_file_that_is_gone_or_shorter_is_reported(image_file, problem):
    path, array = image_file
    images = np.memmap(path, np.uint8, "r", 16, array.shape)
    if problem == "shorter":
        os.truncate(path, 50)
    else:
        path.unlink()
    expected = "has become shorter" if problem == "shorter" else "No such file"
    with pytest.raises((InputError, OSError), match=expected) as caught:
        files.read_images(images, 2, 7)
    assert str(path) in str(caught.value)


@pytest.fixture
def large_folder(tmp_path, digits, monkeypatch):
    """A folder with the digits, whose training images count as large."""
    write_idx(tmp_path / "large", (*digits.train, *digits.test), "")
    monkeypatch.setattr(files, "STAYS_ON_DISK", 1437 * 64)  # less than the file with its header
    return tmp_path / "large"


def test_a_large_file_is_mapped_and_has_its_checksum(large_folder, digits):
    large = data.load("local", large_folder)
    assert isinstance(large.train.images, np.memmap)
    assert type(large.test.images) is np.ndarray
    assert large.sha256 == digits.sha256
    training, validation = data.train_val_split(large.train, 100)
    assert isinstance(training.images, np.memmap)
    np.testing.assert_array_equal(training.images, digits.train.images[:-100])
    assert type(validation.images) is np.ndarray
    assert not np.may_share_memory(validation.images, large.train.images)
    np.testing.assert_array_equal(validation.images, digits.train.images[-100:])


def test_a_large_gzipped_file_is_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "STAYS_ON_DISK", 10)
    write_idx(tmp_path, tiny_arrays(), ".gz")
    assert type(data.load("local", tmp_path).train.images) is np.ndarray


def test_a_large_file_of_a_known_dataset_is_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "STAYS_ON_DISK", 10)
    names = [f"emnist-digits-{name.replace('t10k', 'test')}" for name in IDX_NAMES]
    write_idx(tmp_path, tiny_arrays(), "", names)
    images = data.load("emnist/digits", tmp_path).train.images
    np.testing.assert_array_equal(images, tiny_arrays()[0].transpose(0, 2, 1))
