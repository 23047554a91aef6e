"""The mesh of devices, and where states and data are placed on it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from mnist_jax.config import InputError, Shape, unusable

PyTree = Any

BOTH_AXES = jax.__version_info__ >= (0, 8)
"""Whether JAX divides batches of networks that are divided; 0.7 refuses their sharding."""

SHARE = 0.75
"""Of the free memory that networks may take; the rest is for the compiler and the host."""


def mesh_shape(
    networks: int, batch_size: int, asked: Shape | None = None, filled: bool = False
) -> Shape:
    """The shape of the mesh for a population.

    Without `asked`, networks are divided as far as they can be, as that takes no communication, and
    batches among the devices that are left. Where networks are `filled` up with others, any number
    of them can be divided.

    Raises:
        InputError: the devices, the networks or the batches cannot be divided as asked.
    """
    count = jax.device_count()
    together = jax.process_count() > 1
    if asked is None:
        across = count if filled and networks > count else math.gcd(networks, count)
        within = math.gcd(batch_size, count // across) if BOTH_AXES or across == 1 else 1
        if together and across * within < count:
            if filled:
                return count, 1
            raise InputError(
                f"{networks} networks and --batch-size {batch_size} cannot be divided among all "
                f"{count} devices of these processes; choose multiples of {count}"
            )
        return across, within
    across, within = asked
    problem = None
    if together and across * within != count:
        problem = f"all {count} devices of these processes"
    elif across * within > count:
        problem = f"at most the {count} device{'s' * (count > 1)} here"
    elif min(asked) > 1 and not BOTH_AXES:
        problem = "a 1 on one side with this version of JAX; 0.8 can divide both"
    elif networks % across and not filled:
        problem = f"first a number that divides the {networks} networks"
    elif batch_size % within:
        problem = f"last a number that divides --batch-size {batch_size}"
    if problem:
        raise unusable("--mesh", f"{across}x{within}", problem)
    return asked


def in_words(shape: Shape) -> dict[str, str]:
    """What a run's record says of its mesh; nothing where one device computes all."""
    return {} if shape == (1, 1) else {"mesh": f"{shape[0]}x{shape[1]}"}


@contextmanager
def mesh(shape: Shape) -> Iterator[None]:
    """Has the functions of `population` compute on a mesh of `shape`; one device needs none."""
    if shape == (1, 1):
        yield
        return
    with jax.set_mesh(_mesh(shape)):
        yield


def _mesh(shape: Shape) -> Mesh:
    some = jax.devices()[: math.prod(shape)]
    axes = ("networks", "images")
    return jax.make_mesh(shape, axes, devices=some, axis_types=(AxisType.Auto,) * 2)


def divide(tree: PyTree) -> PyTree:
    """`tree`, whose leaves have an axis of networks first, each part where its networks are."""
    return put(tree, _of_networks())


def divided_shapes(tree: PyTree) -> PyTree:
    """The shapes of `tree`, as those of the arrays that `divide` gives."""
    place = _of_networks()
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
    )


def share(tree: PyTree) -> PyTree:
    """`tree` on every device, whole."""
    return put(tree, everywhere())


def everywhere() -> NamedSharding | None:
    """Where `share` puts a tree; None is the only device."""
    return _place(jax.P())


def _of_networks() -> NamedSharding | None:
    # Of an axis of length 1 compiled programs forget the name.
    across = jax.sharding.get_abstract_mesh().shape.get("networks", 1)
    return _place(jax.P("networks") if across > 1 else jax.P())


def _place(spec: jax.sharding.PartitionSpec) -> NamedSharding | None:
    sizes = jax.sharding.get_abstract_mesh().shape
    return NamedSharding(_mesh((sizes["networks"], sizes["images"])), spec) if sizes else None


def put(tree: PyTree, place: NamedSharding | None) -> PyTree:
    """`tree` at `place`; None is the only device."""
    if place is None or jax.process_count() == 1:
        return jax.device_put(tree, place) if jax.tree.leaves(tree) else tree

    def put_one(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf  # computed where it belongs
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, place, lambda part: host[part])

    return jax.tree.map(put_one, tree)


def to_host(tree: PyTree) -> PyTree:
    """`tree` as NumPy's arrays, whole, and nobody else's, in every process.

    Of several processes, every device has a whole array, of all networks, in turn.
    """
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(np.array, jax.device_get(tree))


def free_bytes() -> int:
    """The memory that networks may take on each device."""
    import psutil  # a hundredth of a second

    sizes = jax.local_devices()[0].memory_stats()
    if sizes and "bytes_limit" in sizes:
        return int(SHARE * (sizes["bytes_limit"] - sizes.get("bytes_in_use", 0)))
    return int(SHARE * psutil.virtual_memory().available / jax.local_device_count())
