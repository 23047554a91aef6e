"""The page's logits differ from JAX's by at most 5.1 millionths, n = 1,000 images.

The page of 784-512-512-10 has 2.76 MB and makes no requests. A headless Chromium opens it on a
machine with 2 cores and no GPU, and draws the ten digits with a scripted mouse, once on a desktop's
screen and once on a phone's. All twenty are read correctly. An update, from reading the strokes
through the forward pass to the last line drawn, takes 4.0 ms and 4.6 ms on these screens (medians),
and less than 16 ms in 95 of 100 cases. results/page.json has all the numbers, and figures/page.png
is a screenshot. To measure again:

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

import numpy as np
import tyro
from jaxtyping import Num, UInt8
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By

from mnist_jax.errors import InputError
from mnist_jax.preprocess import to_inputs
from mnist_jax.runs.metadata import device_name, versions
from mnist_jax.runs.results import (
    first_network,
    load_data,
    load_run,
)
from mnist_jax.serve import page

Points = list[tuple[float, float]]
"""The path of a pen, in shares of the pad's width and height."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--hide-scrollbars",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
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
"""Strokes that draw each digit."""


def find_programs() -> tuple[str, str] | None:
    """The paths of Chromium and chromedriver, or None if one is not installed."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A new headless Chromium with an empty profile and a desktop's screen."""
    programs = find_programs()
    if programs is None:
        raise InputError("Chromium or chromedriver is not installed; install both")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, Service(programs[1]))
        try:
            set_screen(driver, DESKTOP)
            yield driver
        finally:
            driver.quit()


def set_screen(driver: webdriver.Chrome, size: tuple[int, int], ratio: int = 1) -> None:
    """Sets the screen to `size` in CSS pixels; below a width of 600 it is a phone's, with touch."""
    phone = size[0] < 600
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": ratio, "mobile": phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
    wait_for_frames(driver)


def set_colour_scheme(driver: webdriver.Chrome, scheme: str) -> None:
    """Sets the colours that the user prefers: "light" or "dark"."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    wait_for_frames(driver)


def wait_for_frames(driver: webdriver.Chrome) -> None:
    """Waits for two frames, after which the page shows all changes."""
    driver.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    )


def logits(
    driver: webdriver.Chrome, images: UInt8[np.ndarray, "n height width"]
) -> Num[np.ndarray, "n classes"]:
    """The logits that the page computes for `images`, with all units on."""
    script = """
        const images = decodeBase64(arguments[0]);
        const masks = hidden.map(({ units }) => new Float64Array(units).fill(1));
        const logits = [];
        for (let at = 0; at < images.length; at += rows * columns) {
          const image = images.subarray(at, at + rows * columns);
          logits.push([...forward(Float64Array.from(image, (grey) => grey / 255), masks).logits]);
        }
        return logits;
    """
    return np.array(driver.execute_script(script, base64.b64encode(images.tobytes()).decode()))


def draw(driver: webdriver.Chrome, strokes: Sequence[Points], pointer: str = "mouse") -> None:
    """Clears the pad and draws on it; `pointer` is "mouse", "pen" or "touch"."""
    driver.execute_script("showSample(null)")
    pad = driver.find_element(By.ID, "pad")
    width, height = pad.size["width"], pad.size["height"]
    actions = ActionBuilder(driver, mouse=PointerInput(pointer, pointer), duration=0)
    action = actions.pointer_action
    for points in strokes:
        for i, (x, y) in enumerate(points):
            action.move_to(pad, round((x - 0.5) * width), round((y - 0.5) * height))
            if i == 0:
                action.pointer_down()
        action.pointer_up()
    actions.perform()
    wait_for_frames(driver)


def answer(driver: webdriver.Chrome) -> str:
    """The class that the page names."""
    return driver.find_element(By.ID, "name").text


def requested_urls(driver: webdriver.Chrome) -> list[str]:
    """The addresses that were requested since the last call, except the page's own file."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
    urls = [str(message["params"]["request"]["url"]) for message in sent]
    return [url for url in urls if not url.startswith(("file:", "data:", "about:"))]


