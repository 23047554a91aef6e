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
import page_in_browser as hands
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from mnist_jax import model, population
from mnist_jax.config import Activation, Config, InputError
from mnist_jax.data import Dataset, Examples
from mnist_jax.fit import fit
from mnist_jax.preprocess import to_inputs
from mnist_jax.runs import report
from mnist_jax.runs.report import Run
from mnist_jax.serve import page
from mnist_jax.serve.digit import centre_by_mass, to_digit
from mnist_jax.train import default_recipe
from tests.conftest import tiny_arrays
from tests.test_cli import call

DIGITS = tuple("0123456789")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def untrained(shape=(28, 28), classes=DIGITS, test=60, **options) -> tuple[Run, Dataset]:
    """A run with random weights and biases, and random data for it."""
    train, train_labels, images, labels = tiny_arrays(40, test, *shape, classes=len(classes))
    config = Config(dataset="local", **options)
    recipe = default_recipe(config, shape[0] * shape[1], len(classes), 200)
    states = jax.eval_shape(partial(population.init, recipe), population.keys(config.all_seeds))
    random = np.random.default_rng(7)

    def drawn(leaf):
        scale = (2 / leaf.shape[1]) ** 0.5 if leaf.ndim == 3 else 0.3  # a kernel, or a bias
        return jnp.asarray(scale * random.standard_normal(leaf.shape, np.float32))

    states = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), states)._replace(
        params=jax.tree.map(drawn, states.params)
    )
    examples = Examples(train, train_labels), Examples(images, labels)
    return (
        Run(Path("run"), config, shape, classes, (), recipe, states),
        Dataset("local", *examples, classes, ()),
    )


def told(html: str) -> dict:
    """The data in a page."""
    return json.loads(re.search(r'<script id="about" .*?>(.*?)</script>', html, re.S)[1])


def decoded(array: dict) -> np.ndarray:
    code = base64.b64decode(array["code"])
    steps = [int.from_bytes(code[i : i + 3], signed=True) for i in range(0, len(code), 3)]
    return array["step"] * np.array(steps, float)


def apply(run: Run, images: np.ndarray) -> np.ndarray:
    """JAX's logits of the first seed."""
    state = report.first_seed(run)
    return np.asarray(run.recipe.model.apply(state.params, {}, to_inputs(images), None)[0])


# As text


def test_every_weight_is_there_to_24_bits():
    run, dataset = untrained(hidden=(40, 30))
    layers = told(page.html(run, dataset))["layers"]
    kept = model.layers(report.first_seed(run).params, {})
    assert [layer["units"] for layer in layers] == [40, 30, 10]
    for layer, expected in zip(layers, kept, strict=True):
        for name in ("kernel", "bias"):
            weights = np.asarray(getattr(expected, name), float).ravel()
            bound = 0.5001 * np.abs(weights).max() / (2**23 - 1)
            np.testing.assert_allclose(decoded(layer[name]), weights, rtol=0, atol=bound)


def test_weights_that_are_all_zero_stay_so():
    run, dataset = untrained(hidden=(3,))
    zeros = jax.tree.map(jnp.zeros_like, run.states.params)
    run = run._replace(states=run.states._replace(params=zeros))
    layers = told(page.html(run, dataset))["layers"]
    assert not any(decoded(layer["kernel"]).any() for layer in layers)


def test_the_default_network_takes_less_than_3_megabytes_and_no_address():
    html = page.html(*untrained(hidden=Config.hidden))
    assert len(html.encode()) < 3_000_000
    template = html.replace(told_text(html), "")
    assert not re.search(r"https?:|url\(|@import|\bsrc=|fetch\(|XMLHttp|WebSocket", template)
    assert "default-src 'none'" in template


def told_text(html: str) -> str:
    return html.partition('type="application/json">')[2].partition("</script>")[0]


def test_the_page_says_what_it_is_of():
    run, dataset = untrained(hidden=(5,), seed=3, activation="tanh")
    about = told(page.html(run, dataset))
    wrong = int((apply(run, dataset.test.images).argmax(1) != dataset.test.labels).sum())
    expected = ("local", 40, 60, wrong, 3, "tanh", [28, 28], [*DIGITS])
    assert tuple(about.values())[:8] == expected


