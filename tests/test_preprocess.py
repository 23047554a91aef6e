import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mnist_jax.preprocess import flatten, one_hot, scale, standardize, to_inputs

images_of_any_size = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9))


@given(images_of_any_size)
def test_inputs_are_the_pixels_row_by_row_over_255(images):
    inputs = np.asarray(to_inputs(jnp.asarray(images)))
    assert inputs.dtype == np.float32
    assert inputs.min() >= 0
    assert inputs.max() <= 1
    expected = [[float(pixel) / 255 for row in image for pixel in row] for image in images.tolist()]
    np.testing.assert_allclose(inputs, expected, rtol=1e-6)


@given(images_of_any_size)
def test_scale_and_flatten_agree_on_host_and_device(images):
    np.testing.assert_allclose(scale(images), scale(jnp.asarray(images)), rtol=1e-6)
    np.testing.assert_array_equal(flatten(images), flatten(jnp.asarray(images)))


def test_standardize_gives_zero_mean_and_unit_variance():
    inputs = np.random.default_rng(1).normal(3, 5, (1000, 7)).astype(np.float32)
    result = np.asarray(standardize(inputs, inputs.mean(0), inputs.std(0)))
    np.testing.assert_allclose(result.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(0), 1, atol=1e-5)


def test_standardize_leaves_a_constant_pixel_at_zero():
    inputs = np.full((4, 2), 0.5, np.float32)
    result = standardize(inputs, inputs.mean(0), inputs.std(0))
    np.testing.assert_array_equal(result, 0)


def test_standardize_takes_numbers():
    np.testing.assert_allclose(standardize(np.float32([[1, 3]]), 2.0, 0.5), [[-2, 2]])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_one_hot_is_a_row_of_the_identity(labels):
    np.testing.assert_array_equal(one_hot(jnp.asarray(labels), 10), np.eye(10)[labels])
