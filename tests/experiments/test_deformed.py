"""Answers averaged over deformed copies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from deformed import COPIES, with_test_time_augmentation

from mnist_jax import fit, population, prng, train
from mnist_jax.config import Config
from mnist_jax.runs import report, rundir

CONFIG = Config(dataset="digits", hidden=(8,), epochs=1, seeds=2)


def test_the_answers_to_copies_of_test_images_are_averaged(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "draw", lambda *_: [])
    run = fit.fit(dataclasses.replace(CONFIG, epochs=3), tmp_path / "run")
    test = report.load_data(run).test

    def shares_of(images):
        return np.asarray(jax.nn.softmax(population.predict(run.recipe, run.states, images)))

    def counted(augment):
        changed = run._replace(recipe=run.recipe._replace(augment=augment))
        return with_test_time_augmentation(changed)["test_errors_with_test_time_augmentation"]

    def sometimes_mirrored(key, images):
        return jnp.where(jax.random.bernoulli(key), images[:, :, ::-1], images)

    mirrored = sum(bool(jax.random.bernoulli(k)) for k in jax.random.split(prng.key(0), COPIES))
    as_they_are, others = shares_of(test.images), shares_of(test.images[:, :, ::-1])
    averaged = ((COPIES - mirrored) * as_they_are + mirrored * others).argmax(-1)
    assert 0 < mirrored < COPIES
    expected = (averaged != test.labels[None]).sum(-1).tolist()
    assert counted(sometimes_mirrored) == expected
    assert counted(train.as_they_are) == rundir.read_summary(run.path)["test_errors"] != expected
