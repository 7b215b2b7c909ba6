"""The genome page in headless Chromium: no complaint, no request, logos and table that work.

Skipped where Chromium is missing (apt-get install chromium).
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megabase.genome.interval import Interval
from megabase.genome.store import Genome
from megabase.report.genome_page import (
    GenomePage,
    Logo,
    Overlay,
    Segment,
    Track,
    _Column,
    _Feature,
    _TableRow,
)

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-pipe",
)  # fmt: skip
_PATIENCE = 120.0

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed")


class Page:
    """A page in a window of a given size."""

    def __init__(self, read: int, write: int, width: int) -> None:
        self._read, self._write, self._rest, self._number = read, write, b"", 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                  deviceScaleFactor=1, mobile=width < 500)  # fmt: skip

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                part = os.read(self._read, 1 << 16)
                if not part:
                    raise RuntimeError("chromium ended")
                self._rest += part
            text, self._rest = self._rest.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(answer["error"]["message"])
                return answer["result"]
            self.events.append(answer)

    def run(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True,
                          returnByValue=True)  # fmt: skip
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        end = time.monotonic() + _PATIENCE
        while not (found := self.run(script)):
            if time.monotonic() > end:
                raise TimeoutError(script)
            time.sleep(0.05)
        return found

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and requests that leave the page."""
        found: list[str] = []
        for event in self.events:
            parameters = event.get("params", {})
            match event.get("method"):
                case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning"):
                    found.append(str(parameters["args"]))
                case "Log.entryAdded":
                    found.append(parameters["entry"]["text"])
                case "Runtime.exceptionThrown":
                    found.append(str(parameters["exceptionDetails"]))
                case "Network.requestWillBeSent":
                    url = parameters["request"]["url"]
                    if not url.startswith(("file:", "data:", "blob:", "about:")):
                        found.append(url[:200])
                case _:
                    pass
        return found


@contextlib.contextmanager
def opened(page: Path, width: int, profile: Path) -> Iterator[Page]:
    """Open a file in a new browser with an empty profile."""
    assert PROGRAM is not None
    to_browser, from_browser = os.pipe(), os.pipe()

    for end in (to_browser[0], from_browser[1]):
        os.set_inheritable(end, True)
    # The browser reads commands from descriptor 3 and answers on 4.
    script = f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", PROGRAM, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(to_browser[0], from_browser[1]),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        shown = Page(from_browser[0], to_browser[1], width)
        shown.call("Page.navigate", url=page.absolute().as_uri())
        yield shown
    finally:
        process.kill()
        process.wait()
        for end in (*to_browser, *from_browser):
            os.close(end)


def _store(folder: Path, name: str, contig: str, start: int, letters: str) -> Genome:
    """A genome whose contig is unknown but for some letters in it."""
    source = folder / f"{name}.fa"
    source.write_text(f">{contig}\n{'N' * start}{letters}{'N' * start}\n")
    return Genome.build(source, folder / f"{name}.mb", name=name)


