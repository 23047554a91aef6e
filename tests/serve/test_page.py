"""The page, read as text and used in a real browser."""

import base64
import io
import json
import re
from functools import partial
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import page_in_browser as chromium
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.interaction import POINTER_TOUCH
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from mnist_jax import model, population
from mnist_jax.config import Activation, Config
from mnist_jax.data import Dataset, DataSpec, Examples
from mnist_jax.errors import InputError
from mnist_jax.fit import fit
from mnist_jax.preprocess import to_inputs
from mnist_jax.runs.results import Run, first_network
from mnist_jax.serve import page
from mnist_jax.serve.digit import bounding_box, centre_by_mass, to_digit
from tests.conftest import tiny_arrays
from tests.test_cli import call

DIGITS = tuple("0123456789")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def untrained(shape=(28, 28), classes=DIGITS, test=60, **options) -> tuple[Run, Dataset]:
    """A run with random weights and biases, and random data that fit it."""
    train, train_labels, images, labels = tiny_arrays(40, test, *shape, classes=len(classes))
    config = Config(dataset="local", **options)
    spec = DataSpec(shape, len(classes), 200)
    setup, members = population.Setup(config, spec), population.members_of(config)
    states = jax.eval_shape(partial(population.init, setup), members)
    random = np.random.default_rng(7)

    def random_leaf(leaf):
        scale = (2 / leaf.shape[1]) ** 0.5 if leaf.ndim == 3 else 0.3  # a kernel, or a bias
        return jnp.asarray(scale * random.standard_normal(leaf.shape, np.float32))

    states = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), states)._replace(
        params=jax.tree.map(random_leaf, states.params)
    )
    examples = Examples(train, train_labels), Examples(images, labels)
    return (
        Run(Path("run"), config, spec, classes, (), states),
        Dataset("local", *examples, classes, ()),
    )


def data_of(html: str) -> dict:
    """The JSON data in a page."""
    return json.loads(re.search(r'<script id="data" .*?>(.*?)</script>', html, re.S)[1])


def dequantized(array: dict) -> np.ndarray:
    content = base64.b64decode(array["base64"])
    integers = [int.from_bytes(content[i : i + 3], signed=True) for i in range(0, len(content), 3)]
    return array["scale"] * np.array(integers, float)


def jax_logits(run: Run, images: np.ndarray) -> np.ndarray:
    """JAX's logits of the first seed."""
    state = first_network(run)
    return np.asarray(run.recipe.model.apply(state.params, {}, to_inputs(images), None)[0])


# As text


def test_all_weights_have_24_bits():
    run, dataset = untrained(hidden=(40, 30))
    layers = data_of(page.html(run, dataset))["layers"]
    expected = model.dense_layers(first_network(run).params, {})
    assert [layer["units"] for layer in layers] == [40, 30, 10]
    for layer, arrays in zip(layers, expected, strict=True):
        for name in ("kernel", "bias"):
            weights = np.asarray(getattr(arrays, name), float).ravel()
            bound = 0.5001 * np.abs(weights).max() / (2**23 - 1)
            np.testing.assert_allclose(dequantized(layer[name]), weights, rtol=0, atol=bound)


def test_weights_that_are_all_zero_stay_zero():
    run, dataset = untrained(hidden=(3,))
    zeros = jax.tree.map(jnp.zeros_like, run.states.params)
    run = run._replace(states=run.states._replace(params=zeros))
    layers = data_of(page.html(run, dataset))["layers"]
    assert not any(dequantized(layer["kernel"]).any() for layer in layers)


def test_the_default_page_has_less_than_3_megabytes_and_no_address():
    html = page.html(*untrained(hidden=Config.hidden))
    assert len(html.encode()) < 3_000_000
    code = re.sub(r'type="application/json">.*?</script>', "", html, flags=re.DOTALL)
    assert not re.search(r"https?:|url\(|@import|\bsrc=|fetch\(|XMLHttp|WebSocket", code)
    assert "default-src 'none'" in code


