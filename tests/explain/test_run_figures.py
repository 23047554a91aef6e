"""The images, units and moments that the figures show, and that training again ends the same."""

import jax
import numpy as np
import pytest

from mnist_jax.config import Config
from mnist_jax.errors import InputError
from mnist_jax.explain import run_figures as explain
from mnist_jax.explain import training_plots
from mnist_jax.fit import fit
from mnist_jax.preprocess import to_inputs

DEEP = ["units-1", "units-2", "message", "pixels", "dropout", "classes", "film", "one-weight"]


def trained(digits, path, **options):
    config = Config(**{"dataset": "digits", "epochs": 3, "batch_size": 64, **options})
    return fit(config, path, dataset=digits)


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    return trained(digits, tmp_path_factory.mktemp("runs") / "run", hidden=(30, 20), seed=4)


@pytest.fixture(scope="module")
def drawn(run, digits):
    """The figures by name, and the arguments from which each figure of training was drawn."""
    arguments = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("weight_sweep", "landscape", "weight_history"):
            draw = getattr(training_plots, name)

            def record(*args, name=name, draw=draw):
                arguments[name] = args
                return draw(*args)

            patch.setattr(training_plots, name, record)
        figures = dict(explain.figures(run, digits, image=7))
    return figures, arguments


def dense(run, layer):
    """The kernel and bias of a layer of the first seed."""
    return tuple(np.asarray(run.states.params[f"Dense_{layer}"][name][0])
                 for name in ("kernel", "bias"))  # fmt: skip


def activations(run, images):
    """Of both hidden layers, in NumPy."""
    x = np.asarray(to_inputs(images))
    for layer in (0, 1):
        kernel, bias = dense(run, layer)
        x = np.maximum(x @ kernel + bias, 0)
        yield x


def units_shown(figure):
    """The numbers of the units in a figure of units, and the nine 8 x 8 images of each."""
    axes = figure.axes[0]
    canvas = np.asarray(axes.images[0].get_array())
    for i, label in enumerate(axes.get_yticklabels()):
        row = canvas[9 * i : 9 * i + 8, ..., 0]
        nine = np.stack([row[:, 9 * j : 9 * j + 8] for j in range(1, 10)])
        yield int(label.get_text().removeprefix("unit ")), np.rint(255 * nine)


def test_every_figure_is_drawn(drawn):
    figures, _ = drawn
    assert list(figures) == [*DEEP, "landscape"]
    for figure in figures.values():
        assert figure.get_suptitle()
        assert len(figure._supxlabel.get_text()) > 100  # the caption


@pytest.mark.parametrize("layer", [0, 1])
def test_the_nine_images_of_a_unit_excite_it_most(drawn, run, digits, layer):
    units = list(units_shown(drawn[0][f"units-{layer + 1}"]))
    values = list(activations(run, digits.train.images))[layer]
    active = (np.sort(values, axis=0)[-9] > 0).sum()  # with so few ReLUs, some are always silent
    assert len(units) == min(12, active) > 10
    for unit, nine in units:
        # Equal images excite equally; then any of them will do.
        excitement = [values[(digits.train.images == image).all((1, 2)), unit].max()
                      for image in nine]  # fmt: skip
        np.testing.assert_allclose(excitement, np.sort(values[:, unit])[::-1][:9], rtol=1e-5)


def test_the_message_is_that_of_the_image_asked_for(drawn, run, digits):
    image, first, second, table = drawn[0]["message"].axes
    np.testing.assert_array_equal(image.images[0].get_array(), digits.test.images[7])
    hidden = list(activations(run, digits.test.images[7:8]))
    for axes, expected in zip((first, second), hidden, strict=True):
        values = np.ma.compressed(axes.images[0].get_array())
        np.testing.assert_allclose(values, expected[0], atol=1e-5)
    kernel, _ = dense(run, 2)
    strength = np.abs(hidden[1][0][:, None] * kernel).max(axis=1)
    loudest = np.argsort(-strength, kind="stable")[:10]
    labels = [label.get_text() for label in table.get_yticklabels()]
    assert labels[:-3] == [f"unit {unit}" for unit in loudest]
    logits = jax.device_get(run.recipe.model.apply(
        jax.tree.map(lambda leaf: leaf[0], run.states.params), {},
        to_inputs(digits.test.images[7:8]), None,
    )[0])  # fmt: skip
    scores = [float(text.get_text()) for text in table.texts
              if text.get_text() and text.get_position()[1] == len(labels) - 1]  # fmt: skip
    np.testing.assert_allclose(scores, logits[0], atol=0.006)


def test_the_two_networks_of_dropout_disagree(drawn, digits):
    figure = drawn[0]["dropout"]
    mask_a, bars_a, picture, mask_b, bars_b, tally = figure.axes
    image = np.asarray(picture.images[0].get_array())
    label = digits.test.labels[(digits.test.images == image).all((1, 2))].item()
    assert picture.get_title() == f"the image, of class {label}"
    assert "probability 0.2" in figure._supxlabel.get_text()
    counts = np.array([bar.get_height() for bar in tally.patches])
    assert counts.sum() == 100
    answers = [int(np.argmax([bar.get_height() for bar in bars.patches[:10]]))
               for bars in (bars_a, bars_b)]  # fmt: skip
    assert answers[0] != answers[1]
    assert counts[answers].tolist() == np.sort(counts)[::-1][:2].tolist()
    for mask in (mask_a, mask_b):
        assert mask.get_title().endswith("of 50 hidden units")
        assert np.ma.compressed(mask.images[0].get_array()).shape == (50,)


