import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from mnist_jax import prng

SEEDS = (0, 1, 7, 2**31, 2**32 - 1)


@pytest.mark.parametrize(
    ("key", "counters", "hashes"),
    [  # The known answers that Random123, the authors' own library, is tested with.
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_known_answers(key, counters, hashes):
    actual = prng.threefry(jnp.array(key, jnp.uint32), *map(jnp.uint32, counters))
    assert tuple(map(int, actual)) == hashes


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "draw",
    [
        jax.random.key_data,
        lambda key: jax.random.key_data(jax.random.fold_in(key, 9)),
        lambda key: jax.random.key_data(jax.random.split(key, (3, 5))),
        lambda key: jax.random.bits(key, (7, 3)),
        lambda key: jax.random.uniform(key, (11,)),
        lambda key: jax.random.truncated_normal(key, -2.0, 2.0, (5, 4)),
        lambda key: jax.random.permutation(key, 100),
    ],
    ids=["seed", "fold_in", "split", "bits", "uniform", "truncated_normal", "permutation"],
)
def test_keys_and_draws_of_32_bits_are_those_of_jax(seed, draw):
    ours, theirs = draw(prng.key(seed)), draw(jax.random.key(np.uint32(seed)))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (7, 9), (4, 0)])
@pytest.mark.parametrize("dtype", [jnp.uint16, jnp.uint8])
def test_each_part_of_a_hash_is_drawn_once(dtype, shape):
    bits = jax.random.bits(prng.key(3), shape, dtype)
    assert (bits.shape, bits.dtype) == (shape, dtype)
    parts = 4 // bits.dtype.itemsize
    hashes = -(-bits.size // (2 * parts))
    counters = jnp.concatenate([jnp.zeros(hashes, jnp.uint32), jnp.arange(hashes, dtype="uint32")])
    words = np.asarray(threefry_2x32(jax.random.key_data(jax.random.key(3)), counters))
    low_to_high = words.astype("<u4").view(dtype).reshape(-1, parts)
    np.testing.assert_array_equal(bits.reshape(-1), low_to_high.T.reshape(-1)[: bits.size])


def test_many_seeds_at_once_draw_what_each_draws_alone():
    together = jax.vmap(lambda seed: jax.random.bits(prng.key(seed), (6,), jnp.uint16))
    for seed, bits in zip(SEEDS, together(jnp.array(SEEDS, jnp.uint32)), strict=True):
        np.testing.assert_array_equal(bits, jax.random.bits(prng.key(seed), (6,), jnp.uint16))


def test_draws_of_64_bits_are_those_of_jax():
    with jax.enable_x64(True):
        ours, theirs = (
            jax.random.normal(key, (3, 5), jnp.float64) for key in (prng.key(7), jax.random.key(7))
        )
        assert ours.dtype == jnp.float64
        np.testing.assert_array_equal(ours, theirs)
