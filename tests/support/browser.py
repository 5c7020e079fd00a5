"""What a real browser finds wrong with pages: script errors, lost images, overflow."""

import html
import json
import re
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (380, 1200)

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
            *(
                browser,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
            ),
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
