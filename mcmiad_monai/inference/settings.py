"""Options of inference, and what a bundle's inference.yaml says of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcmiad_monai.errors import BundleError
from mcmiad_monai.files.reading import read_yaml

if TYPE_CHECKING:
    from mcmiad_monai.runtime.open import Engine
    from mcmiad_monai.runtime.precision import Precision
    from mcmiad_monai.transforms.recipes import Region

logger = logging.getLogger(__name__)

#: Heatmaps are in units of the pixel threshold.
HEATMAP_THRESHOLD = 1.0

#: Settings of a bundle's inference.yaml, and the options that they are here.
SETTINGS = {
    "engine": "engine",
    "precision": "precision",
    "compile": "compiled",
    "batch_size": "batch_size",
    "mask_threshold": "mask_threshold",
    "check_modality": "check_modality",
    "study_modality": "modality",
    "slice_range": "slice_range",
    "region": "region",
    "organ_label": "organ_label",
    "max_voxels": "max_voxels",
}
#: Parts of a bundle's inference.yaml that `Predictor` has in Python.
STEPS = ("preprocessing", "network", "inferer", "postprocessing")


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How a model looks at studies.

    Attributes
    ----------
    engine : {"auto", "torch", "onnxruntime", "openvino"}
        What computes; see `open_network`.
    precision : {"float32", "bfloat16"}
        Of the products.
    compiled : bool
        Of PyTorch on a GPU.
    batch_size : int, optional
        Slices in one call of the network; by default what the engine is fast with.
    mask_threshold : float
        Of the mask, in units of the calibrated pixel threshold.
    check_modality : bool
        Refuse studies that are of another modality by their header or their values.
    modality : str, optional
        Of every study that does not say it itself; for a unified model.
    slice_range : (float, float), optional
        Share of the slices to look at; by default what the model was trained for.
    region : {"whole", "organ"}, optional
        Where to look; by default what the model was trained for.
    organ_label : int, optional
        Value of the organ in a mask of many; by default that of the training.
    max_voxels : int, optional
        Of a study, by its header: a larger one is refused before it is unpacked; by default
        5·10⁸, which are 2·10⁹ bytes as float32.
    """

    engine: Engine = "auto"
    precision: Precision = "float32"
    compiled: bool = False
    batch_size: int | None = None
    mask_threshold: float = HEATMAP_THRESHOLD
    check_modality: bool = True
    modality: str | None = None
    slice_range: Sequence[float] | None = None
    region: Region | None = None
    organ_label: int | None = None
    max_voxels: int | None = None

    def __post_init__(self) -> None:
        """Refuse values of other types: a bundle's file can hold anything.

        Raises
        ------
        ValueError
            Naming the option.
        """
        needed = {
            "batch_size": (self.batch_size is None or _whole(self.batch_size), "a number from 1"),
            "max_voxels": (self.max_voxels is None or _whole(self.max_voxels), "a number from 1"),
            "mask_threshold": (_finite(self.mask_threshold), "a number"),
            "compiled": (isinstance(self.compiled, bool), "true or false"),
            "check_modality": (isinstance(self.check_modality, bool), "true or false"),
            "modality": (self.modality is None or isinstance(self.modality, str), "a name"),
            "slice_range": (_is_range(self.slice_range), "two numbers, 0 <= from < to <= 1"),
            "region": (self.region in (None, "whole", "organ"), "whole or organ"),
            "organ_label": (self.organ_label is None or _finite(self.organ_label), "a number"),
        }
        for name, (good, expected) in needed.items():
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {expected}.")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return _finite(value) and value >= 1 and value == int(value)


def _is_range(value: Any) -> bool:
    if value is None:
        return True
    pair = isinstance(value, Sequence) and len(value) == 2 and all(map(_finite, value))
    return pair and 0 <= value[0] < value[1] <= 1


def bundle_settings(root: Path) -> dict[str, Any]:
    """Settings of a bundle's ``inference.yaml``, read as plain YAML: no code is run.

    Expressions (``$…``, ``@…``) are the file's own defaults and left out.
    """
    path = root / "configs" / "inference.yaml"
    if not path.is_file():
        raise BundleError(f"{root} is no bundle of this project: {path} does not exist.")
    content = read_yaml(path)
    found = {
        option: content[key]
        for key, option in SETTINGS.items()
        if key in content and not str(content[key]).startswith(("$", "@"))
    }
    _warn_of_other_steps(path, content)
    return {**found, "bundle_modality": content.get("modality")}


def _warn_of_other_steps(path: Path, content: Mapping[str, Any]) -> None:
    """Log a warning if the file names other steps than the shipped bundle of its modality."""
    name = f"{content.get('modality')}_anomaly"
    shipped = files("mcmiad_monai.bundles") / name / "configs" / "inference.yaml"
    if not shipped.is_file():
        return
    standard = read_yaml(Path(str(shipped)))
    other = [part for part in STEPS if part in content and content[part] != standard[part]]
    if other:
        logger.warning(
            "%s has other steps than this version in %s; they are not used here. To run the file "
            "as it is, use: python -m monai.bundle run --config_file %s",
            path.name,
            ", ".join(other),
            path,
        )
