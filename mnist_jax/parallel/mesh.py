"""The mesh of devices, and where networks, batches and data are placed on it."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from mnist_jax.errors import InputError, unusable

PyTree = Any

MeshShape = tuple[int, int]
"""How many devices the networks are sharded over, and how many each batch."""

AXES = ("networks", "images")

SHARDS_BOTH_AXES = jax.__version_info__ >= (0, 8)
"""JAX 0.7 cannot shard both the networks and their batches."""

USABLE_MEMORY = 0.75
"""Fraction of the free memory that networks may take; the rest is for the compiler and the host."""


def parse_mesh_shape(text: str | None) -> MeshShape | None:
    """The mesh shape that `text` spells, such as 4x2.

    Raises:
        InputError: `text` is not a mesh shape.
    """
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise unusable("--mesh", text, "two numbers of devices, such as 4x2")
    return int(parts[0]), int(parts[1])


def mesh_shape(
    networks: int, batch_size: int, requested: MeshShape | None = None, padded: bool = False
) -> MeshShape:
    """The shape of the mesh for this many networks.

    Without `requested`, the networks are sharded over as many devices as possible, which needs no
    communication, and the batches over the rest. If the networks are `padded` with copies, any
    number of them can be sharded.

    Raises:
        InputError: the devices, the networks or the batches cannot be divided as requested.
    """
    if requested is None:
        return _largest_shape(networks, batch_size, padded)
    count = jax.device_count()
    across, within = requested
    problem = None
    if jax.process_count() > 1 and across * within != count:
        problem = f"all {count} devices of these processes"
    elif across * within > count:
        problem = f"at most the {count} device{'s' if count > 1 else ''} here"
    elif min(requested) > 1 and not SHARDS_BOTH_AXES:
        problem = "a 1 on one side with this version of JAX; 0.8 can divide both"
    elif networks % across and not padded:
        problem = f"first a number that divides the {networks} networks"
    elif batch_size % within:
        problem = f"last a number that divides --batch-size {batch_size}"
    if problem:
        raise unusable("--mesh", mesh_name(requested), problem)
    return requested


def _largest_shape(networks: int, batch_size: int, padded: bool) -> MeshShape:
    count = jax.device_count()
    across = count if padded and networks > count else math.gcd(networks, count)
    within = math.gcd(batch_size, count // across) if SHARDS_BOTH_AXES or across == 1 else 1
    if jax.process_count() == 1 or across * within == count:
        return across, within
    if padded:
        return count, 1
    raise InputError(
        f"{networks} networks and --batch-size {batch_size} cannot be divided among all {count} "
        f"devices of these processes; choose multiples of {count}"
    )


def mesh_name(shape: MeshShape) -> str:
    """`shape` as on the command line, such as 4x2."""
    return f"{shape[0]}x{shape[1]}"


def use_mesh(shape: MeshShape) -> AbstractContextManager[Any]:
    """Makes the functions of `population` compute on a mesh of `shape`; one device needs none."""
    return nullcontext() if shape == (1, 1) else jax.set_mesh(_make_mesh(shape))


def _make_mesh(shape: MeshShape) -> Mesh:
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, AXES, devices=devices, axis_types=(AxisType.Auto,) * 2)


def axis_size(name: str) -> int:
    """How many devices share this axis of the mesh that `use_mesh` has set; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(name, 1)


def sharding(*axes: str) -> NamedSharding | None:
    """The sharding of leading array axes over these mesh axes; None without a mesh.

    Arrays are replicated over the other axes of the mesh, which `use_mesh` sets for this thread.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if not sizes:
        return None
    # Compiled programs drop the name of an axis of length 1.
    spec = jax.P(*(axis for axis in axes if sizes[axis] > 1))
    return NamedSharding(_make_mesh((sizes["networks"], sizes["images"])), spec)


def put(tree: PyTree, sharding: NamedSharding | None) -> PyTree:
    """`tree`, which all processes pass, on the devices; without a sharding, on the first one."""
    if sharding is None or jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put_leaf(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf  # computed on all processes already
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put_leaf, tree)


def shard(tree: PyTree) -> PyTree:
    """`tree` on the devices, its leaves sharded along their leading axis of networks."""
    return put(tree, sharding("networks"))


def sharded_shapes(tree: PyTree) -> PyTree:
    """The shapes of `tree`, with the shardings that `shard` gives its arrays."""
    networks = sharding("networks")
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=networks), tree
    )


def replicate(tree: PyTree) -> PyTree:
    """`tree` on every device."""
    return put(tree, sharding())


def gather_to_host(tree: PyTree) -> PyTree:
    """`tree` copied into NumPy arrays, complete in every process."""
    return jax.tree.map(np.array, multihost_utils.process_allgather(tree, tiled=True))


def free_bytes() -> int:
    """How many bytes networks may take on each device."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(USABLE_MEMORY * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    return int(USABLE_MEMORY * psutil.virtual_memory().available / jax.local_device_count())
