from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from mcmiad_monai.data.studies import iterate_slices
from mcmiad_monai.research.bmad.phantom import write_bmad_phantom
from mcmiad_monai.research.bmad.report import bmad_report
from mcmiad_monai.research.bmad.sets import find_bmad


def test_white_alone_is_lesion_where_masks_are_read_so(tmp_path: Path) -> None:
    root = write_bmad_phantom(tmp_path, layout="archive", sets=["brain"], size=32)
    any_grey, white = find_bmad(root), find_bmad(root, masks="white")
    checked = 0
    for one, other in zip(
        any_grey["brain"].cases("test"), white["brain"].cases("test"), strict=True
    ):
        assert one == other
        (sample,) = iterate_slices(
            [other], "brain_mri", min_foreground=0, size=32, transform=white["brain"].transform()
        )
        if other["label"]:
            grey = np.asarray(Image.open(other["label"]).convert("RGB").convert("L"))
            bmad = (grey / 255).astype(int)  # as BMAD's fork of anomalib has it
            assert np.array_equal(sample.lesion[0].numpy(), bmad > 0)
            checked += 0 < (bmad > 0).sum() < (grey > 0).sum()
    assert checked
    with pytest.raises(ValueError, match="masks are 'half'"):
        find_bmad(root, masks="half")  # type: ignore[arg-type]


def test_check_tells_the_kind_of_masks_and_what_white_alone_would_empty(tmp_path: Path) -> None:
    root = write_bmad_phantom(tmp_path, sets=["brain", "liver", "resc"], size=32)
    places = {
        name: sorted((root / name).rglob("anomaly_mask/*.png"))
        for name in ("Brain_AD", "Liver_AD", "Retina_RESC_AD")
    }
    for path in places["Liver_AD"]:
        Image.fromarray(255 * (np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    for path in places["Retina_RESC_AD"][:3]:
        Image.fromarray(np.minimum(np.asarray(Image.open(path)), 60)).save(path)
    for k, path in enumerate(places["Brain_AD"]):
        labels = np.asarray(Image.open(path))
        labels = np.where(labels == 255, 4, np.where(labels > 0, 1 + k % 2, 0))
        plt.imsave(path, labels, cmap="bone", vmin=0, vmax=4)
    notes = bmad_report(find_bmad(root), verify=True).notes
    (brain,) = [note for note in notes if note.startswith("brain masks")]
    assert "labels in bone colours, as BMAD's brain masks are" in brain
    assert "255" in brain
    assert "0 more of 12 masks are empty" in brain
    assert "liver masks are black and white: all above 0 and white alone are the same" in notes
    (resc,) = [note for note in notes if note.startswith("resc masks")]
    assert "greys 60, 255;" in resc
    assert "3 more of 12 masks are empty" in resc
