"""The page in a real browser: clicks, keys, learning, and a server that dies."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.potsdam_points.labeling.pictures import disc_picture, wait_for, write_picture
from tests.potsdam_points.labeling.test_judging import references, write_sample

ROOT = Path(__file__).parents[3]
CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",     "--disable-component-update", "--disable-sync", "--window-size=1100,760",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None or DRIVER is None:
        if os.environ.get("CI"):
            pytest.fail("chromium and chromedriver are needed here")
        pytest.skip("needs chromium and chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The command and the page that it serves."""

    def __init__(self, browser, folder, *flags):
        self.browser, self.folder = browser, folder
        self.start(*flags)

    def start(self, *flags):
        command = [sys.executable, ROOT / "potsdam_points" / "label.py", self.folder / "disc.tif", "--no-browser"]
        command += ["--classes", "dark", "bright", "--points-file", self.folder / "points.csv", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, text=True, env=environment)
        address = self.process.stdout.readline().split()[1]
        self.browser.get(address)
        self.address = address.split("/?")[0]
        wait_for(lambda: self.browser.execute_script("return document.body.dataset.ready") == "yes", "the page")

    def kill(self, signum):
        self.process.send_signal(signum)
        self.process.stdout.close()
        return self.process.wait()

    def table(self):
        path = self.folder / "points.csv"
        return path.read_text().splitlines()[1:] if path.exists() else []

    def text(self, name):
        return self.browser.find_element("id", name).text

    def keys(self, *keys):
        chain = self.chain()
        for key in keys:
            chain.send_keys(key)
        chain.perform()

    def chain(self):
        from selenium.webdriver import ActionChains

        return ActionChains(self.browser, duration=0)

    def click(self, right, down):
        """Click beside the middle of the view."""
        canvas = self.browser.find_element("id", "view")
        self.chain().move_to_element_with_offset(canvas, right, down).click().perform()

    def errors(self):
        """What the browser complains of, but for what an earlier page asks of its server that is gone."""
        found = self.browser.get_log("browser")
        return [entry for entry in found if self.address in entry["message"] and "favicon" not in entry["message"]]


@pytest.fixture
def page(browser, tmp_path):
    write_picture(tmp_path / "disc.tif", disc_picture(600)[0])
    opened = Page(browser, tmp_path)
    yield opened
    if opened.process.poll() is None:
        opened.kill(signal.SIGKILL)


def test_clicks_survive_a_kill_and_the_map_learns(page, tmp_path):
    for i in range(8):
        page.keys("12"[i % 2])
        page.click(*((10, 10 * i) if i % 2 else (-240 + 5 * i, -240)))
        wait_for(lambda count=i + 1: len(page.table()) == count, "a click")
    shown = "return [...document.querySelectorAll('.count')].map(one => one.textContent)"
    wait_for(lambda: page.browser.execute_script(shown)[:2] == ["4", "4"], "the last answer")
    before = page.table()
    assert [line.split(",")[3] for line in before] == ["dark", "bright"] * 4
    assert all(abs(int(line.split(",")[1]) - 300) < 60 for line in before[1::2])  # beside the middle of the picture
    page.kill(signal.SIGKILL)
    assert page.table() == before
    page.start()
    assert page.browser.execute_script("return document.querySelector('.count').textContent") == "4"
    page.keys("l")
    wait_for(lambda: "learned from 8 points" in page.text("message"), "learning")
    assert page.browser.find_element("id", "map").is_selected()
    assert not page.errors()
    assert page.kill(signal.SIGINT) == 0


def test_the_keyboard_is_enough(page):
    from selenium.webdriver.common.keys import Keys

    page.keys("2", Keys.ENTER)
    wait_for(lambda: page.table() == ["disc,300,300,bright"], "a point under the cross")
    page.keys("1", "+", Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.ENTER)
    wait_for(lambda: len(page.table()) == 2, "a second point")
    _, x, y, name = page.table()[1].split(",")
    assert int(x) < 300 and int(y) < 300 and name == "dark"
    page.keys("u")
    wait_for(lambda: page.table() == ["disc,300,300,bright"], "undo")
    wait_for(lambda: page.text("note") == "undone", "its acknowledgement")
    page.keys("0", Keys.DELETE)
    wait_for(lambda: page.table() == [], "deletion of the point under the cross")
    page.keys("u")
    wait_for(lambda: page.table() == ["disc,300,300,bright"], "undo of a deletion")
    page.keys(" ")
    wait_for(lambda: "ring" in page.text("note"), "a suggestion")
    page.keys("1", Keys.ENTER)
    wait_for(lambda: len(page.table()) == 2, "the suggested point")
    assert not page.errors()


def test_a_point_is_moved_by_dragging(page):
    page.keys("1")
    page.click(0, 0)
    wait_for(lambda: len(page.table()) == 1, "a click")
    wait_for(lambda: "saved" in page.text("note"), "its acknowledgement")
    before = page.table()
    canvas = page.browser.find_element("id", "view")
    page.chain().move_to_element(canvas).click_and_hold().move_by_offset(60, 30).move_by_offset(
        5, 5
    ).release().perform()
    wait_for(lambda: page.table() != before, "a move")
    _, x, y, _ = page.table()[0].split(",")
    assert 320 < int(x) < 420 and 310 < int(y) < 380


def test_a_failed_save_is_said_and_not_shown(page):
    page.keys("1")
    page.click(0, 0)
    wait_for(lambda: len(page.table()) == 1, "a click")
    (page.folder / "points.csv").write_text("id,x,y,class\n")
    page.click(50, 50)
    wait_for(lambda: "changed by another program" in page.text("note"), "the reason")
    assert page.table() == []


def test_number_keys_judge_a_sample(browser, tmp_path):
    write_picture(tmp_path / "disc.tif", disc_picture()[0])
    sample = write_sample(tmp_path)
    page = Page(browser, tmp_path, "--sample", sample)
    try:
        for key, count, wanted in (("2", 1, ["bright", ""]), ("1", 2, ["bright", "dark"]), ("u", 1, ["bright", ""])):
            page.keys(key)
            wait_for(lambda wanted=wanted: references(sample)[:2] == wanted, f"key {key}")
            wait_for(lambda count=count: page.text("turn") == f"{count} of 4 judged", "its acknowledgement")
        page.click(60, 40)
        wait_for(lambda: "stay where they were drawn" in page.text("note"), "the reason")
        page.keys(" ")
        wait_for(lambda: "Point 2" in page.text("note"), "the point that is asked for")
        assert not page.browser.find_element("id", "learn").is_displayed() and not page.errors()
        assert references(sample) == ["bright", "", "", ""] and page.kill(signal.SIGINT) == 0
    finally:
        if page.process.poll() is None:
            page.kill(signal.SIGKILL)
