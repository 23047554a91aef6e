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

from mnist_jax import population  # noqa: E402

images = asked["images"]
setup = population.Setup(config, data.DataSpec((28, 28), 10, images))
training = jax.device_put(Examples(mnist.train.images[:images], mnist.train.labels[:images]))
members = population.members_of(config)
population.compile_programs(setup, members, training, mnist.test)
states = population.init(setup, members)
for _ in range(config.epochs):
    start = time.perf_counter()
    states, metrics = population.train_epoch(setup, states, members, training)
    jax.block_until_ready(metrics)
    seconds, errors = time.perf_counter() - start, None
    if asked["evaluate"]:
        evaluation = population.evaluate(setup, states, members, mnist.test)
        errors = int(jax.device_get(evaluation).errors[0])
    common.report("epoch", seconds=seconds, errors=errors)
