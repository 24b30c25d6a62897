"""What differs between brain MRI, liver CT and retina OCT, in one readable place.

A modality names its normal-anatomy prompts (paper, appendix A.2), the axis along which volumes are
cut into slices, the intensity recipe, its code in DICOM headers and the folder names that BMAD uses
for it. ``unified`` stands for all of them: each study then is of a modality of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

IntensityRecipe = Literal["mri", "ct", "oct"]


@dataclass(frozen=True)
class Modality:
    """One kind of study.

    Attributes
    ----------
    name : str
        Identifier used in configurations, e.g. ``"brain_mri"``.
    title : str
        Name for people.
    axcodes : str
        Canonical orientation of volumes. ``"LPS"`` makes an axial slice, shown as rows = posterior
        and columns = patient left, look as a radiologist expects it.
    slice_axis : int
        Axis of the canonical volume along which slices are cut: 0, 1 or 2.
    intensity : {"mri", "ct", "oct"} or None
        Normalisation recipe of ``mcmiad_monai.transforms.intensity``; None where each study has
        that of its own modality.
    dicom : str or None
        What the attribute Modality (0008,0060) of a DICOM header says.
    prompts : tuple of str
        Five descriptions of normal anatomy.
    bmad_folders : tuple of str
        Folder names of this modality in the releases of BMAD.
    symmetric : bool
        Whether the left half of a healthy slice looks like the right one.
    mirrors : bool
        Whether a slice flipped left to right is one of another healthy person: training may then
        use it. A retina's is the other eye's; a liver lies on one side.
    bright_lesions : bool
        Whether lesions are brighter than healthy tissue, as oedema, gliosis, demyelination and most
        tumours are on FLAIR (Meissen et al., BrainLes 2021). The image's brightness may then be
        chosen as a source of the score without labelled images.
    """

    name: str
    title: str
    axcodes: str
    slice_axis: int
    intensity: IntensityRecipe | None
    dicom: str | None
    prompts: tuple[str, ...]
    bmad_folders: tuple[str, ...]
    symmetric: bool = False
    mirrors: bool = False
    bright_lesions: bool = False

    @property
    def is_unified(self) -> bool:
        """Whether studies of several modalities are meant."""
        return self.intensity is None


BRAIN_MRI = Modality(
    name="brain_mri",
    title="brain MRI (T2-FLAIR)",
    axcodes="LPS",
    slice_axis=2,
    intensity="mri",
    dicom="MR",
    prompts=(
        "A FLAIR brain MRI slice of a healthy adult with no tumor, mass effect, or abnormal "
        "hyperintense regions.",
        "A normal brain MRI FLAIR image showing symmetric ventricles and clean white matter "
        "without lesions.",
        "A T2-FLAIR axial brain MRI with intact gray–white matter boundaries and no signs of "
        "edema or glioma.",
        "A neurologically normal brain MRI without hemorrhage, infarction, or abnormal contrast "
        "in the parenchyma.",
        "A diagnostically unremarkable brain MRI scan used as a reference for healthy anatomy.",
    ),
    bmad_folders=("Brain_AD", "Brain", "brain"),
    symmetric=True,
    mirrors=True,
    bright_lesions=True,
)

RETINA_OCT = Modality(
    name="retina_oct",
    title="retina OCT",
    axcodes="LPS",
    slice_axis=2,
    intensity="oct",
    dicom="OPT",
    prompts=(
        "A healthy retinal OCT B-scan with smooth, continuous retinal layers and a normal foveal "
        "depression.",
        "A normal macular OCT image without intraretinal or subretinal fluid, cysts, or "
        "hyperreflective foci.",
        "A high-quality retinal OCT slice showing intact outer retinal layers and a regular "
        "retinal pigment epithelium band.",
        "A clinically normal OCT scan of the macula used as a reference for healthy retinal "
        "structure.",
        "A retinal OCT image from an eye without diabetic macular edema, neovascularization, or "
        "drusen.",
    ),
    bmad_folders=(
        "Retina_RESC_AD",
        "Retina_OCT2017_AD",
        "Retina_RESC",
        "Retina_OCT2017",
        "retinal",
    ),
    mirrors=True,
)

LIVER_CT = Modality(
    name="liver_ct",
    title="liver CT",
    axcodes="LPS",
    slice_axis=2,
    intensity="ct",
    dicom="CT",
    prompts=(
        "A normal contrast-enhanced liver CT slice with homogeneous liver parenchyma and no focal "
        "lesions.",
        "An abdominal CT image where the liver appears smooth, with clear margins and no visible "
        "tumors or nodules.",
        "A healthy liver CT slice showing normal vessel enhancement and no hypodense or "
        "hyperdense abnormal areas.",
        "A diagnostic liver CT scan from a patient without hepatic tumors, cysts, or metastases.",
        "A standard liver CT image used as a normal reference in medical imaging studies.",
    ),
    bmad_folders=("Liver_AD", "Liver", "liver"),
)

MODALITIES: dict[str, Modality] = {m.name: m for m in (BRAIN_MRI, RETINA_OCT, LIVER_CT)}

#: One model for all of them; each study then says of which modality it is.
UNIFIED = Modality(
    name="unified",
    title="brain MRI, retina OCT or liver CT",
    axcodes="LPS",
    slice_axis=2,
    intensity=None,
    dicom=None,
    prompts=tuple(p for m in MODALITIES.values() for p in m.prompts),
    bmad_folders=(),
)


def get_modality(name: str) -> Modality:
    """Look a modality up by name; ``"unified"`` stands for all.

    Raises
    ------
    ValueError
        If there is no such modality; the message lists those there are.
    """
    known = {**MODALITIES, UNIFIED.name: UNIFIED}
    if name not in known:
        raise ValueError(f"modality {name!r} is not known; choose one of {sorted(known)}.")
    return known[name]


def modality_of_dicom(code: str) -> str | None:
    """Name of the modality that a DICOM header calls ``code``, e.g. ``"MR"``; None for others."""
    return next((m.name for m in MODALITIES.values() if m.dicom == code), None)


def modality_of_folder(name: str) -> str | None:
    """Name of the modality whose images lie in a folder of this name; None for others."""
    lowered = name.lower()
    for modality in MODALITIES.values():
        if lowered == modality.name or lowered in map(str.lower, modality.bmad_folders):
            return modality.name
    return None


def normal_prompts() -> tuple[str, ...]:
    """All 15 prompts of the paper's appendix A.2, five a modality, in the paper's order."""
    return tuple(p for modality in MODALITIES.values() for p in modality.prompts)
