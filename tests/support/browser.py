"""What a real browser finds wrong with pages: script errors, lost images, overflow."""

import asyncio
import base64
import html
import itertools
import json
import re
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (380, 1200)
HEADLESS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")

# A frame gives a page the width of a phone, which no headless window can be made as narrow as.
HARNESS = """<!DOCTYPE html><meta charset="utf-8"><title>checks</title>
<body style="margin: 0">%s<script>
async function check(frame) {
  const page = frame.contentDocument, wide = page.documentElement.scrollWidth;
  const images = [...page.images].map(image => image.src);
  const drawn = [...page.querySelectorAll("svg image")].map(image => image.getAttribute("href"));
  // The browser's clock waits for loads, as it would not for decode().
  const loads = source => new Promise(tell => {
    const image = new Image();
    image.onload = () => tell(image.naturalWidth > 0);
    image.onerror = () => tell(false);
    image.src = source;
  });
  const lost = [];
  for (const source of [...images, ...drawn])
    if (!await loads(source)) lost.push(source.slice(0, 60));
  const boxes = [...page.querySelectorAll(".table")];
  const scrolled = boxes.filter(box => box.scrollWidth > box.clientWidth).length;
  return {page: frame.title, scrolled, width: frame.clientWidth, wide, lost,
          height: page.documentElement.scrollHeight, images: images.length + drawn.length};
}
addEventListener("load", async () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) found.push(await check(frame));
  document.body.textContent = JSON.stringify(found);
  document.title = "done";
});
</script>"""


def find():
    """The browser to use; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def faults(browser, pages, folder):
    """What is wrong with pages of HTML by name, as sentences; their probes come second."""
    frames = "".join(
        f'<iframe title="{html.escape(name)}" style="width: {width}px; height: 900px; border: 0" '
        f'srcdoc="{html.escape(text)}"></iframe>'
        for name, text in pages.items()
        for width in WIDTHS
    )
    harness = folder / "harness.html"
    harness.write_text(HARNESS % frames, encoding="utf-8")
    run = subprocess.run(
        [
            *(browser, *HEADLESS),
            *(f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0"),
            *("--virtual-time-budget=20000", "--dump-dom", harness.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    probe = re.search(r"<title>done</title>.*?<body[^>]*>(\[.*\])</body>", run.stdout, re.DOTALL)
    assert probe, f"the browser gave no answer: {run.stdout[-500:]} {run.stderr[-2000:]}"
    found = json.loads(html.unescape(probe[1]))
    said = re.findall(r'CONSOLE[^"]*"([^"]*)', run.stderr)
    problems = [f"console: {line}" for line in said]
    for one in found:
        where = f"{one['page']} at {one['width']} px"
        if one["wide"] > one["width"]:
            problems.append(f"{where} is {one['wide']} px wide")
        problems += [f"{where} lacks an image: {source}" for source in one["lost"]]
        if one["height"] < 100:
            problems.append(f"{where} is empty")
    return problems, found


class Page:
    """A page in a new browser process, driven over its debugging protocol.

    Args:
        folder: for the browser's profile.
        width: of the window in pixels, as small as a phone's.
    """

    def __init__(self, browser, folder, url, width):
        self._runner, self._numbers, self.said = asyncio.Runner(), itertools.count(1), []
        profile = folder / f"profile-{width}"
        command = [browser, *HEADLESS, f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        self._browser = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self._runner.run(self._open(profile / "DevToolsActivePort", url, width))

    async def _open(self, active, url, width):
        import aiohttp

        while not (active.exists() and len(lines := active.read_text().splitlines()) == 2):
            assert self._browser.poll() is None, "the browser has ended"
            await asyncio.sleep(0.1)
        self._http = aiohttp.ClientSession()
        async with self._http.get(f"http://127.0.0.1:{lines[0]}/json/list") as reply:
            (target,) = [one for one in await reply.json() if one["type"] == "page"]
        self._socket = await self._http.ws_connect(
            target["webSocketDebuggerUrl"], max_msg_size=2**26
        )
        for method in ("Page.enable", "Runtime.enable", "Log.enable"):
            await self._send(method)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        await self._send("Emulation.setDeviceMetricsOverride", **size)
        await self._send("Page.navigate", url=url)

    async def _send(self, method, **parameters):
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=60)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            said = message["params"]
            is_error = said.get("entry", {}).get("level") == "error"
            if is_error or message["method"] == "Runtime.exceptionThrown":
                self.said.append(json.dumps(said))

    def evaluate(self, script):
        """The value of an expression in the page."""
        return self._runner.run(self._evaluate(script))

    async def _evaluate(self, script):
        result = await self._send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script):
        """Wait until an expression is true."""
        for _ in range(600):
            if self.evaluate(script):
                return
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}")

    def picture(self, path):
        """Write a picture of the whole page."""
        height = self.evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self.evaluate("innerWidth"), "height": height, "scale": 1}
        how = {"format": "png", "clip": clip, "captureBeyondViewport": True}
        found = self._runner.run(self._send("Page.captureScreenshot", **how))
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self):
        """End the browser."""
        self._runner.run(self._http.close())
        self._runner.close()
        self._browser.terminate()
        self._browser.wait()
