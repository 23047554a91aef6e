"""5.1 millionths are the most by which a logit of the page differs from JAX's, n = 1,000 images.

The page of 784-512-512-10 weighs 2.76 MB and asks for nothing. A headless Chromium opens it on a
machine with 2 cores and no GPU, draws the ten digits with a scripted mouse, on a desktop's screen
and on a phone's, and all twenty are read rightly. An update, from reading the ink through the
forward pass to the last line drawn, takes 4.0 ms and 4.6 ms in the median, and less than 16 ms
in 95 of 100. results/page.json has all of it, and figures/page.png shows it, of

    mnist-jax train --dataset mnist --out RUN
    python experiments/studies/page_in_browser.py RUN --results experiments/results/page.json \\
        --figures experiments/figures
"""

import base64
import contextlib
import dataclasses
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Num, UInt8
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.interaction import POINTER_TOUCH
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from mnist_jax.config import InputError
from mnist_jax.preprocess import to_inputs
from mnist_jax.runs import report
from mnist_jax.runs.environment import device_name, versions
from mnist_jax.serve import page

Points = list[tuple[float, float]]
"""The way of a pen, in shares of the pad's width and height."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
)

DESKTOP, PHONE = (1280, 800), (390, 844)


def arc(
    x: float, y: float, across: float, down: float, start: float, end: float, points: int = 14
) -> Points:
    """Part of an ellipse around (x, y); degrees are clockwise from three o'clock."""
    angles = np.radians(np.linspace(start, end, points))
    return [(float(x + across * np.cos(a)), float(y + down * np.sin(a))) for a in angles]


DIGITS: dict[int, list[Points]] = {
    0: [arc(0.5, 0.5, 0.2, 0.32, -90, 280, 24)],
    1: [[(0.54, 0.18), (0.52, 0.5), (0.49, 0.82)]],
    2: [[*arc(0.49, 0.34, 0.18, 0.16, 190, 390), (0.3, 0.78), (0.52, 0.76), (0.74, 0.79)]],
    3: [[*arc(0.47, 0.34, 0.17, 0.16, 200, 440), *arc(0.47, 0.66, 0.2, 0.16, -80, 160)]],
    4: [[(0.34, 0.2), (0.29, 0.52), (0.7, 0.5)], [(0.64, 0.22), (0.6, 0.5), (0.57, 0.84)]],
    5: [[(0.68, 0.2), (0.38, 0.21), (0.35, 0.45), *arc(0.46, 0.62, 0.2, 0.19, -100, 150)]],
    6: [[(0.6, 0.17), (0.42, 0.36), *arc(0.49, 0.64, 0.16, 0.17, 200, 560, 24)]],
    7: [[(0.28, 0.24), (0.5, 0.23), (0.72, 0.22), (0.56, 0.52), (0.46, 0.84)]],
    8: [
        [
            *arc(0.5, 0.34, 0.14, 0.15, -30, -270, 16),
            *arc(0.5, 0.65, 0.17, 0.17, -90, 270, 22),
            *arc(0.5, 0.34, 0.14, 0.15, 90, -40, 10),
        ]
    ],
    9: [[*arc(0.5, 0.36, 0.16, 0.17, -10, -370, 24), (0.64, 0.6), (0.58, 0.84)]],
}
"""The ten digits, as one may draw them."""


def programs() -> tuple[str, str] | None:
    """Where Chromium and its driver are; None where they are not."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextlib.contextmanager
def browser(size: tuple[int, int] = DESKTOP) -> Iterator[webdriver.Chrome]:
    """A headless Chromium of its own, with a window of `size`."""
    found = programs()
    if found is None:
        raise InputError("Chromium or chromedriver is not here; install both")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, Service(found[1]))
        try:
            screen(driver, size)
            yield driver
        finally:
            driver.quit()


def screen(driver: webdriver.Chrome, size: tuple[int, int], ratio: int = 1) -> None:
    """Gives the page a screen of `size`; a narrow one is a phone's, with fingers."""
    phone = size[0] < 600
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": ratio, "mobile": phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
    settle(driver)


def colours(driver: webdriver.Chrome, scheme: str) -> None:
    """What a person prefers: light or dark."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    settle(driver)


def settle(driver: webdriver.Chrome) -> None:
    """Waits until what was asked for is shown: two frames."""
    two_frames = (
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    )
    driver.execute_async_script(two_frames)


def logits(
    driver: webdriver.Chrome, images: UInt8[np.ndarray, "n height width"]
) -> Num[np.ndarray, "n classes"]:
    """What the page's own network makes of `images`, with all its units on."""
    script = """
        const images = bytesOf(arguments[0]);
        const keep = hidden.map(({ units }) => new Float64Array(units).fill(1));
        const answers = [];
        for (let at = 0; at < images.length; at += rows * columns) {
          const image = images.subarray(at, at + rows * columns);
          answers.push([...forward(Float64Array.from(image, (grey) => grey / 255), keep).logits]);
        }
        return answers;
    """
    return np.array(driver.execute_script(script, base64.b64encode(images.tobytes()).decode()))


