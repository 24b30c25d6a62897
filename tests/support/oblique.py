"""Affines of anisotropic voxels that no axis of the world runs along."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

#: Sheared, permuted and flipped.
OBLIQUE = np.array(
    [[0.1, -1.1, 0.4, 12.0], [0.9, 0.3, -0.6, -34.0], [0.2, 0.1, -3.1, 56.0], [0, 0, 0, 1.0]]
)
#: Voxel size in mm along the axis of a letter.
SPACING = {"R": 1.2, "L": 1.2, "A": 0.9, "P": 0.9, "S": 4.0, "I": 4.0}


def oblique_affine(codes: str) -> np.ndarray:
    """Axes of ``codes``, turned by 17° about a slanted axis, with an offset."""
    turn = Rotation.from_rotvec(np.deg2rad(17) * np.array([2, 1, 2]) / 3).as_matrix()
    axes = np.zeros((3, 3))
    for column, (row, sign) in enumerate(nib.orientations.axcodes2ornt(codes)):
        axes[int(row), column] = sign
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * [SPACING[c] for c in codes]
    affine[:3, 3] = (31.0, -57.0, 12.0)
    return affine