def test_the_page_describes_its_network():
    run, dataset = untrained(hidden=(5,), seed=3, activation="tanh")
    data = data_of(page.html(run, dataset))
    errors = int((jax_logits(run, dataset.test.images).argmax(1) != dataset.test.labels).sum())
    expected = ("local", 40, 60, errors, 3, "tanh", [28, 28], [*DIGITS])
    assert tuple(data.values())[:8] == expected


def test_the_samples_are_some_of_each_class_and_some_misread_ones():
    run, dataset = untrained(hidden=(5,))
    samples = data_of(page.html(run, dataset))["samples"]
    assert [sample["label"] for sample in samples[:30]] == [*range(10)] * 3
    images = [np.frombuffer(base64.b64decode(sample["pixels"]), np.uint8) for sample in samples]
    np.testing.assert_array_equal(images[:30], dataset.test.images[:30].reshape(30, -1))
    predictions = jax_logits(run, dataset.test.images).argmax(1)
    misread = [i for i in range(30, 60) if predictions[i] != dataset.test.labels[i]][:10]
    expected = dataset.test.images[misread].reshape(len(misread), -1)
    np.testing.assert_array_equal(images[30:], expected)
    expected = predictions[[*range(30), *misread]].tolist()
    assert [sample["prediction"] for sample in samples] == expected


def test_the_samples_have_each_of_many_classes_once():
    names = tuple(f"c{i}" for i in range(62))
    run, dataset = untrained((5, 4), names, test=200, hidden=(5,))
    samples = data_of(page.html(run, dataset))["samples"]
    assert [sample["label"] for sample in samples[:62]] == [*range(62)]
    assert len(samples) == 72


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_diverged_is_refused(value):
    run, dataset = untrained(hidden=(3,))
    params = jax.tree.map(lambda leaf: leaf.at[0, 0].set(value), run.states.params)
    run = run._replace(states=run.states._replace(params=params))
    with pytest.raises(
        InputError, match=r"of run diverged: .*; train it with a --learning-rate below"
    ):
        page.html(run, dataset)


def test_a_network_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(page, "MAX_WEIGHTS", 1000)
    with pytest.raises(InputError, match=r"has 2,395 weights; a page takes at most 1,000$"):
        page.html(*untrained(hidden=(3,)))


# As a command


@pytest.fixture(scope="module")
def mnist_run(mnist, mnist_dir, tmp_path_factory) -> Run:
    """A small network that reads drawn digits well."""
    path = tmp_path_factory.mktemp("runs") / "mnist"
    config = Config(dataset="mnist", data_dir=mnist_dir, hidden=(96, 64), epochs=2)
    return fit(config, path, dataset=mnist)


@pytest.fixture(scope="module")
def mnist_page(mnist_run, mnist) -> str:
    return page.html(mnist_run, mnist)


def test_the_command_writes_the_page_into_the_run(mnist_run, mnist, capsys):
    code, out, err = call(capsys, "page", mnist_run.path)
    assert (code, err) == (0, "")
    file = mnist_run.path / "page.html"
    assert out == f"{file} (0.41 MB): open it in a browser and draw\n"
    assert file.read_text(encoding="utf-8") == page.html(mnist_run, mnist)


