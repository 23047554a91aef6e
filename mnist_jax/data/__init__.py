"""Datasets by name: read from files, the cache or a download, checked, and put on the devices."""

from mnist_jax.data.download import DataUnavailable as DataUnavailable
from mnist_jax.data.registry import Dataset as Dataset
from mnist_jax.data.registry import DataSpec as DataSpec
from mnist_jax.data.registry import Examples as Examples
from mnist_jax.data.registry import default_folder as default_folder
from mnist_jax.data.registry import load as load
from mnist_jax.data.registry import train_val_split as train_val_split
