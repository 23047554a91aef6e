import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mnist_jax import data
from mnist_jax.data import DataSpec, download, registry
from mnist_jax.errors import InputError
from tests.conftest import idx_bytes, tiny_arrays


def test_mnist_is_complete_and_in_the_official_order(mnist):
    assert mnist.train.images.shape == (60_000, 28, 28)
    assert mnist.test.images.shape == (10_000, 28, 28)
    assert mnist.train.images.dtype == mnist.train.labels.dtype == np.uint8
    assert mnist.train.labels[:4].tolist() == [5, 0, 4, 1]  # as every tutorial shows
    # Class counts as LeCun's page and every survey give them.
    train_counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test_counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(mnist.train.labels).tolist() == train_counts
    assert np.bincount(mnist.test.labels).tolist() == test_counts
    np.testing.assert_allclose(mnist.train.images.mean() / 255, 0.1307, atol=5e-5)
    np.testing.assert_allclose(mnist.train.images.std() / 255, 0.3081, atol=5e-5)


def test_digits_are_those_of_scikit_learn(digits):
    assert digits.train.images.shape == (1437, 8, 8)
    assert digits.test.images.shape == (360, 8, 8)
    assert digits.train.labels[:4].tolist() == [0, 1, 2, 3]
    assert digits.train.images.max() == 255
    assert (np.bincount(digits.test.labels) > 20).all()
    bunch = load_digits()
    np.testing.assert_array_equal(digits.test.labels, bunch.target[-360:])
    np.testing.assert_allclose(digits.test.images / 255, bunch.images[-360:] / 16, atol=0.002)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="--dataset cifar10 is unknown; choose one of auto, mnist"):
        data.load("cifar10")


def test_local_needs_a_folder():
    with pytest.raises(InputError, match="--dataset local needs --data-dir"):
        data.load("local")


@pytest.fixture
def offline(monkeypatch):
    def unreachable(name):
        raise data.DataUnavailable(f"{name} could not be downloaded")

    monkeypatch.setattr(download, "fetch", unreachable)


def test_auto_falls_back_with_a_loud_warning(offline, capsys):
    assert data.load("auto").name == "digits"
    warning = " ".join(capsys.readouterr().err.split())
    assert "MNIST IS NOT HERE" in warning
    assert "could not be downloaded" in warning


def test_mnist_by_name_never_falls_back(offline):
    with pytest.raises(data.DataUnavailable):
        data.load("mnist")


def test_auto_does_not_fall_back_if_a_folder_is_given(offline, tmp_path):
    with pytest.raises(InputError, match="has no train-images"):
        data.load("auto", tmp_path)


def test_the_last_images_are_held_out_for_validation():
    x, y, _, _ = tiny_arrays()
    training, validation = data.train_val_split(data.Examples(x, y), 15)
    np.testing.assert_array_equal(training.images, x[:25])
    np.testing.assert_array_equal(validation.labels, y[25:])
    training, validation = data.train_val_split(data.Examples(x, y), 0)
    assert (len(training.labels), len(validation.labels)) == (40, 0)
    with pytest.raises(InputError, match="--validation-images 40"):
        data.train_val_split(data.Examples(x, y), 40)


def test_the_checksum_is_that_of_the_idx_file():
    for array in tiny_arrays():
        assert registry.sha256_as_idx(array) == hashlib.sha256(idx_bytes(array)).hexdigest()


def test_the_spec_of_the_data_gives_pixels_and_steps():
    spec = DataSpec(image_shape=(3, 2), classes=3, train_images=40)
    assert spec.pixels == 6
    assert [spec.steps_per_epoch(batch_size) for batch_size in (1, 7, 20, 40)] == [40, 5, 2, 1]
    with pytest.raises(InputError, match=r"--batch-size 64 cannot be used: .* the 40 training im"):
        spec.steps_per_epoch(64)