def test_the_command_writes_the_page_to_out(mnist_run, tmp_path, capsys):
    file = tmp_path / "network.html"
    assert call(capsys, "page", mnist_run.path, "--out", file)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["network.html"]
    assert data_of(file.read_text(encoding="utf-8"))["dataset"] == "mnist"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["TMP/none"], "is not a run folder"),
        (["RUN", "--out", "TMP"], "Is a directory"),
        (["RUN", "--out", "TMP/none/page.html"], "cannot write"),
        (["RUN", "--out", "/proc/page.html"], "cannot write /proc/page.html"),
        (["RUN", "--data-dir", "TMP/none", "--seed", "1"], "--seed"),
    ],
)
def test_bad_input_is_one_line(args, expected, mnist_run, tmp_path, capsys):
    args = [arg.replace("TMP", str(tmp_path)).replace("RUN", str(mnist_run.path)) for arg in args]
    code, _, err = call(capsys, "page", *args)
    assert (code, err.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
    assert expected in err


# In a browser


@pytest.fixture(scope="module")
def browser():
    if chromium.find_programs() is None:
        pytest.skip("install Chromium and chromedriver to run this test")
    with chromium.browser() as driver:
        yield driver


@pytest.fixture
def driver(browser):
    """The browser with a desktop's screen and light colours; the page may log no errors."""
    chromium.set_screen(browser, chromium.DESKTOP)
    chromium.set_colour_scheme(browser, "light")
    browser.get_log("browser")
    chromium.requested_urls(browser)
    yield browser
    assert browser.get_log("browser") == []
    assert chromium.requested_urls(browser) == []


def open_page(driver, html: str, folder: Path) -> None:
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    driver.get(file.as_uri())
    chromium.wait_for_frames(driver)


@pytest.fixture
def drawing(driver, mnist_page, tmp_path):
    """The browser with the page of a trained network."""
    open_page(driver, mnist_page, tmp_path)
    return driver


def evaluate(driver, script: str, *args):
    """The value of a JavaScript expression, once all changes are shown."""
    chromium.wait_for_frames(driver)
    return driver.execute_script(f"return {script}", *args)


def network_input(driver) -> np.ndarray:
    """The image that the network gets."""
    shape = evaluate(driver, "[rows, columns]")
    return np.array(evaluate(driver, "[...state.image]")).reshape(shape)


def page_logits(driver) -> np.ndarray:
    return np.array(evaluate(driver, "[...state.pass.logits]"))


def numpy_logits(
    run: Run, pixels: np.ndarray, masks: list[list[float]] | None = None
) -> np.ndarray:
    """The logits of one image in NumPy; `masks` has a factor for each hidden unit."""
    values = pixels.ravel() / 255
    *hidden, last = model.dense_layers(first_network(run).params, {})
    for layer, mask in zip(hidden, masks or [[1.0]] * len(hidden), strict=True):
        kernel, bias = (np.asarray(array, float) for array in layer)
        values = np.maximum(values @ kernel + bias, 0) * mask
    return values @ np.asarray(last.kernel, float) + np.asarray(last.bias, float)


def test_the_logits_of_1000_test_images_are_those_of_jax(driver, mnist, mnist_run, tmp_path):
    default, _ = untrained(hidden=Config.hidden)
    for run in (mnist_run, default):
        open_page(driver, page.html(run, mnist), tmp_path)
        logits = chromium.logits(driver, mnist.test.images[:1000])
        expected = jax_logits(run, mnist.test.images[:1000])
        assert expected.std() > 0.5
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("hidden", [(), (9, 8, 7, 6, 5, 4)])
def test_any_depth(hidden, driver, tmp_path):
    run, dataset = untrained((5, 4), hidden=hidden)
    open_page(driver, page.html(run, dataset), tmp_path)
    images = dataset.test.images
    np.testing.assert_allclose(chromium.logits(driver, images), jax_logits(run, images), atol=1e-4)
    chromium.draw(driver, chromium.DIGITS[3])
    assert chromium.answer(driver) == str(numpy_logits(run, network_input(driver)).argmax())
    assert len(driver.find_elements(By.CLASS_NAME, "cells")) == len(hidden)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_any_activation_and_the_details_of_its_units(activation, driver, tmp_path):
    """Logits, contributions and gradients are those of JAX."""
    names = ("</script>", "T-shirt/top", *"abcdefghij")
    run, dataset = untrained((5, 4), names, hidden=(7, 6), activation=activation)
    open_page(driver, page.html(run, dataset), tmp_path)
    images = dataset.test.images
    np.testing.assert_allclose(chromium.logits(driver, images), jax_logits(run, images), atol=1e-4)

    first, second, last = model.dense_layers(first_network(run).params, {})
    act = getattr(jax.nn, activation)
    pixels = jnp.asarray(to_inputs(images[:1])[0])
    sums = pixels @ first.kernel + first.bias

    def second_sums(pixels):
        return act(pixels @ first.kernel + first.bias) @ second.kernel + second.bias

    def logits(values):
        return act(values @ second.kernel + second.bias) @ last.kernel + last.bias

    driver.execute_script("showSample(0)")
    change = jnp.zeros(7).at[2].set(act(sums)[2])
    _, expected = jax.jvp(logits, (act(sums),), (change,))
    result = evaluate(driver, "[...contributions(state.pass, 0, 2)]")
    np.testing.assert_allclose(result, expected, atol=1e-4)
    expected = act(second_sums(pixels))[3] * last.kernel[3]
    result = evaluate(driver, "[...contributions(state.pass, 1, 3)]")
    np.testing.assert_allclose(result, expected, atol=1e-4)
    result = evaluate(driver, "[...inputGradient(state.pass, 0, 2)]")
    np.testing.assert_allclose(result, first.kernel[:, 2], atol=1e-6)
    expected = jax.grad(lambda pixels: second_sums(pixels)[3])(pixels)
    result = evaluate(driver, "[...inputGradient(state.pass, 1, 3)]")
    np.testing.assert_allclose(result, expected, atol=1e-4)

    # Of twelve classes, the ten most likely have a bar with their name.
    top_ten = np.argsort(-jax_logits(run, images[:1])[0])[:10]
    bars = evaluate(driver, "[...document.querySelectorAll('#bars button > :first-child')]")
    assert [bar.text for bar in bars] == [names[i] for i in top_ten]


def test_drawn_digits_are_read_within_a_frame(drawing):
    """An update takes less than 16 ms; experiments/studies/page_in_browser.py measures it."""
    chromium.time_updates(drawing)
    n_correct = 0
    for digit, strokes in chromium.DIGITS.items():
        chromium.draw(drawing, strokes)
        n_correct += chromium.answer(drawing) == str(digit)
    assert n_correct >= 8  # the default network reads all ten
    milliseconds = evaluate(drawing, "updateTimes")
    assert len(milliseconds) > 50
    assert np.median(milliseconds) < 16
    assert "sure" in drawing.find_element(By.ID, "confidence").text


def test_ten_bars_show_the_probabilities(drawing, mnist_run):
    chromium.draw(drawing, chromium.DIGITS[8])
    exponentials = np.exp(numpy_logits(mnist_run, network_input(drawing)))
    probabilities = exponentials / exponentials.sum()
    bars = drawing.find_elements(By.CSS_SELECTOR, "#bars button")
    for digit, (bar, share) in enumerate(zip(bars, probabilities, strict=True)):
        assert bar.text.split("\n") == [str(digit), f"{np.floor(1000 * share) / 10} %"]
        track, fill = (bar.find_element(By.CLASS_NAME, name).size for name in ("track", "fill"))
        assert fill["width"] == pytest.approx(share * track["width"], abs=1.5)
    (first,) = drawing.find_elements(By.CLASS_NAME, "first")
    assert first is not None
    assert first.text.startswith(chromium.answer(drawing))


def drawn_strokes(driver) -> np.ndarray:
    """How strongly each pixel of the pad is drawn on, from 0 to 255."""
    size = evaluate(driver, "[pad.height, pad.width]")
    text = evaluate(driver, "btoa(readPad().reduce((a, b) => a + String.fromCharCode(b), ''))")
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(size)


def centred(strokes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The image that digit.py makes of the strokes in their bounding box."""
    box = bounding_box(strokes > 0.3 * strokes.max())
    return centre_by_mass(strokes[box] / strokes.max(), shape).astype(int)


@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (40, 30)])
def test_strokes_become_the_same_image_as_in_a_photo(shape, driver, tmp_path):
    open_page(driver, page.html(*untrained(shape, hidden=())), tmp_path)
    for digit in (1, 5):
        chromium.draw(driver, chromium.DIGITS[digit])
        assert np.abs(network_input(driver) - centred(drawn_strokes(driver), shape)).max() <= 1
    random = np.random.default_rng(0)
    pages = np.zeros((60, 120, 100), np.uint8)
    for strokes in pages:  # blocks of all sizes, from a speck to the page, in several shades
        top, left = random.integers(0, 100), random.integers(0, 80)
        height, width = random.integers(1, 119 - top), random.integers(1, 99 - left)
        strokes[top : top + height, left : left + width] = random.integers(100, 256)
        strokes[top : top + height // 2, left : left + width // 2] = random.integers(60, 256)
    texts = [base64.b64encode(strokes.tobytes()).decode() for strokes in pages]
    script = "arguments[0].map((text) => [...toImage(decodeBase64(text), 100)])"
    images = evaluate(driver, script, texts)
    for strokes, image in zip(pages, images, strict=True):
        assert np.abs(np.reshape(image, shape) - centred(strokes, shape)).max() <= 1


def test_a_photo_of_a_drawing_becomes_almost_the_same_image(drawing):
    """digit.py has to segment the strokes, which the page knows."""
    chromium.draw(drawing, chromium.DIGITS[3])
    expected = to_digit(255 - drawn_strokes(drawing), (28, 28)).astype(int)
    assert np.abs(network_input(drawing) - expected).max() <= 30


def test_an_empty_pad_asks_for_a_drawing(drawing):
    assert drawing.find_element(By.ID, "hint").text == "Draw here"
    assert evaluate(drawing, "state.image") is None
    chromium.draw(drawing, chromium.DIGITS[1])
    assert drawing.find_element(By.ID, "hint").text == ""
    drawing.find_element(By.ID, "clear").click()
    assert evaluate(drawing, "state.image") is None
    assert not any(bar.text.endswith("%") for bar in drawing.find_elements(By.TAG_NAME, "button"))


def test_the_keyboard_can_draw(drawing, mnist_run):
    pad = drawing.find_element(By.ID, "pad")
    ActionChains(drawing, duration=0).send_keys(Keys.TAB).perform()
    assert drawing.switch_to.active_element == pad
    assert drawing.find_element(By.ID, "keys").is_displayed()
    assert drawing.find_element(By.ID, "pen").is_displayed()
    pad.send_keys(Keys.ARROW_LEFT * 2)
    assert evaluate(drawing, "state.image") is None  # the pen is up
    pad.send_keys(" " + Keys.ARROW_DOWN * 14 + " " + Keys.ARROW_RIGHT * 9)
    assert chromium.answer(drawing) == "1"
    rows = np.flatnonzero(drawn_strokes(drawing).any(axis=1))
    assert np.ptp(rows) == pytest.approx(14 * 12 + 30, abs=3)  # 14 of 28 steps, and a pen
    announcement = drawing.find_element(By.ID, "announcement")
    WebDriverWait(drawing, 20, 0.1).until(
        lambda _: announcement.get_attribute("textContent").startswith("1, ")
    )
    pad.send_keys(Keys.ESCAPE)
    assert evaluate(drawing, "state.image") is None


def test_all_controls_can_be_reached_with_the_keyboard(drawing):
    stops = []
    for _ in range(25):
        ActionChains(drawing, duration=0).send_keys(Keys.TAB).perform()
        element = drawing.switch_to.active_element
        stops.append(element.get_attribute("id") or element.get_attribute("class") or element.text)
    assert {"pad", "clear", "cells", "rate"} <= set(stops)
    assert "0" in stops


def test_a_test_image_reaches_the_network_unchanged(drawing, mnist):
    chromium.draw(drawing, chromium.DIGITS[1])
    sample = drawing.find_elements(By.CSS_SELECTOR, "#samples input")[13]
    assert sample.get_attribute("aria-label").startswith("test image of 3")
    sample.find_element(By.XPATH, "..").click()
    image = mnist.test.images[np.flatnonzero(mnist.test.labels == 3)[1]]
    np.testing.assert_array_equal(network_input(drawing), image)
    assert drawing.find_element(By.ID, "confidence").text.endswith("sure; the label is 3")
    sample.send_keys(Keys.ARROW_RIGHT)  # the next one, by keyboard
    image = mnist.test.images[np.flatnonzero(mnist.test.labels == 4)[1]]
    np.testing.assert_array_equal(network_input(drawing), image)
    chromium.draw(drawing, chromium.DIGITS[1])  # replaces it
    assert "label" not in drawing.find_element(By.ID, "confidence").text
    assert not drawing.find_elements(By.CSS_SELECTOR, "#samples :checked")


def masks(driver) -> list[list[float]]:
    return evaluate(driver, "state.pass.masks.map((mask) => [...mask])")


def test_the_slider_is_the_rate_of_dropout(drawing, mnist_run):
    chromium.draw(drawing, chromium.DIGITS[2])
    image, before = network_input(drawing), page_logits(drawing)
    np.testing.assert_allclose(before, numpy_logits(mnist_run, image), atol=1e-4)
    rate = drawing.find_element(By.ID, "rate")
    rate.send_keys(Keys.ARROW_RIGHT * 8)
    factors = np.concatenate(masks(drawing))
    np.testing.assert_allclose(np.unique(factors), [0, 1 / 0.6])
    assert 30 < (factors == 0).sum() < 100  # of 160; within five standard deviations
    expected = numpy_logits(mnist_run, image, masks(drawing))
    np.testing.assert_allclose(page_logits(drawing), expected, atol=1e-4)
    assert np.abs(expected - before).max() > 0.1
    count = drawing.find_element(By.ID, "count").text
    assert count == f"{(factors == 0).sum()} of 160 hidden units are off."

    drawing.find_element(By.ID, "redraw").click()
    assert masks(drawing) != [factors[:96].tolist(), factors[96:].tolist()]
    expected = numpy_logits(mnist_run, image, masks(drawing))
    np.testing.assert_allclose(page_logits(drawing), expected, atol=1e-4)
    drawing.find_element(By.ID, "reset").click()
    np.testing.assert_allclose(page_logits(drawing), before, atol=1e-9)


def point(driver, layer: int, unit: int) -> ActionChains:
    """Actions that begin with the mouse in the middle of a cell."""
    box = driver.find_elements(By.CLASS_NAME, "cells")[layer]
    across, cell = evaluate(driver, "Object.values(grids[arguments[0]])", layer)
    x = (unit % across + 0.5) * cell - box.size["width"] / 2
    y = (unit // across + 0.5) * cell - box.size["height"] / 2
    return ActionChains(driver, duration=0).move_to_element_with_offset(box, round(x), round(y))


def test_a_unit_that_is_switched_off_contributes_nothing(drawing, mnist_run):
    chromium.draw(drawing, chromium.DIGITS[2])
    image, before = network_input(drawing), page_logits(drawing)
    values = evaluate(drawing, "state.pass.activations.map((layer) => [...layer])")[1:]
    units = [int(np.argmax(layer)) for layer in values]
    for layer, unit in enumerate(units):
        point(drawing, layer, unit).click().perform()
    factors = masks(drawing)
    off = [np.flatnonzero(np.equal(mask, 0)).tolist() for mask in factors]
    assert off == [[units[0]], [units[1]]]
    expected = numpy_logits(mnist_run, image, factors)
    np.testing.assert_allclose(page_logits(drawing), expected, atol=1e-4)
    assert np.abs(expected - before).max() > 0.1
    assert drawing.find_element(By.ID, "unit-name").text == f"Layer 2, unit {units[1]}: off"

    drawing.find_element(By.ID, "switch").click()
    np.testing.assert_array_equal(masks(drawing)[1], 1)
    box = drawing.find_elements(By.CLASS_NAME, "cells")[0]
    drawing.execute_script("select(0, arguments[0])", units[0])
    box.send_keys(Keys.ENTER)
    np.testing.assert_allclose(page_logits(drawing), before, atol=1e-9)


def votes(driver) -> np.ndarray:
    chromium.wait_for_frames(driver)
    cells = driver.find_elements(By.CSS_SELECTOR, "#votes td:last-child")
    return np.array([float(cell.text.replace("\N{MINUS SIGN}", "-")) for cell in cells])


def test_the_votes_of_the_last_layer_add_up_to_the_scores(drawing, mnist_run):
    chromium.draw(drawing, chromium.DIGITS[7])
    last = model.dense_layers(first_network(mnist_run).params, {})[-1]
    script = "[...Array(64).keys()].map((unit) => [...contributions(state.pass, 1, unit)])"
    total = np.sum(evaluate(drawing, script), axis=0)
    np.testing.assert_allclose(total + last.bias, page_logits(drawing), atol=1e-4)
    values = np.array(evaluate(drawing, "[...state.pass.activations[2]]"))
    unit = int(values.argmax())
    point(drawing, 1, unit).perform()
    np.testing.assert_allclose(votes(drawing), values[unit] * last.kernel[unit], atol=0.006)
    name = drawing.find_element(By.ID, "unit-name").text
    assert name == f"Layer 2, unit {unit}: value {values[unit]:.2f}"
    assert "exactly what it adds" in drawing.find_element(By.ID, "unit-text").text


def test_a_unit_shows_its_weights_in_red_and_blue(drawing, mnist_run):
    chromium.draw(drawing, chromium.DIGITS[7])
    box = drawing.find_elements(By.CLASS_NAME, "cells")[0]
    box.send_keys(Keys.HOME + Keys.ARROW_RIGHT * 5)
    script = "[...$('weights').getContext('2d').getImageData(0, 0, 28, 28).data]"
    rgba = np.reshape(evaluate(drawing, script), (784, 4))
    assert box.get_attribute("aria-valuetext").startswith("unit 5, value ")
    red, _, blue, alpha = rgba.T
    weights = np.asarray(model.dense_layers(first_network(mnist_run).params, {})[0].kernel)[:, 5]
    np.testing.assert_allclose(alpha, 255 * np.abs(weights) / np.abs(weights).max(), atol=1)
    strong = alpha > 30
    np.testing.assert_array_equal((red > blue)[strong], (weights > 0)[strong])
    assert "to first order" in drawing.find_element(By.ID, "unit-text").text


def test_the_strongest_connections_are_the_largest_products(drawing, mnist_run):
    chromium.draw(drawing, chromium.DIGITS[4])
    values = np.array(evaluate(drawing, "[...state.pass.activations[1]]"))
    after = np.array(evaluate(drawing, "[...state.pass.activations[2]]"))
    kernel = np.asarray(model.dense_layers(first_network(mnist_run).params, {})[1].kernel)
    products = values[:, None] * kernel * (after > 0)
    expected = np.sort(np.abs(products).ravel())[:-49:-1]
    connections = np.array(evaluate(drawing, "strongestConnections(state.pass, 1, 48)"))
    np.testing.assert_allclose(np.abs(connections[:, 0]), expected, rtol=1e-4)
    inputs, units = connections[:, 1].astype(int), connections[:, 2].astype(int)
    np.testing.assert_allclose(products[inputs, units], connections[:, 0], rtol=1e-4)

    script = "strongestConnections(state.pass, 1, 5, { unit: 3 })"
    connections = np.array(evaluate(drawing, script))
    expected = np.sort(np.abs(values * kernel[:, 3]))[:-6:-1]
    np.testing.assert_allclose(np.abs(connections[:, 0]), expected, rtol=1e-4)
    script = "strongestConnections(state.pass, 1, 5, { input: 0 })"
    connections = np.array(evaluate(drawing, script))
    assert set(connections[:, 1] if len(connections) else [0]) == {0}


def overlay_colours(driver) -> tuple[int, int]:
    """How many pixels of the overlay are red, and how many are blue."""
    _, _, code = evaluate(driver, "overlay.canvas.toDataURL()").partition(",")
    with Image.open(io.BytesIO(base64.b64decode(code))) as picture:
        red, _, blue, alpha = np.moveaxis(np.asarray(picture, int), 2, 0)
    opaque = alpha > 20
    return int((opaque & (red > blue + 60)).sum()), int((opaque & (blue > red + 60)).sum())


def test_connections_are_drawn_once_there_is_a_drawing(drawing):
    assert overlay_colours(drawing) == (0, 0)
    chromium.draw(drawing, chromium.DIGITS[4])
    assert min(overlay_colours(drawing)) > 300


def test_a_finger_draws_on_a_phone(drawing):
    chromium.set_screen(drawing, chromium.PHONE, 2)
    n_correct = 0
    for digit in (0, 1, 2, 7):
        chromium.draw(drawing, chromium.DIGITS[digit], "touch")
        n_correct += chromium.answer(drawing) == str(digit)
    assert n_correct >= 3
    assert evaluate(drawing, "[scrollX, scrollY]") == [0, 0]  # drawing does not scroll
    assert evaluate(drawing, "document.documentElement.scrollWidth") == 390
    heights = evaluate(drawing, "positions.map((position) => position(0)[1])")
    assert heights == sorted(heights)  # from top to bottom
    assert drawing.find_element(By.ID, "name").rect["y"] < 844


def tap(driver, element) -> None:
    """Taps the middle of an element with a finger."""
    finger = PointerInput(POINTER_TOUCH, "finger")
    actions = ActionBuilder(driver, mouse=finger, duration=0)
    actions.pointer_action.move_to(element).pointer_down().pointer_up()
    actions.perform()
    chromium.wait_for_frames(driver)


def test_a_finger_selects_a_unit_before_it_switches_it_off(drawing):
    chromium.set_screen(drawing, chromium.PHONE, 2)
    chromium.draw(drawing, chromium.DIGITS[3], "touch")
    box = drawing.find_elements(By.CLASS_NAME, "cells")[0]
    drawing.execute_script("arguments[0].scrollIntoView({ block: 'center' })", box)
    tap(drawing, box)
    WebDriverWait(drawing, 20, 0.1).until(lambda _: evaluate(drawing, "state.selected?.l === 0"))
    np.testing.assert_array_equal(np.concatenate(masks(drawing)), 1)
    drawing.execute_script("arguments[0].scrollIntoView()", drawing.find_element(By.ID, "unit"))
    tap(drawing, drawing.find_element(By.ID, "switch"))
    WebDriverWait(drawing, 20, 0.1).until(lambda _: np.count_nonzero(masks(drawing)[0]) == 95)


def contrast(driver, element) -> float:
    """The contrast of an element's text with the page's background, by the formula of WCAG 2."""

    def luminance(colour: str) -> float:
        shares = np.array(re.findall(r"[\d.]+", colour)[:3], float) / 255
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    script = "return getComputedStyle(arguments[0])[arguments[1]]"
    root = driver.find_element(By.TAG_NAME, "html")
    colours = [
        driver.execute_script(script, element, "color"),
        driver.execute_script(script, root, "backgroundColor"),
    ]
    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_in_light_and_dark(scheme, drawing):
    chromium.set_colour_scheme(drawing, scheme)
    chromium.draw(drawing, chromium.DIGITS[4])
    paper = evaluate(drawing, "getComputedStyle(document.documentElement).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    selector = "h1, h2, figcaption, legend, #intro, #confidence, .percent, #unit-text"
    for element in drawing.find_elements(By.CSS_SELECTOR, selector):
        assert contrast(drawing, element) >= 4.5
    inverted = evaluate(drawing, "getComputedStyle(pad).filter")
    assert inverted == ("none" if scheme == "light" else "invert(1)")


def test_the_page_works_in_a_notebook(driver, mnist_page, tmp_path):
    """A notebook puts the text of _repr_html_ into a cell."""
    cell = page.Page(mnist_page)._repr_html_()
    open_page(driver, f"<!doctype html><title>notebook</title><main>{cell}</main>", tmp_path)
    frame = driver.find_element(By.TAG_NAME, "iframe")
    assert frame.size["height"] == 780
    driver.switch_to.frame(frame)
    chromium.draw(driver, chromium.DIGITS[7])
    assert chromium.answer(driver) == "7"
    driver.switch_to.default_content()


def test_the_docstring_of_the_study_has_its_results():
    results = json.loads((EXPERIMENTS / "results" / "page.json").read_text())
    source = (EXPERIMENTS / "studies" / "page_in_browser.py").read_text()
    docstring = " ".join(source.split('"""')[1].split())
    assert docstring.startswith(results["claim"])
    assert f"at most {1e6 * results['difference']:.1f} millionths" in results["claim"]
    assert (results["images"], results["requests"]) == (1000, [])
    assert results["difference"] < 1e-4
    assert results["bytes"] < 3_000_000
    assert f"{results['bytes'] / 1e6:.2f} MB" in docstring
    for screen, answers in results["answers"].items():
        assert answers == [*DIGITS]
        milliseconds = results["milliseconds"][screen]
        assert np.quantile(milliseconds, 0.95) < 16
        assert f"{np.median(milliseconds):.1f} ms" in docstring


@pytest.mark.parametrize("name", ["page", "page-phone"])
def test_the_screenshots_are_small(name):
    file = EXPERIMENTS / "figures" / f"{name}.png"
    with Image.open(file) as picture:
        assert picture.size in (chromium.DESKTOP, (780, 1688))
    assert file.stat().st_size < 200_000