def time_updates(driver: webdriver.Chrome) -> None:
    """Makes the page append the time of each update, in milliseconds, to `updateTimes`."""
    driver.execute_script("""
        window.updateTimes = [];
        const untimed = update;
        update = () => {
          const start = performance.now();
          untimed();
          updateTimes.push(performance.now() - start);
        };
    """)


def save_screenshot(driver: webdriver.Chrome, file: Path) -> None:
    """Saves the screen as an image with few colours, which is a small file."""
    with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as screenshot:
        reduced = screenshot.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        reduced.save(file, optimize=True)


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the page of a run in a headless Chromium."""

    run: tyro.conf.Positional[Path]
    """A run folder that train made, for MNIST."""
    data_dir: Path | None = None
    """The folder of the data, if they have moved since."""
    images: int = 1000
    """How many test images the page reads."""
    results: Path | None = None
    """A JSON file to write."""
    figures: Path | None = None
    """A folder for page.png and page-phone.png."""


def main() -> None:
    """Measures, prints the result, and saves the numbers and the screenshots."""
    options = tyro.cli(Options)
    run = load_run(options.run)
    dataset = load_data(run, options.data_dir)
    images = dataset.test.images[: options.images]
    content = page.html(run, dataset).encode()
    state, inputs = first_network(run), to_inputs(images)
    expected, _ = run.recipe.model.apply(state.eval_params, state.model_state, inputs, None)
    with tempfile.TemporaryDirectory() as folder, browser() as driver:
        file = Path(folder) / "page.html"
        file.write_bytes(content)
        requested_urls(driver)  # discards what the browser requested by itself
        driver.get(file.as_uri())
        wait_for_frames(driver)
        difference = float(np.abs(logits(driver, images) - np.asarray(expected)).max())
        answers, times = {}, {}
        for name, size, ratio in (("desktop", DESKTOP, 1), ("phone", PHONE, 2)):
            driver.refresh()
            set_screen(driver, size, ratio)
            answers[name], times[name] = read_drawn_digits(driver)
        urls = requested_urls(driver)
        if options.figures:
            save_screenshots(driver, options.figures)
        chromium = driver.capabilities["browserVersion"]
    n_correct = sum(name == str(digit) for digit, name in enumerate(answers["desktop"]))
    median, slow = np.quantile(times["desktop"], [0.5, 0.95])
    claim = (
        f"The page's logits differ from JAX's by at most {1e6 * difference:.1f} millionths, "
        f"n = {len(images):,} images"
    )
    print(
        f"{claim}; {len(content) / 1e6:.2f} MB, {n_correct} of 10 drawn digits are read correctly, "
        f"{median:.1f} ms an update ({slow:.1f} ms or less in 95 % of cases), {len(urls)} requests"
    )
    if options.results:
        results = {
            "claim": claim,
            "difference": difference,
            "images": len(images),
            "bytes": len(content),
            "answers": answers,
            "requests": urls,
            "milliseconds": times,
            "device": device_name(),
            "chromium": chromium,
            "versions": versions(),
        }
        options.results.write_text(json.dumps(results) + "\n")


def read_drawn_digits(driver: webdriver.Chrome) -> tuple[list[str], list[float]]:
    """Draws the ten digits; the page's answers, and the milliseconds of each update."""
    time_updates(driver)
    answers = []
    for strokes in DIGITS.values():
        draw(driver, strokes)
        answers.append(answer(driver))
    return answers, np.round(driver.execute_script("return updateTimes"), 2).tolist()


def save_screenshots(driver: webdriver.Chrome, folder: Path) -> None:
    """Saves page-phone.png, in dark colours, and page.png with its most active unit selected."""
    set_colour_scheme(driver, "dark")
    draw(driver, DIGITS[5])
    save_screenshot(driver, folder / "page-phone.png")
    set_colour_scheme(driver, "light")
    set_screen(driver, DESKTOP)
    draw(driver, DIGITS[2])
    driver.execute_script("""
        const activations = state.pass.activations.at(-1);
        select(hidden.length - 1, activations.indexOf(Math.max(...activations)));
        stopPointing();
    """)
    wait_for_frames(driver)
    save_screenshot(driver, folder / "page.png")


if __name__ == "__main__":
    main()