def test_it_offers_some_images_of_each_class_and_some_that_are_misread():
    run, dataset = untrained(hidden=(5,))
    samples = told(page.html(run, dataset))["samples"]
    assert [sample["label"] for sample in samples[:30]] == [*range(10)] * 3
    images = [np.frombuffer(base64.b64decode(sample["pixels"]), np.uint8) for sample in samples]
    np.testing.assert_array_equal(images[:30], dataset.test.images[:30].reshape(30, -1))
    answers = apply(run, dataset.test.images).argmax(1)
    wrong = [i for i in range(30, 60) if answers[i] != dataset.test.labels[i]][:10]
    np.testing.assert_array_equal(images[30:], dataset.test.images[wrong].reshape(len(wrong), -1))
    assert [sample["read"] for sample in samples] == answers[[*range(30), *wrong]].tolist()


def test_of_many_classes_it_offers_each_once():
    names = tuple(f"c{i}" for i in range(62))
    run, dataset = untrained((5, 4), names, test=200, hidden=(5,))
    samples = told(page.html(run, dataset))["samples"]
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
    monkeypatch.setattr(page, "MOST_NUMBERS", 1000)
    with pytest.raises(InputError, match=r"has 2,395 weights; a page holds 1,000$"):
        page.html(*untrained(hidden=(3,)))


# As a command


@pytest.fixture(scope="module")
def mnist_run(mnist, mnist_dir, tmp_path_factory) -> Run:
    """A small network that reads well what is drawn."""
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


def test_the_command_writes_where_it_is_told(mnist_run, tmp_path, capsys):
    file = tmp_path / "network.html"
    assert call(capsys, "page", mnist_run.path, "--out", file)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["network.html"]
    assert told(file.read_text(encoding="utf-8"))["dataset"] == "mnist"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["TMP/none"], "is no run folder"),
        (["RUN", "--out", "TMP"], "cannot be used: it is a folder; name a file"),
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
    if hands.programs() is None:
        pytest.skip("install Chromium and chromedriver to run this test")
    with hands.browser() as driver:
        yield driver


@pytest.fixture
def driver(browser):
    """The browser, as wide as a desk, in light colours; the page may not complain."""
    hands.screen(browser, hands.DESKTOP)
    hands.colours(browser, "light")
    browser.get_log("browser")
    hands.requests(browser)
    yield browser
    assert browser.get_log("browser") == []
    assert hands.requests(browser) == []


def visit(driver, html: str, folder: Path) -> None:
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    driver.get(file.as_uri())
    hands.settle(driver)


@pytest.fixture
def drawing(driver, mnist_page, tmp_path):
    """The browser, with the page of a trained network open."""
    visit(driver, mnist_page, tmp_path)
    return driver


def look(driver, script: str, *args):
    """What a line of the page's own language says, once all is shown."""
    hands.settle(driver)
    return driver.execute_script(f"return {script}", *args)


def seen(driver) -> np.ndarray:
    """What the network sees."""
    shape = look(driver, "[rows, columns]")
    return np.array(look(driver, "[...state.image]")).reshape(shape)


def shown_logits(driver) -> np.ndarray:
    return np.array(look(driver, "[...state.pass.logits]"))


def by_hand(run: Run, pixels: np.ndarray, keep: list[list[float]] | None = None) -> np.ndarray:
    """The logits of one image in NumPy, with a factor for each hidden unit."""
    values = pixels.ravel() / 255
    *hidden, last = model.layers(report.first_seed(run).params, {})
    for layer, factors in zip(hidden, keep or [[1.0]] * len(hidden), strict=True):
        kernel, bias = (np.asarray(array, float) for array in layer)
        values = np.maximum(values @ kernel + bias, 0) * factors
    return values @ np.asarray(last.kernel, float) + np.asarray(last.bias, float)


