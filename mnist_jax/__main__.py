"""`python -m mnist_jax` is `mnist-jax`."""

from mnist_jax.cli import main

main()
