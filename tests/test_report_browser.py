"""The page in a browser: drawn without an error at every width, in light and dark, and its controls change the picture.

Needs Chromium and its driver (Debian: chromium, chromium-driver); continuous integration installs them.
"""

import base64
import shutil
import time

import jax.numpy as jnp
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from workdirs import EFFECTS, effect_rows, workdir, write_csv

from lingregions import regions, report
from lingregions.models import roles

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromium") or not shutil.which("chromedriver"), reason="no Chromium here"),
]
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
CURVE = {"points": [[1, 0], [10, 5], [100, 9]], "low": [0, 4, 8], "high": [1, 6, 10]}
POINTS = [{"label": f"{group} {n}", "group": group, "x": n, "y": n * n} for n in (1, 2) for group in ("full", "core")]
FILES = {
    "curve": {"kind": "curve", "title": "C", "across": "x", "upwards": "y", "series": {"ru": CURVE, "en": CURVE}},
    "frontier": {"kind": "scatter", "title": "F", "x": "x", "y": "y", "better": ["low", "high"], "points": POINTS},
    "languages": {
        "kind": "overlap",
        "title": "O",
        "names": ["es", "vi", "pt"],
        "values": [[1, 0.1, 0.8], [0.1, 1, 0.2], [0.8, 0.2, 1]],
    },
    "many": {
        "kind": "overlap",
        "title": "M",
        "names": (long := [f"random 0.05% seed {n}" for n in range(8)]),
        "values": [[1 if one == other else 1 / (2 + one + other) for one in range(8)] for other in range(8)],
    },
    "narrow": {
        "kind": "scatter",
        "title": "N",
        "x": "forgetting: mean over the kept languages, nats per token",
        "y": "perplexity, as a multiple of the untouched model's, over all languages",
        "y_format": "exponential",
        "points": [{"label": name, "group": name, "x": place, "y": place / 10} for place, name in enumerate(long)],
    },
    "wide": {
        "kind": "heatmap",
        "title": "W",
        "rows": ["top 1% against magnitude 1%", "b"],
        "columns": [f"language {n:02}" for n in range(30)],
        "values": [[*range(30)], [*range(0, -30, -1)]],
    },
    "grid": {"kind": "heatmap", "title": "G", "rows": ["a", "b"], "columns": ["c", "d"], "values": [[1, -2], [3, 4]]},
}


def region(name: str, seed: int) -> regions.Region:
    """A region of two layers and two matrices, drawn with a seed; one input dimension stands out."""
    random = np.random.default_rng(seed)
    leaves = {roles.path("q"): random.random((2, 8, 12)) < 0.1, roles.path("down"): random.random((2, 12, 16)) < 0.1}
    leaves[roles.path("q")][:, :, seed] = leaves[roles.path("down")][:, seed, :] = True
    masks: dict = {}
    for path, mask in leaves.items():
        *parents, last = path.split(".")
        at = masks
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = jnp.asarray(mask)
    axes = ((roles.path("q"), ("layers", "heads", "embed")), (roles.path("down"), ("layers", "embed", "mlp")))
    return regions.Region(masks, regions.Provenance(name, "drawn by hand", model="m0", axes=axes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = workdir(tmp_path_factory.mktemp("browser"), "preset:tiny", **FILES)
    more = [(*row[:1], f"part {n}", "base", *row[3:]) for n in range(3) for row in effect_rows()[:4]]
    write_csv(path / "effects.csv", EFFECTS, [*effect_rows(), *more])
    (path / "regions").mkdir()
    for seed, name in enumerate(("top 1%", "random 1%", "ru")):
        regions.save(region(name, seed), path / "regions" / f"{seed}.safetensors")
    report.write(path, pictures=False)
    return path


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield found
    found.quit()


def opened(driver, folder, width=1024, scheme="light"):
    """Open the page and wait until it is drawn; returns the errors of its console."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(f"file://{folder / 'report.html'}")
    waited(driver, "return document.documentElement.hasAttribute('data-drawn')")
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def waited(driver, condition, *arguments):
    """Wait until a script gives a true value."""
    end = time.monotonic() + 60
    while not (found := driver.execute_script(condition, *arguments)):
        assert time.monotonic() < end, condition
        time.sleep(0.1)
    return found


def picture(driver, name):
    """The drawing of a figure, as markup."""
    return driver.execute_script(f"return document.querySelector('#figure_{name} .view svg').outerHTML")


def chosen(driver, name, parameter, value):
    """Choose a value in a list of controls, as a hand does."""
    driver.execute_script(
        """const list = document.querySelector(`#figure_${arguments[0]} select[name="${arguments[1]}"]`);
        list.value = [...list.options].find((option) => option.text === arguments[2]).value;
        for (const name of ["input", "change"]) list.dispatchEvent(new Event(name, {bubbles: true}));""",
        *(name, parameter, value),
    )


# What reaches outside its frame: the page's own width, a drawing's, a word's in a drawing.
CLIPPED = """
const found = [], wide = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > wide) found.push("the page is wider than its window");
for (const svg of document.querySelectorAll(".view svg")) {
  const frame = svg.getBoundingClientRect(), name = svg.closest("[data-figure]").id;
  if (!frame.width) continue;
  if (frame.right > wide + 1) found.push(name + " is wider than the window");
  for (const text of svg.querySelectorAll("text")) {
    const box = text.getBoundingClientRect();
    const across = box.left < frame.left - 2 || box.right > frame.right + 2;
    if (box.width && (across || box.top < frame.top - 2 || box.bottom > frame.bottom + 2))
      found.push(`${name}: ${text.textContent}`);
  }
}
return found;
"""
# Names of one axis that stand in each other.
CROWDED = """
const found = [];
for (const axis of document.querySelectorAll(".view svg .role-axis-label")) {
  const shown = [...axis.querySelectorAll("text")].filter((text) => text.getAttribute("opacity") !== "0");
  const boxes = shown.map((text) => text.getBoundingClientRect());
  for (let place = 1; place < boxes.length; place++) {
    const [one, two] = [boxes[place - 1], boxes[place]];
    const across = Math.min(one.right, two.right) - Math.max(one.left, two.left);
    if (across > 1 && Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top) > 1)
      found.push(`${shown[place - 1].textContent} | ${shown[place].textContent}`);
  }
}
return found;
"""
EMPTY = """
const marks = ".view svg .role-mark path, .view svg .role-mark line";
return [...document.querySelectorAll("[data-figure]")]
  .filter((figure) => figure.offsetParent && figure.querySelectorAll(marks).length < 2).map((figure) => figure.id);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1024, 1400, 1920])