def test_its_logits_are_those_of_jax_on_1000_test_images(driver, mnist, mnist_run, tmp_path):
    default, _ = untrained(hidden=Config.hidden)
    for run in (mnist_run, default):
        visit(driver, page.html(run, mnist), tmp_path)
        found = hands.logits(driver, mnist.test.images[:1000])
        expected = apply(run, mnist.test.images[:1000])
        assert expected.std() > 0.5
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("hidden", [(), (9, 8, 7, 6, 5, 4)])
def test_any_depth(hidden, driver, tmp_path):
    run, dataset = untrained((5, 4), hidden=hidden)
    visit(driver, page.html(run, dataset), tmp_path)
    images = dataset.test.images
    np.testing.assert_allclose(hands.logits(driver, images), apply(run, images), atol=1e-4)
    hands.draw(driver, hands.DIGITS[3])
    assert hands.answer(driver) == str(by_hand(run, seen(driver)).argmax())
    assert len(driver.find_elements(By.CLASS_NAME, "cells")) == len(hidden)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_any_activation_and_what_one_sees_inside_a_unit(activation, driver, tmp_path):
    """Logits, votes and gradients are those that JAX finds."""
    names = ("</script>", "T-shirt/top", *"abcdefghij")
    run, dataset = untrained((5, 4), names, hidden=(7, 6), activation=activation)
    visit(driver, page.html(run, dataset), tmp_path)
    images = dataset.test.images
    np.testing.assert_allclose(hands.logits(driver, images), apply(run, images), atol=1e-4)

    first, second, last = model.layers(report.first_seed(run).params, {})
    act = getattr(jax.nn, activation)
    pixels = jnp.asarray(to_inputs(images[:1])[0])
    sums = pixels @ first.kernel + first.bias

    def inner(pixels):
        return act(pixels @ first.kernel + first.bias) @ second.kernel + second.bias

    def rest(values):
        return act(values @ second.kernel + second.bias) @ last.kernel + last.bias

    driver.execute_script("take(0)")
    change = jnp.zeros(7).at[2].set(act(sums)[2])
    _, expected = jax.jvp(rest, (act(sums),), (change,))
    np.testing.assert_allclose(look(driver, "[...votes(state.pass, 0, 2)]"), expected, atol=1e-4)
    expected = act(inner(pixels))[3] * last.kernel[3]
    np.testing.assert_allclose(look(driver, "[...votes(state.pass, 1, 3)]"), expected, atol=1e-4)
    np.testing.assert_allclose(
        look(driver, "[...pull(state.pass, 0, 2)]"), first.kernel[:, 2], atol=1e-6
    )
    expected = jax.grad(lambda pixels: inner(pixels)[3])(pixels)
    np.testing.assert_allclose(look(driver, "[...pull(state.pass, 1, 3)]"), expected, atol=1e-4)

    # Of twelve classes it shows the ten that are likeliest, under their names.
    likeliest = np.argsort(-apply(run, images[:1])[0])[:10]
    bars = look(driver, "[...document.querySelectorAll('#bars button > :first-child')]")
    assert [bar.text for bar in bars] == [names[i] for i in likeliest]


def test_drawn_digits_are_read_at_once(drawing):
    """Far within a frame; experiments/studies/page_in_browser.py measures how far."""
    hands.stopwatch(drawing)
    right = 0
    for digit, strokes in hands.DIGITS.items():
        hands.draw(drawing, strokes)
        right += hands.answer(drawing) == str(digit)
    assert right >= 8  # all ten by the default network
    took = look(drawing, "took")
    assert len(took) > 50
    assert np.median(took) < 16
    assert "sure" in drawing.find_element(By.ID, "sure").text


def test_ten_bars_say_how_sure_it_is(drawing, mnist_run):
    hands.draw(drawing, hands.DIGITS[8])
    odds = np.exp(by_hand(mnist_run, seen(drawing)))
    bars = drawing.find_elements(By.CSS_SELECTOR, "#bars button")
    for digit, (bar, share) in enumerate(zip(bars, odds / odds.sum(), strict=True)):
        assert bar.text.split("\n") == [str(digit), f"{np.floor(1000 * share) / 10} %"]
        track, fill = (bar.find_element(By.CLASS_NAME, name).size for name in ("track", "fill"))
        assert fill["width"] == pytest.approx(share * track["width"], abs=1.5)
    (first,) = drawing.find_elements(By.CLASS_NAME, "first")
    assert first is not None
    assert first.text.startswith(hands.answer(drawing))


def canvas_ink(driver) -> np.ndarray:
    size = look(driver, "[pad.height, pad.width]")
    code = look(driver, "btoa(inkOf(pad).reduce((a, b) => a + String.fromCharCode(b), ''))")
    return np.frombuffer(base64.b64decode(code), np.uint8).reshape(size)


