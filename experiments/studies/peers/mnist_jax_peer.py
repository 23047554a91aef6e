"""The network in mnist_jax: the functions that `mnist-jax train` runs, in its order.

It reads and checks the official files itself, while JAX is imported.
"""

import importlib
import threading
import time

import common

threading.Thread(target=importlib.import_module, args=["mnist_jax.population"]).start()

from mnist_jax import data  # noqa: E402  (the thread comes first)
from mnist_jax.config import Config  # noqa: E402
from mnist_jax.data import Examples  # noqa: E402

asked = common.settings()
mnist = data.load("mnist", asked["data_dir"])
config = Config(
    hidden=tuple(asked["hidden"]),
    **{name: asked[name] for name in ("dropout", "epochs", "batch_size", "learning_rate")},
    **{name: asked[name] for name in ("warmup_steps", "momentum", "nesterov", "seed", "seeds")},
    weight_decay=0.0,
)

import jax  # noqa: E402

from mnist_jax import population, train  # noqa: E402

images = asked["images"]
recipe = train.default_recipe(config, 784, 10, images)
training = jax.device_put(Examples(mnist.train.images[:images], mnist.train.labels[:images]))
keys = population.keys(config.all_seeds)
side_by_side, _ = population.compile_ahead(recipe, keys, training, mnist.test, config.batch_size)
states = population.init(recipe, keys)
for _ in range(config.epochs):
    start = time.perf_counter()
    states, metrics = population.train_epoch(
        recipe, states, training, keys, config.batch_size, side_by_side
    )
    jax.block_until_ready(metrics)
    seconds, errors = time.perf_counter() - start, None
    if asked["evaluate"]:
        errors = int(jax.device_get(population.evaluate(recipe, states, mnist.test)).errors[0])
    common.report("epoch", seconds=seconds, errors=errors)
