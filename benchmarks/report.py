"""Size and time of the pages of a report, and how long a browser takes to open a large cohort.

    python benchmarks/report.py
    python benchmarks/report.py --studies 1000 100000

The list of a cohort is made of rows without files. The page of a study is of a volume of noise,
which packs worse than any image. Browser: Debian's chromium, drawing in software.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mcmiad_monai.calibration import Calibration
from mcmiad_monai.report.index import index_page
from mcmiad_monai.report.packing import VOLUME_BYTES, packed_heat, packed_image
from mcmiad_monai.report.rows import Cohort, Row
from mcmiad_monai.report.volumes import Shown

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

KNOWN = Calibration(
    *(1.0, 0.005, 1.5, 2.0, 0.05, 1000, 200, 60, 60),
    volume_scores=tuple(np.linspace(0.4, 2.2, 60).round(3).tolist()),
)
#: Volumes: a FLAIR of 1 mm, an abdominal CT, a chest CT; voxels and millimetres.
VOLUMES = {
    "256 × 256 × 28": ((256, 256, 28), (1.0, 1.0, 5.0)),
    "512 × 512 × 78": ((512, 512, 78), (0.73, 0.73, 2.0)),
}


def cohort_of(count: int) -> Cohort:
    """Rows as a screening has them, of which one in fifty is refused."""
    rng = np.random.default_rng(0)
    rows = [
        Row(
            *(f"site3_patient{n:07d}_flair", "done", float(score), 2.0),
            "anomalous" if score > 2 else "normal",
            anomaly_ml=float(score) * 3,
            hottest=float(score) * 2,
            slices=24,
            slices_above=int(score),
            modality="brain_mri",
        )
        if n % 50
        else Row(f"site3_patient{n:07d}_flair", "refused", error="VolumeError: 4 dimensions")
        for n, score in enumerate(np.sort(rng.lognormal(0, 0.6, count))[::-1])
    ]
    return Cohort(rows, KNOWN.to_dict())


def cohort_figures(count: int, folder: Path) -> dict[str, Any]:
    """Megabytes of the page, seconds to make it, and to open it and to search in it."""
    cohort = cohort_of(count)
    start = time.perf_counter()
    page = folder / "index.html"
    page.write_text(index_page(cohort, [row.case for row in cohort.rows], {}), encoding="utf-8")
    made = time.perf_counter() - start
    figures = {"studies": count, "MB": page.stat().st_size / 1e6, "made_s": made}
    return figures | in_browser(page, folder)


def in_browser(page: Path, folder: Path) -> dict[str, Any]:
    """What a browser says of a page, in milliseconds; nothing where there is none."""
    from chromium import chromium

    search = (
        "(() => { const box = document.getElementById('search'); const t = performance.now();"
        "box.value = '0421'; document.getElementById('search').dispatchEvent(new Event('input'));"
        "return new Promise((done) => { const wait = () => document.getElementById('found')"
        ".textContent.includes(' of ') ? done(performance.now() - t) : setTimeout(wait, 5);"
        "wait(); }); })()"
    )
    with chromium(folder / f"profile_{page.stat().st_size}") as browser:
        browser.open(page)
        browser.wait_for("document.documentElement.dataset.ready === 'yes'")
        timing = "performance.getEntriesByType('navigation')[0].loadEventEnd"
        return {
            "open_ms": browser.ask(timing),
            "search_ms": browser.ask(search),
            "heap_MB": browser.ask("performance.memory.usedJSHeapSize") / 1e6,
        }


def volume_figures(name: str) -> dict[str, Any]:
    """Megabytes of image and heat in a page, seconds to pack them, and the size of their blocks."""
    shape, zooms = VOLUMES[name]
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    coarse = rng.random([max(2, n // 16) for n in shape], dtype=np.float32)
    heat = np.kron(coarse, np.ones((17, 17, 17), np.float32))[: shape[0], : shape[1], : shape[2]]
    shown = Shown(heat, np.diag([*zooms, 1.0]), image[tuple(map(slice, heat.shape))], np.eye(4))
    start = time.perf_counter()
    packed = packed_heat(shown, VOLUME_BYTES // 2)
    grey = packed_image(shown, VOLUME_BYTES - len(packed["nifti"]))
    return {
        "volume": name,
        "MB": (len(packed["nifti"]) + len(grey["webp"])) / 1e6,
        "packed_s": time.perf_counter() - start,
        "image_blocks": grey["steps"],
        "heat_blocks": packed["steps"],
    }


def main() -> None:
    """Print the figures, a line a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for count in options.studies:
            print(json.dumps(cohort_figures(count, Path(folder))), flush=True)
    for name in VOLUMES:
        print(json.dumps(volume_figures(name)), flush=True)


if __name__ == "__main__":
    main()