def _write_page(folder: Path) -> Path:
    """A region of 4,000 bases with 1,000 variants."""
    rng = np.random.default_rng(0)
    length, start = 4_000, 50_000
    letters = "".join(rng.choice(list("ACGT"), length))
    chances = rng.dirichlet([0.4] * 4, length)
    effects = -rng.gamma(0.5, 1.0, (length, 4))
    effects[np.arange(length), ["ACGT".index(base) for base in letters]] = np.nan
    rows, features, logos = [], [], []
    for i, offset in enumerate(rng.integers(40, length - 40, 1_000).tolist()):
        place, ref = start + offset, letters[offset]
        alt = "ACGT"["ACGT".index(ref) - 1]
        cells = ("chr1", place + 1, ref, alt, f"v{i}", float(i - 500))
        rows.append(_TableRow("chr1", place, place + 1, cells))
        features.append(_Feature("chr1", place, place + 1, f"{ref}>{alt}"))
        logos.append(Logo("With the variant", "", "chr1", place - 20,
                          rng.dirichlet([0.4] * 4, 40), "probability", i))  # fmt: skip
    columns = (_Column("contig"), _Column("position", "place"), _Column("ref"), _Column("alt"),
               _Column("id", minor=True), _Column("LLR", "number", digits=1))  # fmt: skip
    page = GenomePage(
        _store(folder, "toy", "chr1", start, letters), [Interval("chr1", start, start + length)],
        title="chr1:50,001-54,000 of toy", lead="A page for a test.",
        tracks=[
            Track("genes", (_Feature("chr1", 50_100, 52_000, "ABC1", "+"),)),
            Track("variants", tuple(features)),
            Track("signal", segments=(Segment("chr1", start, rng.normal(size=length)),)),
        ],
        logos=[
            Logo("What the model expects", "", "chr1", start, chances, "probability"),
            Logo("What a substitution does", "", "chr1", start, effects, "effects"), *logos,
        ],
        columns=columns, rows=rows,
    )  # fmt: skip
    path = folder / "page.html"
    path.write_text(page.html())
    return path


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_without_a_complaint(tmp_path: Path, width: int) -> None:
    with opened(_write_page(tmp_path), width, tmp_path / "profile") as page:
        assert page.wait("document.body && document.body.dataset.ready") == "true"
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.wait("document.querySelectorAll('#logos svg').length") == 2
        count = "document.getElementById('count').textContent"
        rows = "document.querySelectorAll('#rows tbody tr')"
        assert page.run(count) == "1,000 of 1,000 alleles"
        assert page.run(f"{rows}.length") == 60  # more are drawn when one scrolls there
        first = f"{rows}[0].cells[5].textContent"
        page.run("document.querySelectorAll('#rows th button')[5].click()")
        assert page.run(first) == "499.0"
        page.run("document.querySelectorAll('#rows th button')[5].click()")
        assert page.run(first) == "-500.0"
        page.run("const s = document.getElementById('search'); s.value = 'v12';"
                 "s.dispatchEvent(new Event('input'))")  # fmt: skip
        assert page.run(count) == "11 of 1,000 alleles"  # v12 and v120 to v129
        page.run("const l = document.getElementById('most'); l.value = '-375';"
                 "l.dispatchEvent(new Event('input'))")  # fmt: skip
        assert page.run(count) == "7 of 1,000 alleles"  # v12, and v120 to v125
        page.run(f"{rows}[0].click()")
        page.wait("document.querySelectorAll('#logos svg').length === 3")
        names = page.run("[...document.querySelectorAll('#logos h3')].map(e => e.textContent)")
        assert names == ["What the model expects", "What a substitution does", "With the variant"]
        assert page.run("document.querySelectorAll('#logos path').length") > 40
        place = int(page.run(f"{rows}[0].cells[1].textContent").replace(",", ""))
        shown = page.run("document.querySelector('#logos p').textContent")
        low, high = (int(n) for n in shown.split(":")[1].split(".")[0].replace(",", "").split("-"))
        assert low < place < high
        assert page.complaints() == []


def _write_odd_page(folder: Path) -> Path:
    """A wide view whose substitutions lie at its very start, with features from the first base."""
    rng = np.random.default_rng(1)
    length, start = 6_000, 1_000_000
    letters = "".join(rng.choice(list("ACGT"), length))
    effects = rng.normal(-1, 0.5, (100, 4))
    effects[np.arange(100), ["ACGT".index(base) for base in letters[100:200]]] = np.nan
    tall = np.full(length, 2.0)
    features = (
        _Feature("chr20", start, start + 900, "A" * 30, "+"),
        _Feature("chr20", start + 1, start + 2, "C>A"),
        _Feature("chr20", start + 4_000, start + 6_000, "end", "-"),
    )
    rows = [
        _TableRow("chr20", start + i, start + i + 1, (start + i + 1, text, 0.1 + i / 3))
        for i, text in enumerate(ODD_TEXTS)
    ]
    page = GenomePage(
        _store(folder, "a genome with a rather long name", "chr20", start, letters),
        [Interval("chr20", start, start + length)], title="wide",
        tracks=[
            Track("genes along the way", features),
            Track("a signal with a long name", segments=(Segment("chr20", start, tall),)),
            Track("falling", segments=(Segment("chr20", start, -tall),)),
        ],
        logos=[Logo("Substitutions", "", "chr20", start + 100, effects, "effects")],
        columns=(_Column("position", "place"), _Column("text"), _Column("score", "number")),
        rows=rows,
    )  # fmt: skip
    path = folder / "odd.html"
    path.write_text(page.html())
    return path