def test_every_figure_is_drawn_whole(driver, folder, width, scheme):
    assert opened(driver, folder, width, scheme) == []
    assert driver.execute_script("return document.querySelectorAll('.view svg').length") >= 10
    assert driver.execute_script(CLIPPED) == []
    assert driver.execute_script(CROWDED) == []
    assert driver.execute_script(EMPTY) == []


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("effects", "intervention", "bottom 1%"),
        ("effects", "order", "name"),
        ("effects", "axis", "linear"),
        ("effects", "family", "Slavic"),
        ("atlas", "region", "random 1%"),
        ("residual", "region", "random 1%"),
        ("inside_out", "role", "down"),
        ("pairs", "second", "ru"),
        ("curve", "line", "en"),
        ("frontier", "group", "core"),
    ],
)
def test_controls_change_the_picture(driver, folder, name, parameter, value):
    opened(driver, folder)
    before = picture(driver, name)
    options = f"#figure_{name} select[name='{parameter}']"
    others = driver.execute_script(f'return [...document.querySelector("{options}").options].map((each) => each.text)')
    current = driver.execute_script(f'return document.querySelector("{options}").selectedOptions[0].text')
    chosen(driver, name, parameter, value if value != current else next(other for other in others if other != current))
    waited(driver, f"return document.querySelector('#figure_{name} .view svg').outerHTML !== arguments[0]", before)


def test_a_cell_of_the_atlas_opens_its_matrix(driver, folder):
    opened(driver, folder)
    before = [picture(driver, name) for name in ("inside_out", "inside_in")]
    cells = driver.find_elements("css selector", "#figure_atlas .view .mark-rect.role-mark path")
    assert len(cells) == 4  # two layers, two roles
    for cell in cells:  # one of them is open already
        webdriver.ActionChains(driver).move_to_element(cell).click().perform()
        time.sleep(0.3)
    after = [picture(driver, name) for name in ("inside_out", "inside_in")]
    assert [old != new for old, new in zip(before, after, strict=True)] == [True, True]


def test_a_table_is_sorted_by_its_heads(driver, folder):
    opened(driver, folder)
    rows = "[...document.querySelectorAll('#table_effects_by_intervention tbody tr')]"
    column = f"return {rows}.map((row) => +row.children[4].dataset.key)"
    head = "document.querySelectorAll('#table_effects_by_intervention thead button')[4].click();"
    falling = driver.execute_script(head + column)
    assert falling == sorted(falling, reverse=True) != driver.execute_script(head + column)
    assert driver.execute_script(column) == sorted(falling)


def test_paper_holds_the_whole_page(driver, folder):
    opened(driver, folder, 794)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert driver.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    printed = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"])
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert printed.startswith(b"%PDF")
    assert len(printed) > 50_000


def test_whatever_is_read_out_has_a_name(driver, folder):
    opened(driver, folder)
    nameless = """
    const parts = document.querySelectorAll("select, button, [role=img], [role=region], [role=graphics-symbol]");
    const named = (part) => part.getAttribute("aria-label") || part.closest("label")
      || (part.tagName !== "SELECT" && part.textContent.trim());
    return [...parts].filter((part) => !named(part)).map((part) => part.outerHTML.slice(0, 200));
    """
    assert driver.execute_script(nameless) == []
    assert driver.execute_script("return document.documentElement.lang") == "en"
