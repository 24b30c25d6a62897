"""The segmentation has the voxels of the one with which MONAI Label answers.

MONAI Label's environment needs pydicom below 3, and writes its segmentations by dcmqi, from the
labels that `render` makes; here both are made from one heatmap.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Literal

import highdicom as hd
import numpy as np
import pytest
from known_heat import SERIES, heat_on, tool

from mcmiad_monai.dicom.objects import write_objects
from mcmiad_monai.dicom.source import read_source

render = pytest.importorskip(
    "mcmiad_monai.monailabel.render", reason="the app's requests need MONAI Label"
)

CODES = {"CodeValue": "49755003", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Anomaly"}


@pytest.mark.parametrize("kind", ["mask", "bands"])
@pytest.mark.parametrize("grid", ["oblique", "descending"])
def test_segments_are_those_of_monai_label(
    tmp_path: Path, grid: str, kind: Literal["mask", "bands"]
) -> None:
    writer = tool("itkimage2segimage")
    series = SERIES[grid](tmp_path / "series")
    prediction = heat_on(series)
    (ours,) = write_objects(
        prediction, read_source(series), ["seg"], tmp_path / "out", bands=kind == "bands"
    )
    heat, affine = prediction.heatmap.numpy()[0], prediction.heatmap.affine.numpy()
    labels = render.render(heat, kind, threshold=1.0, dtype=np.dtype(np.uint16))
    volume = render.write_volume(labels, affine, ".nii.gz")
    segments = [
        {
            "labelID": int(value),
            "SegmentLabel": render.LABELS[int(value)],
            "SegmentAlgorithmType": "AUTOMATIC",
            "SegmentAlgorithmName": "mcmiad_monai",
            "SegmentedPropertyCategoryCodeSequence": CODES,
            "SegmentedPropertyTypeCodeSequence": CODES,
        }
        for value in np.unique(labels[labels > 0])
    ]
    about = tmp_path / "about.json"
    about.write_text(json.dumps({"segmentAttributes": [segments]}))
    theirs = tmp_path / "theirs.dcm"
    arguments = ["--inputImageList", str(volume), "--inputDICOMDirectory", str(series)]
    arguments += ["--inputMetadata", str(about), "--outputDICOM", str(theirs)]
    subprocess.run([writer, *arguments], check=True, capture_output=True)
    volume.unlink()
    assert segments_in(ours) == segments_in(theirs)


def segments_in(path: Path) -> dict[str, list[tuple[float, ...]]]:
    """Label of each segment → places of its voxels in LPS millimetres, sorted."""
    read = hd.seg.segread(path)
    found = {}
    for number in read.segment_numbers:
        volume = read.get_volume(segment_numbers=[number], combine_segments=True)
        places = np.argwhere(volume.array) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        name = read.get_segment_description(number).segment_label
        found[name] = sorted(tuple(place) for place in places.round(2).tolist())
    return found