ODD_TEXTS = ('a "quoted", one', "two\nlines", "=SUM(A1)", "<b>", "", "\u00e9\u4e2d", "-", "plain")

# Boxes of what igv.js shows, in CSS pixels, and the rows of each track that hold any mark.
LAYOUT = """(() => {
  const root = document.getElementById('browser').shadowRoot;
  const box = (e) => {
    const r = e.getBoundingClientRect();
    return [r.left, r.right, r.top, r.bottom];
  };
  const tracks = [...root.querySelectorAll('.igv-viewport')].map((viewport) => {
    const label = viewport.querySelector('.igv-track-label');
    const canvas = viewport.querySelector('canvas');
    if (!label || !canvas) return null;
    const [left, right, top, bottom] = box(viewport);
    const [l, r, t, b] = box(canvas);
    const scale = canvas.width / (r - l);
    const from = Math.round((left - l) * scale), width = Math.round((right - left) * scale);
    const pixels = canvas.getContext('2d').getImageData(from, 0, width, canvas.height);
    const rows = [];
    for (let y = 0; y < pixels.height; y++) {
      for (let x = 0; x < width; x++) {
        const i = 4 * (y * width + x);
        if (pixels.data[i + 3] > 40 && Math.min(...pixels.data.slice(i, i + 3)) < 200) {
          rows.push(y / scale + t); break;
        }
      }
    }
    return { label: box(label), rows };
  }).filter(Boolean);
  return {
    frame: box(document.getElementById('browser')), navbar: box(root.querySelector('.igv-navbar')),
    buttons: [...root.querySelectorAll('.igv-navbar-text-button, .igv-navbar-icon-button, '
      + '.igv-search-input, .igv-zoom-widget > div, .igv-zoom-widget-900 > div, '
      + '.igv-windowsize-panel-container')].map(box).filter(([l, r]) => r > l),
    ruler: box(root.querySelector('.ruler')),
    ticks: [...root.querySelectorAll('.ruler text')].map((e) => [e.textContent, ...box(e)]),
    tracks,
  };
})()"""


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_of_the_page_is_cut_or_covered(tmp_path: Path, width: int) -> None:
    with opened(_write_odd_page(tmp_path), width, tmp_path / "profile") as page:
        assert page.wait("document.body && document.body.dataset.ready") == "true"
        assert page.run("document.documentElement.scrollWidth") <= width
        page.wait("document.querySelectorAll('#logos rect').length > 0")
        seen = page.run(LAYOUT)
        assert len(seen["ticks"]) >= 2
        for text, left, right, _, _ in seen["ticks"]:
            assert int(text.replace(",", "")) in range(1_000_001, 1_006_001)
            assert seen["ruler"][0] - 0.5 <= left < right <= seen["ruler"][1] + 0.5
        for (_, _, right, _, _), (_, left, _, _, _) in pairwise(seen["ticks"]):
            assert right < left
        assert len(seen["buttons"]) >= 8
        low, high, top, bottom = seen["navbar"]
        assert low >= seen["frame"][0] - 1
        assert high <= seen["frame"][1] + 1
        for left, right, upper, lower in seen["buttons"]:
            assert low <= left < right <= high
            assert top - 2 <= upper < lower <= bottom + 2
        for one, two in ((a, b) for a in seen["buttons"] for b in seen["buttons"] if a < b):
            apart = one[1] <= two[0] + 1 or one[3] <= two[2] + 1 or two[3] <= one[2] + 1
            assert apart, (one, two)
        assert len(seen["tracks"]) == 3
        for track in seen["tracks"]:
            assert track["rows"], "nothing is drawn"
            assert min(track["rows"]) >= track["label"][3] - 1
        assert page.complaints() == []


