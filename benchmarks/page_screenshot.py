"""Pictures of the page with a real answer on it, by a headless Chromium.

python benchmarks/page_screenshot.py CLIP --run RUN --out docs/serve.png [--phone]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import httpx
from serve_load import server

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from chromium import Browser, chromium


def main() -> None:
    """Serve, upload, wait for the score, write the picture."""
    options = _options()
    if chromium() is None:
        sys.exit("There is no Chromium on this machine; install one.")
    with server(options.run, {}) as address:
        while not httpx.get(f"http://{address}/health", timeout=120).json()["decoders"]["ready"]:
            time.sleep(0.5)
        size = (390, 800) if options.phone else (1100, 900)
        browser = Browser(size, touch=options.phone, scale=2.0 if options.phone else 1.5, dark=options.dark)
        try:
            take(browser, f"http://{address}", options)
        finally:
            browser.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--run", default="pretrained")
    parser.add_argument("--text", default="", help="what is said, if it is known")
    parser.add_argument("--out", type=Path, default=Path("docs/serve.png"))
    parser.add_argument("--phone", action="store_true")
    parser.add_argument("--dark", action="store_true")
    return parser.parse_args()


def take(browser: Browser, address: str, options: argparse.Namespace) -> None:
    """The page from its head to the end of the result."""
    browser.open(address)
    browser.wait("document.getElementById('limits').textContent")
    browser.run(f"document.getElementById('text').value = {options.text!r}")
    browser.choose("file", options.clip.resolve())
    browser.click("send")
    browser.wait("!document.getElementById('result').hidden || !document.getElementById('error').hidden", 300)
    if browser.text("error"):
        sys.exit(browser.text("error"))
    browser.run("document.querySelector('video').currentTime = 1")
    time.sleep(1.0)
    browser.picture(options.out)


if __name__ == "__main__":
    main()