def centred(ink: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """What digit.py makes of the box of the ink."""
    rows, columns = (np.flatnonzero((ink > 0.3 * ink.max()).any(axis)) for axis in (1, 0))
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return centre_by_mass(box / ink.max(), shape).astype(int)


@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (40, 30)])
def test_ink_becomes_the_image_that_a_photo_of_it_does(shape, driver, tmp_path):
    visit(driver, page.html(*untrained(shape, hidden=())), tmp_path)
    for digit in (1, 5):
        hands.draw(driver, hands.DIGITS[digit])
        assert np.abs(seen(driver) - centred(canvas_ink(driver), shape)).max() <= 1
    random = np.random.default_rng(0)
    pages = np.zeros((60, 120, 100), np.uint8)
    for ink in pages:  # blocks of all sizes, from a speck to a page, lighter and darker
        top, left = random.integers(0, 100), random.integers(0, 80)
        height, width = random.integers(1, 119 - top), random.integers(1, 99 - left)
        ink[top : top + height, left : left + width] = random.integers(100, 256)
        ink[top : top + height // 2, left : left + width // 2] = random.integers(60, 256)
    codes = [base64.b64encode(ink.tobytes()).decode() for ink in pages]
    found = look(driver, "arguments[0].map((code) => [...toImage(bytesOf(code), 100)])", codes)
    for ink, image in zip(pages, found, strict=True):
        assert np.abs(np.reshape(image, shape) - centred(ink, shape)).max() <= 1


def test_ink_of_a_drawing_is_read_as_a_photo_of_it_is(drawing):
    """Whatever digit.py does to find the ink, it finds about what the page knows."""
    hands.draw(drawing, hands.DIGITS[3])
    expected = to_digit(255 - canvas_ink(drawing), (28, 28)).astype(int)
    assert np.abs(seen(drawing) - expected).max() <= 30


def test_an_empty_pad_asks_for_a_drawing(drawing):
    assert drawing.find_element(By.ID, "hint").text == "Draw here"
    assert look(drawing, "state.image") is None
    hands.draw(drawing, hands.DIGITS[1])
    assert drawing.find_element(By.ID, "hint").text == ""
    drawing.find_element(By.ID, "clear").click()
    assert look(drawing, "state.image") is None
    assert not any(bar.text.endswith("%") for bar in drawing.find_elements(By.TAG_NAME, "button"))


def test_one_can_draw_with_the_keyboard(drawing, mnist_run):
    pad = drawing.find_element(By.ID, "pad")
    ActionChains(drawing, duration=0).send_keys(Keys.TAB).perform()
    assert drawing.switch_to.active_element == pad
    assert drawing.find_element(By.ID, "keys").is_displayed()
    assert drawing.find_element(By.ID, "pen").is_displayed()
    pad.send_keys(Keys.ARROW_LEFT * 2)
    assert look(drawing, "state.image") is None  # the pen is up
    pad.send_keys(" " + Keys.ARROW_DOWN * 14 + " " + Keys.ARROW_RIGHT * 9)
    assert hands.answer(drawing) == "1"
    rows = np.flatnonzero(canvas_ink(drawing).any(axis=1))
    assert np.ptp(rows) == pytest.approx(14 * 12 + 30, abs=3)  # 14 of 28 steps, and the pen
    said = drawing.find_element(By.ID, "said")
    WebDriverWait(drawing, 20, 0.1).until(
        lambda _: said.get_attribute("textContent").startswith("1, ")
    )
    pad.send_keys(Keys.ESCAPE)
    assert look(drawing, "state.image") is None


def test_everything_can_be_reached_by_keyboard(drawing):
    stops = []
    for _ in range(25):
        ActionChains(drawing, duration=0).send_keys(Keys.TAB).perform()
        element = drawing.switch_to.active_element
        stops.append(element.get_attribute("id") or element.get_attribute("class") or element.text)
    assert {"pad", "clear", "cells", "rate"} <= set(stops)
    assert "0" in stops


def test_a_test_image_is_seen_as_it_is(drawing, mnist):
    hands.draw(drawing, hands.DIGITS[1])
    sample = drawing.find_elements(By.CSS_SELECTOR, "#samples input")[13]
    assert sample.get_attribute("aria-label").startswith("test image of 3")
    sample.find_element(By.XPATH, "..").click()
    image = mnist.test.images[np.flatnonzero(mnist.test.labels == 3)[1]]
    np.testing.assert_array_equal(seen(drawing), image)
    assert drawing.find_element(By.ID, "sure").text.endswith("sure; it is 3")
    sample.send_keys(Keys.ARROW_RIGHT)  # the next one, by keyboard
    image = mnist.test.images[np.flatnonzero(mnist.test.labels == 4)[1]]
    np.testing.assert_array_equal(seen(drawing), image)
    hands.draw(drawing, hands.DIGITS[1])  # replaces it
    assert "it is" not in drawing.find_element(By.ID, "sure").text
    assert not drawing.find_elements(By.CSS_SELECTOR, "#samples :checked")


def kept(driver) -> list[list[float]]:
    return look(driver, "state.pass.keep.map((keep) => [...keep])")


def test_the_slider_drops_units_as_dropout_does(drawing, mnist_run):
    hands.draw(drawing, hands.DIGITS[2])
    image, before = seen(drawing), shown_logits(drawing)
    np.testing.assert_allclose(before, by_hand(mnist_run, image), atol=1e-4)
    rate = drawing.find_element(By.ID, "rate")
    rate.send_keys(Keys.ARROW_RIGHT * 8)
    factors = np.concatenate(kept(drawing))
    np.testing.assert_allclose(np.unique(factors), [0, 1 / 0.6])
    assert 30 < (factors == 0).sum() < 100  # of 160; within five standard deviations
    expected = by_hand(mnist_run, image, kept(drawing))
    np.testing.assert_allclose(shown_logits(drawing), expected, atol=1e-4)
    assert np.abs(expected - before).max() > 0.1
    count = drawing.find_element(By.ID, "count").text
    assert count == f"{(factors == 0).sum()} of 160 hidden units are off."

    drawing.find_element(By.ID, "redraw").click()
    assert kept(drawing) != [factors[:96].tolist(), factors[96:].tolist()]
    expected = by_hand(mnist_run, image, kept(drawing))
    np.testing.assert_allclose(shown_logits(drawing), expected, atol=1e-4)
    drawing.find_element(By.ID, "reset").click()
    np.testing.assert_allclose(shown_logits(drawing), before, atol=1e-9)


def point(driver, layer: int, unit: int) -> ActionChains:
    """The mouse at the middle of a cell."""
    box = driver.find_elements(By.CLASS_NAME, "cells")[layer]
    across, cell = look(driver, "Object.values(grids[arguments[0]])", layer)
    x = (unit % across + 0.5) * cell - box.size["width"] / 2
    y = (unit // across + 0.5) * cell - box.size["height"] / 2
    return ActionChains(driver, duration=0).move_to_element_with_offset(box, round(x), round(y))


def test_a_unit_switched_off_says_nothing(drawing, mnist_run):
    hands.draw(drawing, hands.DIGITS[2])
    image, before = seen(drawing), shown_logits(drawing)
    values = look(drawing, "state.pass.values.map((values) => [...values])")[1:]
    units = [int(np.argmax(layer)) for layer in values]
    for layer, unit in enumerate(units):
        point(drawing, layer, unit).click().perform()
    factors = kept(drawing)
    off = [[unit for unit, factor in enumerate(keep) if not factor] for keep in factors]
    assert off == [[units[0]], [units[1]]]
    expected = by_hand(mnist_run, image, factors)
    np.testing.assert_allclose(shown_logits(drawing), expected, atol=1e-4)
    assert np.abs(expected - before).max() > 0.1
    assert drawing.find_element(By.ID, "unit-name").text == f"Layer 2, unit {units[1]}: off"

    drawing.find_element(By.ID, "switch").click()
    np.testing.assert_array_equal(kept(drawing)[1], 1)
    box = drawing.find_elements(By.CLASS_NAME, "cells")[0]
    drawing.execute_script("choose(0, arguments[0])", units[0])
    box.send_keys(Keys.ENTER)
    np.testing.assert_allclose(shown_logits(drawing), before, atol=1e-9)


def votes_shown(driver) -> np.ndarray:
    hands.settle(driver)
    cells = driver.find_elements(By.CSS_SELECTOR, "#votes td:last-child")
    return np.array([float(cell.text.replace("\N{MINUS SIGN}", "-")) for cell in cells])


def test_the_votes_of_the_last_layer_add_up_to_the_scores(drawing, mnist_run):
    hands.draw(drawing, hands.DIGITS[7])
    last = model.layers(report.first_seed(mnist_run).params, {})[-1]
    cast = look(drawing, "[...Array(64).keys()].map((unit) => [...votes(state.pass, 1, unit)])")
    np.testing.assert_allclose(np.sum(cast, 0) + last.bias, shown_logits(drawing), atol=1e-4)
    values = np.array(look(drawing, "[...state.pass.values[2]]"))
    unit = int(values.argmax())
    point(drawing, 1, unit).perform()
    np.testing.assert_allclose(votes_shown(drawing), values[unit] * last.kernel[unit], atol=0.006)
    named = drawing.find_element(By.ID, "unit-name").text
    assert named == f"Layer 2, unit {unit}: value {values[unit]:.2f}"
    assert "exactly what it adds" in drawing.find_element(By.ID, "unit-text").text


def test_a_unit_shows_its_weights_in_red_and_blue(drawing, mnist_run):
    hands.draw(drawing, hands.DIGITS[7])
    box = drawing.find_elements(By.CLASS_NAME, "cells")[0]
    box.send_keys(Keys.HOME + Keys.ARROW_RIGHT * 5)
    picture = look(drawing, "[...$('weights').getContext('2d').getImageData(0, 0, 28, 28).data]")
    assert box.get_attribute("aria-valuetext").startswith("unit 5, value ")
    red, _, blue, alpha = np.reshape(picture, (784, 4)).T
    weights = np.asarray(model.layers(report.first_seed(mnist_run).params, {})[0].kernel)[:, 5]
    np.testing.assert_allclose(alpha, 255 * np.abs(weights) / np.abs(weights).max(), atol=1)
    strong = alpha > 30
    np.testing.assert_array_equal((red > blue)[strong], (weights > 0)[strong])
    assert "to first order" in drawing.find_element(By.ID, "unit-text").text


def test_the_strongest_connections_are_the_largest_products(drawing, mnist_run):
    hands.draw(drawing, hands.DIGITS[4])
    values = np.array(look(drawing, "[...state.pass.values[1]]"))
    after = np.array(look(drawing, "[...state.pass.values[2]]"))
    kernel = np.asarray(model.layers(report.first_seed(mnist_run).params, {})[1].kernel)
    products = values[:, None] * kernel * (after > 0)
    expected = np.sort(np.abs(products).ravel())[:-49:-1]
    found = np.array(look(drawing, "strongest(state.pass, 1, 48)"))
    np.testing.assert_allclose(np.abs(found[:, 0]), expected, rtol=1e-4)
    inputs, units = found[:, 1].astype(int), found[:, 2].astype(int)
    np.testing.assert_allclose(products[inputs, units], found[:, 0], rtol=1e-4)
    found = np.array(look(drawing, "strongest(state.pass, 1, 5, { unit: 3 })"))
    expected = np.sort(np.abs(values * kernel[:, 3]))[:-6:-1]
    np.testing.assert_allclose(np.abs(found[:, 0]), expected, rtol=1e-4)
    found = np.array(look(drawing, "strongest(state.pass, 1, 5, { input: 0 })"))
    assert set(found[:, 1] if len(found) else [0]) == {0}


def overlay_colours(driver) -> tuple[int, int]:
    """How many pixels of the overlay are red, and how many are blue."""
    _, _, code = look(driver, "overlay.canvas.toDataURL()").partition(",")
    with Image.open(io.BytesIO(base64.b64decode(code))) as picture:
        red, _, blue, alpha = np.moveaxis(np.asarray(picture, int), 2, 0)
    opaque = alpha > 20
    return int((opaque & (red > blue + 60)).sum()), int((opaque & (blue > red + 60)).sum())


def test_connections_are_drawn_once_there_is_a_drawing(drawing):
    assert overlay_colours(drawing) == (0, 0)
    hands.draw(drawing, hands.DIGITS[4])
    assert min(overlay_colours(drawing)) > 300


def test_a_finger_draws_on_a_phone(drawing):
    hands.screen(drawing, hands.PHONE, 2)
    right = 0
    for digit in (0, 1, 2, 7):
        hands.draw(drawing, hands.DIGITS[digit], "touch")
        right += hands.answer(drawing) == str(digit)
    assert right >= 3
    assert look(drawing, "[scrollX, scrollY]") == [0, 0]  # drawing scrolls nothing
    assert look(drawing, "document.documentElement.scrollWidth") == 390
    places = look(drawing, "places.map((place) => place(0))")
    heights = [y for _, y in places]
    assert heights == sorted(heights)  # from top to bottom
    assert drawing.find_element(By.ID, "name").rect["y"] < 844


def test_a_finger_looks_before_it_switches_off(drawing):
    hands.screen(drawing, hands.PHONE, 2)
    hands.draw(drawing, hands.DIGITS[3], "touch")
    box = drawing.find_elements(By.CLASS_NAME, "cells")[0]
    drawing.execute_script("arguments[0].scrollIntoView({ block: 'center' })", box)
    hands.tap(drawing, box)
    WebDriverWait(drawing, 20, 0.1).until(lambda _: look(drawing, "state.chosen?.l === 0"))
    np.testing.assert_array_equal(np.concatenate(kept(drawing)), 1)
    drawing.execute_script("arguments[0].scrollIntoView()", drawing.find_element(By.ID, "unit"))
    hands.tap(drawing, drawing.find_element(By.ID, "switch"))
    WebDriverWait(drawing, 20, 0.1).until(lambda _: np.count_nonzero(kept(drawing)[0]) == 95)


def contrast(driver, element) -> float:
    """By the formula of WCAG 2, of the text of an element on the page's paper."""

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
def test_it_can_be_read_in_light_and_dark(scheme, drawing):
    hands.colours(drawing, scheme)
    hands.draw(drawing, hands.DIGITS[4])
    paper = look(drawing, "getComputedStyle(document.documentElement).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    for name in ("h1", "h2", "figcaption", "legend", "#intro", "#sure", ".percent", "#unit-text"):
        for element in drawing.find_elements(By.CSS_SELECTOR, name):
            assert contrast(drawing, element) >= 4.5
    inverted = look(drawing, "getComputedStyle(pad).filter")
    assert inverted == ("none" if scheme == "light" else "invert(1)")


def test_it_lives_in_a_notebook(driver, mnist_page, tmp_path):
    """A notebook puts what _repr_html_ says into a cell."""
    cell = page.Page(mnist_page)._repr_html_()
    visit(driver, f"<!doctype html><title>notebook</title><main>{cell}</main>", tmp_path)
    frame = driver.find_element(By.TAG_NAME, "iframe")
    assert frame.size["height"] == 780
    driver.switch_to.frame(frame)
    hands.draw(driver, hands.DIGITS[7])
    assert hands.answer(driver) == "7"
    driver.switch_to.default_content()


def test_the_experiment_is_what_its_docstring_claims():
    found = json.loads((EXPERIMENTS / "results" / "page.json").read_text())
    claim = " ".join(
        (EXPERIMENTS / "studies" / "page_in_browser.py").read_text().split('"""')[1].split()
    )
    assert claim.startswith(found["claim"])
    assert found["claim"].startswith(f"{1e6 * found['difference']:.1f} millionths are")
    assert (found["images"], found["requests"]) == (1000, [])
    assert found["difference"] < 1e-4
    assert found["bytes"] < 3_000_000
    assert f"{found['bytes'] / 1e6:.2f} MB" in claim
    for kind, answers in found["answers"].items():
        assert answers == [*DIGITS]
        took = found["milliseconds"][kind]
        assert np.quantile(took, 0.95) < 16
        assert f"{np.median(took):.1f} ms" in claim


@pytest.mark.parametrize("name", ["page", "page-phone"])
def test_the_pictures_are_there_and_small(name):
    file = EXPERIMENTS / "figures" / f"{name}.png"
    with Image.open(file) as picture:
        assert picture.size in (hands.DESKTOP, (780, 1688))
    assert file.stat().st_size < 200_000