def test_substitutions_are_seen_at_once_and_found_again(tmp_path: Path) -> None:
    cells = "document.querySelectorAll('#logos rect').length"
    with opened(_write_odd_page(tmp_path), 1280, tmp_path / "profile") as page:
        assert page.wait("document.body && document.body.dataset.ready") == "true"
        assert page.wait(cells) == 400  # the opening view is 6,000 bases, these are its first
        page.run(
            "const i = document.getElementById('browser').shadowRoot"
            ".querySelector('.igv-search-input'); i.value = 'chr20:1,005,001-1,005,100';"
            "i.dispatchEvent(new Event('change'))"
        )
        button = "document.querySelector('#logos > button')"
        assert page.wait(f"{button} && {button}.textContent") == (
            "Go to the substitutions at chr20:1,000,101-1,000,200"
        )
        assert page.run(cells) == 0
        page.run(f"{button}.click()")
        assert page.wait(cells) == 400
        assert page.run(f"{button} === null")


def test_the_table_is_saved_as_csv(tmp_path: Path) -> None:
    with opened(_write_odd_page(tmp_path), 1280, tmp_path / "profile") as page:
        assert page.wait("document.body && document.body.dataset.ready") == "true"
        folder = tmp_path / "saved"
        page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        page.run("document.querySelectorAll('#rows th button')[2].click()")  # the largest first
        page.run("document.getElementById('export').click()")
        end = time.monotonic() + 20
        while not (files := list(folder.glob("*.csv"))) and time.monotonic() < end:
            time.sleep(0.05)
        (file,) = files
        with file.open(newline="", encoding="utf-8") as opened_file:
            head, *rows = csv.reader(opened_file)
        assert head == ["position", "text", "score"]
        assert [int(row[0]) for row in rows] == list(range(1_000_008, 1_000_000, -1))
        # What a spreadsheet would take for a formula is marked as text; the rest is as it was.
        marked = [f"'{text}" if text in ("=SUM(A1)", "-") else text for text in ODD_TEXTS]
        assert [row[1] for row in rows] == marked[::-1]
        assert [float(row[2]) for row in rows] == [0.1 + i / 3 for i in range(7, -1, -1)]
        assert page.complaints() == []


def hostile(number: int) -> str:
    """A name that runs a script where it is put into a page as HTML."""
    return f"<img/src='x'onerror=window.hacked={number}>"


def click(page: Page, x: float, y: float) -> None:
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def test_names_run_nothing_where_they_are_shown_or_clicked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    letters, contig = "".join(rng.choice(list("ACGT"), 400)), hostile(1)
    store = _store(tmp_path, "toy", contig, 100, letters)
    named = Genome.build(tmp_path / "toy.fa", tmp_path / "other.mb", name=hostile(2))
    columns = (_Column("consequence"), _Column("gene"), _Column(hostile(3), "number"))
    page = GenomePage(
        named, [Interval(contig, 100, 500)], title=hostile(4), lead=hostile(5),
        tracks=[
            Track(hostile(6), (_Feature(contig, 200, 420, hostile(7), "+"),)),
            Track(hostile(8), segments=(Segment(contig, 100, rng.normal(size=400)),)),
        ],
        logos=[Logo(hostile(9), hostile(10), contig, 100, rng.dirichlet([0.4] * 4, 400),
                    "probability")],
        columns=columns, rows=[_TableRow(contig, 200, 201, (hostile(11), hostile(12), 1.5))],
        numbers=[(hostile(13),) * 3], facts=[(hostile(14), hostile(15))],
    )  # fmt: skip
    path = tmp_path / "page.html"
    path.write_text(page.html())
    root = "document.getElementById('browser').shadowRoot"
    with opened(path, 1280, tmp_path / "profile") as shown:
        assert shown.wait("document.body && document.body.dataset.ready") == "true"
        labels = shown.run(f"[...{root}.querySelectorAll('.igv-track-label')]"
                           ".map(e => e.textContent)")  # fmt: skip
        assert labels == [hostile(6), hostile(8)]
        viewport = f"{root}.querySelectorAll('.igv-viewport')[2].getBoundingClientRect()"
        place = shown.run(f"(() => {{ const r = {viewport}; return [r.left, r.top, r.width] }})()")
        click(shown, place[0] + place[2] / 2, place[1] + 42)
        popover = f"{root}.querySelector('.igv-ui-popover')"
        text = shown.wait(f"{popover} && {popover}.innerText")
        assert hostile(7) in text
        assert hostile(1) in text
        shown.run("document.querySelectorAll('#rows tbody tr')[0].click()")
        shown.run(f"{root}.querySelectorAll('.igv-gear-menu-column svg').forEach("
                  "e => e.dispatchEvent(new MouseEvent('click', {bubbles: true})))")  # fmt: skip
        time.sleep(0.5)
        assert shown.run("window.hacked === undefined")
        assert shown.complaints() == []
    assert store.contigs[0].name == contig