def test_one_weight_steps_downhill_by_the_derivative(drawn):
    sweep, learning_rate, images, _ = drawn[1]["weight_sweep"]
    assert images == 1000
    assert sweep.values[40] == pytest.approx(sweep.steps[0, 0], abs=1e-5)  # the start
    np.testing.assert_allclose(
        np.diff(sweep.steps[:, 0]),
        -learning_rate * np.interp(sweep.steps[:-1, 0], sweep.values, sweep.derivatives),
        rtol=0.03,
    )
    assert (np.diff(sweep.steps[:, 1]) <= 1e-6).all()
    assert np.argmin(sweep.costs) not in (0, 80)  # the valley is in the picture


def test_the_film_runs_from_the_start_to_the_network(drawn, run):
    frames, costs, names = drawn[1]["weight_history"]
    assert list(costs) == [0, 1, 2, 3]
    units = [int(name.removeprefix("unit ")) for name in names]
    kernel, _ = dense(run, 0)
    np.testing.assert_array_equal(frames[-1], kernel[:, units].T.reshape(-1, 8, 8))
    assert (np.diff(list(costs.values())) < 0).all()


def test_the_landscape_has_the_costs_of_the_path_where_the_path_is(drawn):
    landscape, path_costs, images = drawn[1]["landscape"]
    assert images == 1000
    assert len(path_costs) == len(landscape.path) == 4
    assert landscape.parameters == 64 * 30 + 30 + 30 * 20 + 20 + 20 * 10 + 10
    assert 0.8 < landscape.share <= 1.0001
    assert np.abs(landscape.path[-1]).max() < 1e-6
    distances = np.linalg.norm(landscape.grid - landscape.path[-1], axis=-1)
    nearest = np.unravel_index(distances.argmin(), distances.shape)
    costs = np.asarray(landscape.costs)
    assert costs[nearest] == pytest.approx(path_costs[3], rel=0.35)
    assert costs.max() > 3 * costs[nearest]


def test_training_again_ends_on_the_same_bits(run, digits, capsys):
    path = explain.train_again(run, digits.train)
    for name, (kernel, bias) in zip(("Dense_0", "Dense_1", "Dense_2"), path[3], strict=True):
        np.testing.assert_array_equal(kernel, run.states.params[name]["kernel"][0])
        np.testing.assert_array_equal(bias, run.states.params[name]["bias"][0])
    messages = capsys.readouterr().err
    assert "training again, 3 epochs" in messages  # where no bar is seen
    assert "training again ends" not in messages


def test_with_statistics_and_averages_training_again_ends_the_same(digits, tmp_path, capsys):
    run = trained(digits, tmp_path / "run", hidden=(12, 9), batch_norm=True, ema_decay=0.99)
    path = explain.train_again(run, digits.train)
    assert "training again ends" not in capsys.readouterr().err
    x = np.asarray(to_inputs(digits.test.images))
    for i, (kernel, bias) in enumerate(path[3]):
        x = x @ kernel + bias
        x = np.maximum(x, 0) if i < 2 else x
    state = jax.tree.map(lambda leaf: leaf[0], run.states)
    inputs = to_inputs(digits.test.images)
    logits = run.recipe.model.apply(state.ema_params, state.model_state, inputs, None)[0]
    np.testing.assert_allclose(x, logits, rtol=1e-3, atol=1e-3)
    assert list(dict(explain.figures(run, digits))) == [*DEEP, "landscape"]


def test_a_different_end_is_reported(run, digits, capsys):
    params = jax.tree.map(lambda leaf: leaf + 0.125, run.states.params)
    changed = run._replace(states=run.states._replace(params=params))
    explain.train_again(changed, digits.train)
    assert "training again ends up to 0.1 from the weights" in capsys.readouterr().err


def test_a_long_run_has_eleven_frames(digits, tmp_path):
    run = trained(digits, tmp_path / "run", hidden=(4,), epochs=25)
    path = explain.train_again(run, digits.train)
    assert len(path) == 11
    assert (min(path), max(path)) == (0, 25)


def test_units_that_are_always_silent_are_not_shown(run, digits):
    """Their nine images would be any nine."""
    params = jax.tree.map(np.array, run.states.params)
    params["Dense_0"]["bias"][0, 3:] = -1000  # all but three are silent, whatever they see
    quiet = run._replace(states=run.states._replace(params=params))
    _, figure = next(explain.figures(quiet, digits))
    assert {unit for unit, _ in units_shown(figure)} <= {0, 1, 2}
    assert "(27 are silent on all images)" in figure.get_suptitle()


def test_without_hidden_layers_there_are_fewer_figures(digits, tmp_path, capsys):
    run = trained(digits, tmp_path / "run", hidden=(), epochs=1, seeds=2, validation_images=37)
    figures = dict(explain.figures(run, digits))
    assert list(figures) == ["units-1", "pixels", "film", "one-weight"]
    messages = capsys.readouterr().err
    assert "without hidden layers has no message" in messages
    assert "one epoch is too short a path for a landscape" in messages


def test_a_network_that_diverged_is_refused(run, digits):
    params = jax.tree.map(lambda leaf: leaf * np.nan, run.states.params)
    diverged = run._replace(states=run.states._replace(params=params))
    with pytest.raises(InputError, match=r"diverged.*--learning-rate below 0.1"):
        next(explain.figures(diverged, digits))


@pytest.mark.parametrize("image", [-1, 360])
def test_an_image_that_is_not_there_is_refused(run, digits, image):
    with pytest.raises(InputError, match=f"--image {image} cannot be used: it takes 0 to 359"):
        next(explain.figures(run, digits, image))