def draw(driver: webdriver.Chrome, strokes: Sequence[Points], pointer: str = "mouse") -> None:
    """Draws on an empty pad with a mouse, pen or touch."""
    driver.execute_script("take(null)")
    pad = driver.find_element(By.ID, "pad")
    width, height = pad.size["width"], pad.size["height"]
    actions = ActionBuilder(driver, mouse=PointerInput(pointer, pointer), duration=0)
    hand = actions.pointer_action
    for points in strokes:
        for i, (x, y) in enumerate(points):
            hand.move_to(pad, round((x - 0.5) * width), round((y - 0.5) * height))
            if i == 0:
                hand.pointer_down()
        hand.pointer_up()
    actions.perform()
    settle(driver)


def tap(driver: webdriver.Chrome, element: WebElement) -> None:
    """Touches the middle of an element."""
    finger = PointerInput(POINTER_TOUCH, "finger")
    touch = ActionBuilder(driver, mouse=finger, duration=0)
    touch.pointer_action.move_to(element).pointer_down().pointer_up()
    touch.perform()
    settle(driver)


def answer(driver: webdriver.Chrome) -> str:
    """The class that the page names."""
    return driver.find_element(By.ID, "name").text


def requests(driver: webdriver.Chrome) -> list[str]:
    """The addresses that the page asked for since the last call, other than its own file."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    found = [str(params["request"]["url"]) for params in sent]
    return [url for url in found if not url.startswith(("file:", "data:", "about:"))]


def stopwatch(driver: webdriver.Chrome) -> None:
    """Notes in `took` how many milliseconds the page takes for each update, from ink to picture."""
    driver.execute_script("""
        window.took = [];
        const plain = update;
        update = () => {
          const before = performance.now();
          plain();
          took.push(performance.now() - before);
        };
    """)


def picture(driver: webdriver.Chrome, file: Path, colors: int = 128) -> None:
    """Saves what is on the screen, in few enough colours to be small."""
    with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as shot:
        few = shot.convert("RGB").quantize(colors, dither=Image.Dither.NONE)
        few.save(file, optimize=True)


@dataclasses.dataclass(frozen=True)
class Options:
    """What the page of a run is worth, in a headless Chromium."""

    run: tyro.conf.Positional[Path]
    """A run folder that train made, of MNIST."""
    data_dir: Path | None = None
    """Where the data are now, if they have moved since."""
    images: int = 1000
    """How many test images the page reads."""
    results: Path | None = None
    """A JSON file to write."""
    figures: Path | None = None
    """A folder for page.png and page-phone.png."""


def main() -> None:
    """Measures, says what came of it, and keeps the numbers and the pictures."""
    options = tyro.cli(Options)
    run = report.load_run(options.run)
    dataset = report.load_data(run, options.data_dir)
    images = dataset.test.images[: options.images]
    content = page.html(run, dataset).encode()
    network = report.first_seed(run)
    inputs = to_inputs(images)
    expected, _ = run.recipe.model.apply(network.weights, network.model_state, inputs, None)
    with tempfile.TemporaryDirectory() as folder, browser() as driver:
        file = Path(folder) / "page.html"
        file.write_bytes(content)
        requests(driver)  # what the browser asked for by itself
        driver.get(file.as_uri())
        settle(driver)
        difference = float(np.abs(logits(driver, images) - np.asarray(expected)).max())
        answers, took = {}, {}
        for name, size, ratio in (("desktop", DESKTOP, 1), ("phone", PHONE, 2)):
            driver.refresh()
            screen(driver, size, ratio)
            stopwatch(driver)
            answers[name] = []
            for strokes in DIGITS.values():
                draw(driver, strokes)
                answers[name].append(answer(driver))
            took[name] = np.round(driver.execute_script("return took"), 2).tolist()
        asked = requests(driver)
        if options.figures:
            colours(driver, "dark")
            draw(driver, DIGITS[5])
            picture(driver, options.figures / "page-phone.png")
            colours(driver, "light")
            screen(driver, DESKTOP)
            draw(driver, DIGITS[2])
            busiest = "state.pass.values.at(-1)"
            driver.execute_script(
                f"choose(hidden.length - 1, {busiest}.indexOf(Math.max(...{busiest}))); leave()"
            )
            settle(driver)
            picture(driver, options.figures / "page.png")
        chromium = driver.capabilities["browserVersion"]
    right = sum(name == str(digit) for digit, name in enumerate(answers["desktop"]))
    slowest = [np.median(took["desktop"]), np.quantile(took["desktop"], 0.95)]
    claim = (
        f"{1e6 * difference:.1f} millionths are the most by which a logit of the page differs from "
        f"JAX's, n = {len(images):,} images"
    )
    print(
        f"{claim}; {len(content) / 1e6:.2f} MB, {right} of 10 drawn digits read rightly, "
        f"{slowest[0]:.1f} ms an update ({slowest[1]:.1f} ms or less of 95 %), "
        f"{len(asked)} requests"
    )
    if options.results:
        kept: dict[str, Any] = {"claim": claim, "difference": difference, "images": len(images)}
        kept |= {"bytes": len(content), "answers": answers, "requests": asked}
        kept |= {"milliseconds": took, "device": device_name(), "chromium": chromium}
        options.results.write_text(json.dumps({**kept, "versions": versions()}) + "\n")


if __name__ == "__main__":
    main()
