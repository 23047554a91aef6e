"""Answers averaged over deformed copies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from deformed import COPIES, with_test_time_augmentation

from mnist_jax import fit, population, prng, train
from mnist_jax.config import Config
from mnist_jax.runs import rundir
from mnist_jax.runs.results import load_data

CONFIG = Config(dataset="digits", hidden=(8,), epochs=1, seeds=2)


def test_the_answers_to_copies_of_test_images_are_averaged(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "save_figures", lambda *_: [])
    run = fit.fit(dataclasses.replace(CONFIG, epochs=3), tmp_path / "run")
    test = load_data(run).test

    def shares_of(images):
        logits = population.predict(run.setup, run.states, run.members, images)
        return np.asarray(jax.nn.softmax(logits))

    def counted(augment):
        def recipe(*arguments):
            return train.default_recipe(*arguments)._replace(augment=augment)

        changed = run._replace(make_recipe=recipe)
        return with_test_time_augmentation(changed)["test_errors_with_test_time_augmentation"]

    def sometimes_mirrored(key, images):
        return jnp.where(jax.random.bernoulli(key), images[:, :, ::-1], images)

    mirrored = sum(bool(jax.random.bernoulli(k)) for k in jax.random.split(prng.key(0), COPIES))
    plain, others = shares_of(test.images), shares_of(test.images[:, :, ::-1])
    averaged = ((COPIES - mirrored) * plain + mirrored * others).argmax(-1)
    assert 0 < mirrored < COPIES
    expected = (averaged != test.labels[None]).sum(-1).tolist()
    assert counted(sometimes_mirrored) == expected
    assert (
        counted(train.no_augmentation) == rundir.read_summary(run.path)["test_errors"] != expected
    )
