"""mnist_jax: multilayer perceptrons on MNIST in functional JAX."""
