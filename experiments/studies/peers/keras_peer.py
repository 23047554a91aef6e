"""The network in Keras 3, by `model.fit`, on its TensorFlow, JAX or PyTorch backend."""

import os
import time

import common

asked = common.settings()
os.environ["KERAS_BACKEND"] = asked["backend"]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras  # noqa: E402  (the backend must be chosen before)

if asked["backend"] == "tensorflow":
    import tensorflow

    tensorflow.config.experimental.enable_tensor_float_32_execution(False)
keras.utils.set_random_seed(asked["seed"])
x_train, y_train, x_test, y_test = common.arrays(asked)
model = keras.Sequential([keras.Input((x_train.shape[1],))])
for units in asked["hidden"]:
    model.add(keras.layers.Dense(units, "relu", kernel_initializer="he_normal"))
    model.add(keras.layers.Dropout(asked["dropout"]))
model.add(keras.layers.Dense(10, kernel_initializer="he_normal"))
steps = asked["images"] // asked["batch_size"]


class Falling(keras.optimizers.schedules.LearningRateSchedule):
    """Up over the first steps, then down to 0 at the last."""

    def __call__(self, step: keras.KerasTensor) -> keras.KerasTensor:
        """The learning rate at `step`."""
        step, warmup = keras.ops.cast(step, "float32"), asked["warmup_steps"]
        fall = 1 - (step - warmup) / (steps * asked["epochs"] - warmup)
        climb = step / max(warmup, 1)
        return asked["learning_rate"] * keras.ops.where(step < warmup, climb, fall)


model.compile(
    keras.optimizers.SGD(Falling(), asked["momentum"], asked["nesterov"]),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    # TensorFlow then runs that many without Python, and JAX waits only once for their results.
    steps_per_execution=1 if asked["backend"] == "torch" else min(steps, 39),
)


class Report(keras.callbacks.Callback):
    """Tells what an epoch took, and how the test set was read after it."""

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """Starts the clock."""
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        """Stops it."""
        seconds, errors = time.perf_counter() - self.start, None
        if asked["evaluate"]:
            accuracy = model.evaluate(x_test, y_test, 1000, verbose=0)[1]
            errors = round((1 - accuracy) * len(x_test))
        common.report("epoch", seconds=seconds, errors=errors)


images = steps * asked["batch_size"]
model.fit(
    *(x_train[:images], y_train[:images], asked["batch_size"], asked["epochs"]),
    verbose=0,
    callbacks=[Report()],
)