def test_alleles_are_filtered_by_consequence_gene_and_range(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    letters = "".join(rng.choice(list("ACGT"), 400))
    terms = ["missense_variant", "intron_variant", "stop_gained", ""]
    rows = [
        _TableRow(
            "chr1", 100 + n, 101 + n, (terms[n % 4], f"G{n % 10}", None if n == 5 else n - 20)
        )
        for n in range(40)
    ]
    page = GenomePage(
        _store(tmp_path, "toy", "chr1", 100, letters), [Interval("chr1", 100, 500)],
        columns=(_Column("consequence"), _Column("gene"), _Column("LLR", "number")), rows=rows,
    )  # fmt: skip
    (tmp_path / "page.html").write_text(page.html())
    with opened(tmp_path / "page.html", 390, tmp_path / "profile") as shown:
        assert shown.wait("document.body && document.body.dataset.ready") == "true"
        options = "[...document.getElementById('consequence').options].map(o => o.value)"
        assert shown.run(options) == ["", "stop_gained", "missense_variant", "intron_variant"]

        def left(**values: object) -> int:
            for name in ("consequence", "gene", "least", "most"):
                shown.run(f"document.getElementById('{name}').value = '{values.get(name, '')}'")
            shown.run("document.getElementById('gene').dispatchEvent(new Event('input'))")
            text = shown.run("document.getElementById('count').textContent")
            return int(text.split()[0])

        assert left() == 40
        assert left(consequence="stop_gained") == 10
        assert left(gene="g3") == 4
        assert left(consequence="stop_gained", gene="g2") == 2
        assert left(least=-5) == 25
        assert left(most=-15) == 5  # 0 to 5 without the one that has no score
        assert left(least=-2.5, most=2.5, consequence="intron_variant") == 1
        assert shown.complaints() == []


def test_both_alleles_stand_in_one_column_behind_an_indel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    letters = "".join(rng.choice(list("ACGT"), 400))
    ref, alt = -rng.random(10) - 0.1, -rng.random(7) - 0.1
    overlay = Overlay(0, 200, "ACGT", ("GGG", ""), "TTA", ref.astype(np.float32), alt)
    page = GenomePage(
        _store(tmp_path, "toy", "chr1", 100, letters), [Interval("chr1", 100, 500)],
        columns=(_Column("ref"),), rows=[_TableRow("chr1", 203, 207, ("TGGG",))],
        logos=[Logo("expected", "", "chr1", 100, rng.dirichlet([0.4] * 4, 400), "probability")],
        overlays=[overlay],
    )  # fmt: skip
    (tmp_path / "page.html").write_text(page.html())
    with opened(tmp_path / "page.html", 1280, tmp_path / "profile") as shown:
        assert shown.wait("document.body && document.body.dataset.ready") == "true"
        assert shown.run("document.querySelector('.overlay') === null")
        shown.run("document.querySelectorAll('#rows tbody tr')[0].click()")
        texts = shown.wait(
            "document.querySelector('.overlay') && "
            "[...document.querySelectorAll('.overlay title')].map(e => e.textContent)"
        )
        expected = []
        for column, base in enumerate("ACGTGGGTTA"):
            other = None if 4 <= column < 7 else column - 3 * (column >= 7)
            text = "ALT \u2013" if other is None else f"ALT {base} {alt[other]:.3f}"
            expected.append((f"REF {base} {ref[column]:.3f}", text))
        found = [tuple(text.split(", ")) for text in texts]
        assert [[part[:5] for part in pair] for pair in found] == [
            [part[:5] for part in pair] for pair in expected
        ]
        for pair, other in zip(found, expected, strict=True):
            for one, two in zip(pair, other, strict=True):
                if "\u2013" not in two:
                    assert float(one[6:]) == pytest.approx(float(two[6:]), abs=2e-3)
        assert shown.run("document.querySelectorAll('.overlay path').length") == 2
        assert shown.complaints() == []
