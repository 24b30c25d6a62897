"""What the model found in a study, and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from mcmiad_monai.inference.nearest import NearestNormal, Recall, same_place
from mcmiad_monai.inference.writers import Write, is_picture, write_study
from mcmiad_monai.modality import get_modality
from mcmiad_monai.transforms import CanonicalOrientation
from mcmiad_monai.transforms.metadata import PICTURE

#: Key of a study's scores: which DICOM objects were asked for, and their files.
DICOM = "dicom"
#: Slices in a preview.
PREVIEW_SLICES = 4


@dataclass(frozen=True, repr=False)
class Prediction:
    """Heatmap, mask and scores of one study, on the study's own grid.

    Attributes
    ----------
    heatmap : MetaTensor of shape (1, X, Y, Z)
        float32; 1.0 is the calibrated pixel threshold.
    mask : MetaTensor of shape (1, X, Y, Z)
        uint8; 1 where the heatmap exceeds the mask's threshold.
    scores : dict
        What ``<case>_scores.json`` holds; see `study_scores`.
    image : MetaTensor of shape (1, X', Y', Z'), of colours (3, X', Y', Z')
        The normalised study on the canonical grid, for pictures.
    """

    heatmap: MetaTensor
    mask: MetaTensor
    scores: dict[str, Any]
    image: MetaTensor
    _recall: Recall | None = field(default=None, compare=False)
    _objects: Mapping[str, Write | None] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        score = None if self.score is None else f"{self.score:.4g}"
        return (
            f"Prediction(name={self.name!r}, shape={tuple(self.heatmap.shape)}, "
            f"score={score}, threshold={self.threshold}, anomalous={self.anomalous})"
        )

    @property
    def name(self) -> str:
        """Name of the study, and of its files."""
        return str(self.scores["case"])

    @property
    def modality(self) -> str:
        """Name of the study's modality, e.g. ``"brain_mri"``."""
        return str(self.scores["modality"])

    @property
    def score(self) -> float | None:
        """Anomaly score of the study; None if no slice was looked at."""
        return self.scores["volume_score"]

    @property
    def threshold(self) -> float | None:
        """Threshold of the score; None where the model could not set one."""
        return self.scores["volume_threshold"]

    @property
    def anomalous(self) -> bool | None:
        """Whether the score exceeds its threshold; None is no verdict."""
        return self.scores["anomalous"]

    @property
    def warnings(self) -> list[str]:
        """Why not to trust the score: ``"nothing_looked_at"`` or ``"out_of_distribution"``."""
        return list(self.scores["warnings"])

    @property
    def slice_scores(self) -> NDArray[np.float64]:
        """Score of each slice (n,) along ``scores["slice_axis"]``, NaN where not looked at."""
        count = self.heatmap.shape[1 + self.scores["slice_axis"]]
        scores = np.full(count, np.nan)
        for entry in self.scores["slices"]:
            scores[entry["index"]] = entry["score"]
        return scores

    def nearest_normal(self, at: Sequence[int] | None = None) -> NearestNormal:
        """Which normal training slice a place resembles most, and how far it is from it.

        The features of one slice are computed again, by PyTorch.

        Parameters
        ----------
        at : (int, int, int), optional
            Voxel of the study, in its own array; by default the hottest.

        Raises
        ------
        NoMemoryError
            If the model has no memory of normal images.
        ValueError
            If the model did not look at the place, or did not make this prediction.
        """
        if self._recall is None:
            raise ValueError(
                "this prediction knows of no model; take it from a model: load(path)(study)."
            )
        heat = self.heatmap.numpy()[0]
        found = np.unravel_index(int(heat.argmax()), heat.shape) if at is None else at
        x, y, z = (int(n) for n in found)
        self._require_seen((x, y, z))
        return self._recall((x, y, z), self.heatmap.affine.numpy())

    def _require_seen(self, at: tuple[int, int, int]) -> None:
        shape = self.heatmap.shape[1:]
        if all(0 <= n < size for n, size in zip(at, shape, strict=True)):
            x, y, z = same_place(at, self.heatmap.affine.numpy(), self.image.affine.numpy())
            inside = bool((self.image.numpy()[:, x, y, z] > 0).any())
            if inside and np.isfinite(self.slice_scores[at[self.scores["slice_axis"]]]):
                return
        raise ValueError(
            f"the model did not look at voxel {at} of {self.name}, whose shape is {tuple(shape)}: "
            "it lies outside the image, the foreground, the field of view or the slices that are "
            "looked at. Choose one where the heatmap is above 0, or leave it out for the hottest."
        )

    def with_objects(
        self, writes: Mapping[str, Write | None], form: Mapping[str, bool] | None = None
    ) -> Prediction:
        """The same with DICOM objects, which `save` writes beside its other files.

        Parameters
        ----------
        writes : mapping
            Kind of an object, such as ``"seg"`` → what writes its file, None where there is none;
            as `mcmiad_monai.dicom.objects.object_writes` gives them.
        form : mapping, optional
            Options of the objects; the scores keep them with the names of the files.
        """
        files = {
            kind: None if write is None else f"{self.name}_{kind}.dcm"
            for kind, write in writes.items()
        }
        scores = {**self.scores, DICOM: {**(form or {}), "files": files}}
        return replace(self, scores=scores, _objects=dict(writes))

    def save(self, out: str | Path, *, pictures: bool = True, nifti: bool = True) -> Path:
        """Write heatmap, mask and scores into ``out/<name>/``, each file whole or not at all.

        Parameters
        ----------
        out : path
            Folder of the cohort.
        pictures : bool
            A study that was a picture comes back as pictures; False writes NIfTI for it too.
        nifti : bool
            Write heatmap and mask; False leaves the scores, and the objects of `with_objects`.

        Returns
        -------
        Path
            The study's folder.

        Raises
        ------
        StudyExistsError
            If the folder holds the result of another input; see `write_study`.
        """
        image = self.image if pictures and is_picture(self.heatmap) else None
        scores = self.scores
        if scores.get("input") is None:  # an image that was in memory
            values = np.ascontiguousarray(self.image.numpy())
            scores = {**scores, "input": sha256(values.data).hexdigest()}
        more = {f"{kind}.dcm": write for kind, write in self._objects.items()}
        return write_study(
            Path(out), scores, self.heatmap, self.mask, image, nifti=nifti, more=more
        )

    def preview(
        self,
        path: str | Path,
        *,
        count: int = PREVIEW_SLICES,
        title: str | None = None,
        heading: str | None = None,
    ) -> Path:
        """Draw the hottest slices, with and without heat, as a PNG.

        Parameters
        ----------
        path : path
            File to write.
        count : int
            Slices to show.
        title : str, optional
            Beside each slice, by default the name of the study.
        heading : str, optional
            Above all.
        """
        from mcmiad_monai.inference.montage import MontageRow, montage, pick_slices

        kind = get_modality(self.modality)
        heat = CanonicalOrientation(kind.axcodes)(self.heatmap).numpy()[0]
        spacing = np.linalg.norm(self.image.affine.numpy()[:3, :3], axis=0)
        rows = [
            MontageRow(
                image=self.image.numpy()[0],
                heatmap=heat,
                index=index,
                title=self.name if title is None else title,
                threshold=1.0,  # heatmaps are in units of the calibrated threshold
                zooms=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
                axis=kind.slice_axis,
                oriented=not self.heatmap.meta.get(PICTURE),
            )
            for index in pick_slices(heat, count, axis=kind.slice_axis)
        ]
        return montage(rows, path, title=heading)
