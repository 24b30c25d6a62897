"""The page of a study: image and heat to look through, profile of slices, findings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from PIL import Image

from mcmiad_monai.inference.montage import pick_slices
from mcmiad_monai.inference.placement import VIEWER_HEATMAP
from mcmiad_monai.modality import MODALITIES
from mcmiad_monai.report.drawing import around_body, colours, scale_end, slice_picture
from mcmiad_monai.report.findings import findings_table, notices, provenance
from mcmiad_monai.report.html import NIIVUE, Html, document, fill, join, resource
from mcmiad_monai.report.images import Images
from mcmiad_monai.report.packing import (
    HEAT_SHARE,
    VOLUME_BYTES,
    base64,
    packed_heat,
    packed_image,
    webp_address,
)
from mcmiad_monai.report.pictures import load_picture, picture_data, picture_overlay
from mcmiad_monai.report.rows import Row
from mcmiad_monai.report.volumes import Shown, load_shown
from mcmiad_monai.report.words import DISCLAIMER, STATES

#: Pixels of the longer side of a slice in the montage, and of a study in the list.
MONTAGE_SIDE, THUMBNAIL_SIDE = 300, 72
#: Slices of the montage.
MONTAGE_SLICES = 6


@dataclass(frozen=True)
class StudyPage:
    """A page, and the small picture that stands for it in the list."""

    html: str
    thumbnail: str


@dataclass(frozen=True)
class Place:
    """Where a page stands among the others.

    Attributes
    ----------
    name : str
        Of the study, as pages show it.
    number, total : int
        From the most anomalous page, which is 1.
    previous, following : str, optional
        Address of the pages beside it.
    """

    name: str
    number: int
    total: int
    previous: str | None = None
    following: str | None = None


def study_page(row: Row, images: Images, place: Place) -> StudyPage:
    """Make the page of a study whose files are there.

    Raises
    ------
    OSError, ValueError
        If one of its files cannot be read.
    """
    if row.folder is None:
        raise ValueError(f"study {row.case} has no files; a page needs its heatmap.")
    stem = row.folder / row.case
    scores = json.loads(Path(f"{stem}_scores.json").read_text(encoding="utf-8"))
    image, missing = images.of(row, scores)
    picture = Path(f"{stem}_heatmap.tiff")
    if picture.is_file():
        data, thumbnail, montage = _picture(picture, image, scores)
        stage, programs = resource("pages/picture.html"), ["pages/picture.js"]
    else:
        data, thumbnail, montage = _volume(stem, row, image, scores)
        stage = resource("pages/volume.html")
        programs = [NIIVUE, "pages/volume.js"]
    label, meaning = STATES[row.state]
    body = fill(
        resource("pages/study.html"),
        name=place.name,
        state=row.state,
        label=label,
        meaning=meaning,
        number=place.number,
        total=place.total,
        beside=_beside(place),
        notices=notices(row, missing, data),
        stage=Html(stage),
        profile=Html(resource("pages/profile.html") if data["slices"] else ""),
        findings=findings_table(row, scores),
        montage=montage,
        provenance=provenance(row, scores),
        disclaimer=DISCLAIMER,
    )
    page = document(
        title=f"{place.name} – {label}",
        body=body,
        styles=("pages/base.css", "pages/study.css"),
        scripts=("pages/study.js", *programs),
        data=data,
    )
    return StudyPage(page, thumbnail)


def _beside(place: Place) -> Html:
    """Links to the pages beside a page."""
    links = (("Previous", "prev", place.previous), ("Next", "next", place.following))
    return join(
        [
            fill('<a class="button" rel="$rel" href="$to">$word</a>', rel=rel, to=to, word=word)
            if to
            else fill('<span class="button off" aria-hidden="true">$word</span>', word=word)
            for word, rel, to in links
        ]
    )


def _volume(
    stem: Path, row: Row, image: Path | None, scores: Mapping[str, Any]
) -> tuple[dict[str, Any], str, Html]:
    """Data, thumbnail and montage of a volume."""
    viewer = scores.get(VIEWER_HEATMAP)
    kind = MODALITIES.get(row.modality or "")
    shown = load_shown(
        Path(f"{stem}_heatmap.nii.gz"),
        image,
        viewer=stem.parent / Path(str(viewer)).name if viewer else None,
        ct=kind is not None and kind.intensity == "ct",
    )
    end = scale_end(row.hottest)
    heat = packed_heat(shown, int(HEAT_SHARE * VOLUME_BYTES))
    grey = packed_image(shown, VOLUME_BYTES - len(heat["nifti"]))
    size = np.asarray(grey["steps"]) * np.asarray(grey["shape"])  # voxels, with the repeated edge
    axis = _axis_of(shown, int(scores["slice_axis"]))
    data = {
        "kind": "volume",
        "image": grey,
        "heat": heat,
        "colours": base64(colours().tobytes()),
        "end": end,
        "axis": axis,
        "slices": _profile(shown, scores, axis, int(size[axis])),
        "limit": next((s["slice_threshold"] for s in scores["slices"]), None),
        "hottest": _hottest(shown, scores, size),
    }
    chosen = hottest_slices(shown.heat, axis)
    by_heat = max(chosen, key=lambda k: float(np.take(shown.heat, k, axis=axis).max()))
    body = around_body(shown, axis)
    small = slice_picture(body, axis, by_heat, end, side=THUMBNAIL_SIDE)
    pictures = [slice_picture(body, axis, k, end, side=MONTAGE_SIDE) for k in chosen]
    numbers = [_source_index(shown, scores, axis, k) for k in chosen]
    places = [(k + 0.5) / float(size[axis]) for k in chosen]
    return data, webp_address(small), _montage(pictures, numbers, places)


def _picture(
    heatmap: Path, image: Path | None, scores: Mapping[str, Any]
) -> tuple[dict[str, Any], str, Html]:
    """Data, thumbnail and montage, which it has none of, of a picture."""
    heat, grey = load_picture(heatmap, image)
    end = scale_end(scores.get("hottest"))
    small = Image.fromarray(picture_overlay(heat, grey, end))
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    data = {
        **picture_data(heat, grey),
        "colours": base64(colours().tobytes()),
        "end": end,
        "slices": [],
    }
    return data, webp_address(small), Html("")


def _axis_of(shown: Shown, source_axis: int) -> int:
    """Axis of the shown arrays along which the slices of the study lie."""
    turn = orientations.io_orientation(shown.source_affine)
    return int(turn[source_axis, 0])


def _slice_centre(shown: Shown, scores: Mapping[str, Any], index: float) -> Any:
    """Voxel of the shown arrays in the middle of a slice of the study."""
    corner = shown.voxel(shown.source_affine[:3, 3])
    step = shown.voxel(shown.source_affine[:3, 3] + shown.source_affine[:3, scores["slice_axis"]])
    return corner + index * (step - corner)


def hottest_slices(heat: NDArray[Any], axis: int) -> list[int]:
    """Slices for the montage: first those with heat beyond the threshold, then those with any.

    Slices that were not looked at, which have no heat, are left out; of a study without heat the
    middle one is shown.
    """
    # so little of all heat that it decides only between slices without any beyond the threshold
    weighed = np.maximum(heat - 1, 0) + 1e-6 * np.maximum(heat, 0)
    chosen = pick_slices(weighed, MONTAGE_SLICES, axis=axis)
    others = tuple(n for n in range(3) if n != axis)
    looked_at = heat.max(axis=others) > 0
    return [k for k in chosen if looked_at[k]] or pick_slices(weighed, 1, axis=axis)


def _source_index(shown: Shown, scores: Mapping[str, Any], axis: int, k: int) -> int:
    """Index of a shown slice in the study's own array."""
    first, second = (_slice_centre(shown, scores, n)[axis] for n in (0, 1))
    return round((k - first) / (second - first))


