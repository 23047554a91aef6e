"""Which images, units and moments the figures are about, and that training again ends the same."""

import jax
import numpy as np
import pytest

from mnist_jax.config import Config, InputError
from mnist_jax.explain import network_plots, training_plots
from mnist_jax.explain import run_figures as explain
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
    """The arguments that each figure was drawn from, and the figures by name."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        modules = dict.fromkeys(("units", "message", "dropout"), network_plots)
        modules |= dict.fromkeys(("one_weight", "landscape", "film"), training_plots)
        for name, module in modules.items():
            real = getattr(module, name)

            def keep(*arrays, name=name, real=real):
                given.setdefault(name, []).append(arrays)
                return real(*arrays)

            patch.setattr(module, name, keep)
        figures = dict(explain.figures(run, digits, image=7))
    return given, figures


def activations(run, images):
    """Of both hidden layers, in NumPy."""
    params = run.states.params
    x = np.asarray(to_inputs(images))
    for layer in ("Dense_0", "Dense_1"):
        kernel, bias = (np.asarray(params[layer][name][0]) for name in ("kernel", "bias"))
        x = np.maximum(x @ kernel + bias, 0)
        yield x


def test_every_figure_is_drawn(drawn, capfd):
    _, figures = drawn
    assert list(figures) == [*DEEP, "landscape"]
    for figure in figures.values():
        assert figure._suptitle.get_text()
        assert len(figure._supxlabel.get_text()) > 100  # the caption


@pytest.mark.parametrize("layer", [0, 1])
def test_the_nine_images_of_a_unit_excite_it_most(drawn, run, digits, layer):
    _, images, names, _, _ = drawn[0]["units"][layer]
    excited = list(activations(run, digits.train.images))[layer]
    speaking = (np.sort(excited, axis=0)[-9] > 0).sum()  # of so few ReLUs, some never do
    assert len(names) == min(24, speaking) > 10
    for name, nine in zip(names, images, strict=True):
        values = excited[:, int(name.removeprefix("unit "))]
        # Equal images excite equally; then any of them will do.
        found = [values[(digits.train.images == image).all((1, 2))].max() for image in nine]
        np.testing.assert_allclose(found, np.sort(values)[::-1][:9], rtol=1e-5)


def test_the_message_is_that_of_the_image_asked_for(drawn, run, digits):
    image, layers, _, loudest, votes, bias, _ = drawn[0]["message"][0]
    np.testing.assert_array_equal(image, digits.test.images[7])
    for found, expected in zip(layers, activations(run, image[None]), strict=True):
        np.testing.assert_allclose(found, expected[0], atol=1e-5)
    voices = np.abs(votes).max(axis=1)
    assert voices[loudest].tolist() == np.sort(voices[voices > 0])[::-1][:10].tolist()
    logits = jax.device_get(run.recipe.model.apply(
        jax.tree.map(lambda leaf: leaf[0], run.states.params), {}, to_inputs(image[None]), None
    )[0])  # fmt: skip
    np.testing.assert_allclose(votes.sum(axis=0) + bias, logits[0], atol=1e-4)


def test_the_two_networks_of_dropout_disagree(drawn, digits):
    image, masks, shares, _, tally, label, rate, *_ = drawn[0]["dropout"][0]
    assert digits.test.labels[(digits.test.images == image).all((1, 2))].tolist() == [label]
    assert (tally.sum(), rate) == (100, 0.2)
    answers = shares.argmax(axis=1)
    assert answers[0] != answers[1]
    assert tally[answers].tolist() == np.sort(tally)[::-1][:2].tolist()
    for mask in masks:
        assert [len(layer) for layer in mask] == [30, 20]


def test_one_weight_steps_downhill_by_the_derivative(drawn):
    values, costs, slopes, steps, learning_rate, images, _ = drawn[0]["one_weight"][0]
    assert images == 1000
    assert values[40] == pytest.approx(steps[0, 0], abs=1e-5)  # the start is in the middle
    taken = np.diff(steps[:, 0])
    np.testing.assert_allclose(
        taken, -learning_rate * np.interp(steps[:-1, 0], values, slopes), rtol=0.03
    )
    assert (np.diff(steps[:, 1]) <= 1e-6).all()
    assert costs.argmin() not in (0, 80)  # the valley is in the picture


def test_the_film_runs_from_the_start_to_the_network(drawn, run):
    frames, epochs, costs, names = drawn[0]["film"][0]
    assert epochs == (0, 1, 2, 3)
    units = [int(name.removeprefix("unit ")) for name in names]
    kernel = np.asarray(run.states.params["Dense_0"]["kernel"][0])
    np.testing.assert_array_equal(frames[-1], kernel[:, units].T.reshape(-1, 8, 8))
    assert (np.diff(costs) < 0).all()


def test_the_landscape_has_the_costs_of_the_path_where_the_path_is(drawn):
    epochs, path_costs, path, across, up, costs, share, parameters, _ = drawn[0]["landscape"][0]
    assert len(epochs) == len(path) == 4
    assert parameters == 64 * 30 + 30 + 30 * 20 + 20 + 20 * 10 + 10
    assert 0.8 < share <= 1.0001
    assert np.abs(path[-1]).max() < 1e-6
    row, column = np.abs(up - path[-1, 1]).argmin(), np.abs(across - path[-1, 0]).argmin()
    assert costs[row, column] == pytest.approx(float(path_costs[-1]), rel=0.35)
    assert costs.max() > 3 * costs[row, column]


def test_training_again_ends_on_the_same_bits(run, digits, capsys):
    path = explain.train_again(run, digits.train)
    for name, (kernel, bias) in zip(
        ("Dense_0", "Dense_1", "Dense_2"), path.layers[-1], strict=True
    ):
        np.testing.assert_array_equal(kernel, run.states.params[name]["kernel"][0])
        np.testing.assert_array_equal(bias, run.states.params[name]["bias"][0])
    said = capsys.readouterr().err
    assert "training again, 3 epochs" in said  # where no bar is seen
    assert "training again ends" not in said


def test_with_statistics_and_averages_training_again_ends_the_same(digits, tmp_path, capsys):
    run = trained(digits, tmp_path / "run", hidden=(12, 9), batch_norm=True, ema_decay=0.99)
    path = explain.train_again(run, digits.train)
    assert "training again ends" not in capsys.readouterr().err
    x = np.asarray(to_inputs(digits.test.images))
    for i, (kernel, bias) in enumerate(path.layers[-1]):
        x = x @ kernel + bias
        x = np.maximum(x, 0) if i < 2 else x
    state = jax.tree.map(lambda leaf: leaf[0], run.states)
    inputs = to_inputs(digits.test.images)
    logits = run.recipe.model.apply(state.average, state.model_state, inputs, None)[0]
    np.testing.assert_allclose(x, logits, rtol=1e-3, atol=1e-3)
    assert list(dict(explain.figures(run, digits))) == [*DEEP, "landscape"]


def test_another_end_is_told(run, digits, capsys):
    params = jax.tree.map(lambda leaf: leaf + 0.125, run.states.params)
    other = run._replace(states=run.states._replace(params=params))
    explain.train_again(other, digits.train)
    assert "training again ends up to 0.1 from the weights" in capsys.readouterr().err


def test_of_a_long_run_eleven_moments_are_kept(digits, tmp_path):
    run = trained(digits, tmp_path / "run", hidden=(4,), epochs=25)
    path = explain.train_again(run, digits.train)
    assert len(path.epochs) == len(path.layers) == 11
    assert (path.epochs[0], path.epochs[-1]) == (0, 25)


def test_units_that_never_speak_are_not_shown(run, digits, monkeypatch):
    """Their nine images would be any nine."""
    params = jax.tree.map(np.array, run.states.params)
    params["Dense_0"]["bias"][0, 3:] = -1000  # all but three are silent, whatever they see
    quiet = run._replace(states=run.states._replace(params=params))
    shown = []
    draw = network_plots.units
    monkeypatch.setattr(
        network_plots, "units", lambda *arrays: shown.append(arrays) or draw(*arrays)
    )
    next(explain.figures(quiet, digits))
    ((_, _, names, title, _),) = shown
    assert set(names) <= {"unit 0", "unit 1", "unit 2"}
    assert "(27 are silent on all images)" in title


def test_without_hidden_layers_there_is_less_to_show(digits, tmp_path, capsys):
    run = trained(digits, tmp_path / "run", hidden=(), epochs=1, seeds=2, validation_images=37)
    figures = dict(explain.figures(run, digits))
    assert list(figures) == ["units-1", "pixels", "film", "one-weight"]
    said = capsys.readouterr().err
    assert "without hidden layers there is no message" in said
    assert "one epoch is too short a path for a landscape" in said


def test_a_network_that_diverged_is_refused(run, digits):
    params = jax.tree.map(lambda leaf: leaf * np.nan, run.states.params)
    diverged = run._replace(states=run.states._replace(params=params))
    with pytest.raises(InputError, match=r"diverged.*--learning-rate below 0.1"):
        next(explain.figures(diverged, digits))


@pytest.mark.parametrize("image", [-1, 360])
def test_an_image_that_is_not_there_is_refused(run, digits, image):
    with pytest.raises(InputError, match=f"--image {image} cannot be used: it takes 0 to 359"):
        next(explain.figures(run, digits, image))
