"""A run's random numbers: JAX's Threefry, made faster on CPUs.

On CPUs JAX runs the rounds of Threefry as a loop over arrays, and spends a 64-bit hash on each draw
of 8 or 16 bits. Here the rounds are unrolled, so XLA computes them in one pass, and one hash gives
eight draws of 8 bits or four of 16. Keys and draws of 32 and 64 bits equal JAX's bit for bit.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl
from jaxtyping import Array, Key, UInt, UInt32

Words = UInt32[Array, "*shape"]

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)


def threefry(key: UInt32[Array, "2"], x0: Words, x1: Words) -> tuple[Words, Words]:
    """Threefry-2x32 in 20 rounds: hashes each pair of counters with the key.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for turn in range(20):
        distance = ROTATIONS[turn % 8]
        x0 = x0 + x1
        x1 = ((x1 << distance) | (x1 >> (32 - distance))) ^ x0
        if turn % 4 == 3:
            n = turn // 4 + 1
            x0, x1 = x0 + keys[n % 3], x1 + keys[(n + 1) % 3] + jnp.uint32(n)
    return x0, x1


def _seed(seed: Array) -> UInt32[Array, "2"]:
    return jnp.stack([jnp.uint32(0), seed.astype(jnp.uint32)])


def _fold_in(key: UInt32[Array, "2"], number: int | Array) -> UInt32[Array, "2"]:
    return jnp.stack(threefry(key, jnp.uint32(0), jnp.uint32(number)))


def _hashes(key: UInt32[Array, "2"], count: int) -> tuple[Words, Words]:
    counters = jax.lax.iota(jnp.uint32, count)
    return threefry(key, jnp.zeros_like(counters), counters)


def _split(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> UInt32[Array, "*shape 2"]:
    return jnp.stack(_hashes(key, math.prod(shape)), axis=-1).reshape(*shape, 2)


def _random_bits(
    key: UInt32[Array, "2"], bit_width: int, shape: tuple[int, ...]
) -> UInt[Array, "*shape"]:
    size = math.prod(shape)
    if bit_width == 64:
        x0, x1 = _hashes(key, size)
        return ((x0.astype(jnp.uint64) << 32) | x1).reshape(shape)
    if bit_width == 32:
        x0, x1 = _hashes(key, size)
        return jax.lax.optimization_barrier(x0 ^ x1).reshape(shape)
    # Without the barrier XLA would compute the hash again for every part of a word.
    words = jax.lax.optimization_barrier(jnp.stack(_hashes(key, -(-size * bit_width // 64))))
    parts = jnp.stack([words >> low for low in range(0, 32, bit_width)])
    return parts.astype(f"uint{bit_width}").reshape(-1)[:size].reshape(shape)


_THREEFRY = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="mnist_jax_threefry",
    tag="mnist_jax",
)


def key(seed: int | Array) -> Key[Array, ""]:
    """The key of a seed (0 to 2**32 - 1). All of `jax.random` takes it, except `poisson`."""
    return jax.random.key(seed, impl=_THREEFRY)