def _profile(
    shown: Shown, scores: Mapping[str, Any], axis: int, size: int
) -> list[tuple[int, float, int, float]]:
    """Index, score, whether above, and place from 0 to 1, of each slice that was looked at."""
    return [
        (
            entry["index"],
            float(f"{entry['score']:.4g}"),
            int(entry["anomalous"] is True),
            round(float(_slice_centre(shown, scores, entry["index"])[axis] + 0.5) / size, 5),
        )
        for entry in sorted(scores["slices"], key=lambda entry: int(entry["index"]))
    ]


def _hottest(shown: Shown, scores: Mapping[str, Any], size: Any) -> list[float] | None:
    """The hottest place of a study, from 0 to 1 along each axis of what is shown."""
    if (mm := scores.get("hottest_mm")) is not None:
        voxel = shown.voxel(np.asarray(mm))
    elif shown.heat.max(initial=0) > 0:
        voxel = np.asarray(np.unravel_index(int(shown.heat.argmax()), shown.heat.shape))
    else:
        return None
    return [round(float(share), 5) for share in (voxel + 0.5) / size]


def _montage(pictures: list[Image.Image], numbers: list[int], places: list[float]) -> Html:
    """Buttons with slices, which take the viewer there."""
    one = (
        '<button class="slice" data-at="$at"><img src="$source" width="$width" height="$height" '
        'alt="Slice $number with its heat"><span>Slice $number</span></button>'
    )
    return fill(
        resource("pages/montage.html"),
        slices=join(
            [
                fill(
                    one,
                    at=f"{at:.5f}",
                    source=webp_address(picture),
                    width=picture.width,
                    height=picture.height,
                    number=number,
                )
                for picture, number, at in zip(pictures, numbers, places, strict=True)
            ]
        ),
    )
