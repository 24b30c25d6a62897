"""A head as continuous functions of position: scalp, skull, folded cortex, ventricles, cerebellum.

Coordinates are those of the head itself in mm: x to the right, y to the front, z to the top, with
the origin in the middle of the brain. Signals are those of T2-FLAIR in arbitrary units: fluid dark,
grey matter a little brighter than white matter, fat bright.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mcmiad_monai.phantom.fields import Array, SmoothField, capsule, ellipsoid, paint, step

# Half-axes of an average brain in mm: across, front to back, up, and down from the middle.
BRAIN_RADII = (66.0, 82.0, 63.0, 56.0)
# Distance between two neighbouring sulci, about one gyrus and its fold.
FOLD_WAVELENGTH = 21.0
CORTEX_THICKNESS = 3.2
FOLIA_WAVELENGTH = 7.5


@dataclass(frozen=True)
class Subject:
    """What differs between normal people and their scans: lengths in mm, unscaled signals.

    ``size`` (3, 1) stretches the average head.
    """

    size: Array
    ventricles: float
    asymmetry: float
    sulci: float
    skull: float
    scalp: float
    white: float
    grey: float
    fluid: float
    fat: float
    fold: SmoothField
    folia: SmoothField
    slow: SmoothField

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Subject:
        """Draw a person at random."""
        overall = rng.normal(1.0, 0.02)
        white = rng.uniform(0.40, 0.47)
        return cls(
            size=(overall * rng.normal(1.0, 0.02, 3)).astype(np.float32)[:, None],
            ventricles=float(np.exp(rng.normal(0.0, 0.22))),
            asymmetry=rng.normal(0.0, 0.08),
            sulci=rng.uniform(0.8, 1.2),
            skull=rng.uniform(5.5, 7.0),
            scalp=rng.uniform(4.5, 6.0),
            white=white,
            grey=white + rng.uniform(0.08, 0.12),
            fluid=rng.uniform(0.09, 0.15),
            fat=rng.uniform(0.52, 0.62),
            fold=SmoothField(rng, wavelength=FOLD_WAVELENGTH * rng.uniform(0.92, 1.08)),
            folia=SmoothField(rng, wavelength=FOLIA_WAVELENGTH),
            slow=SmoothField(rng, wavelength=48.0, order=1),
        )


@dataclass(frozen=True)
class Head:
    """A head at N points, all arrays (N,); distances are in mm."""

    signal: Array  # like FLAIR, without shading and noise
    tissue: Array  # 1 in brain tissue and its sulci, 0 outside and in the ventricles
    depth: Array  # below the surface of the cerebrum, positive inside
    from_ventricles: Array  # positive outside the ventricles


def inside_head(points: Array, subject: Subject) -> np.ndarray:
    """Which points (3, N) may carry signal: everything up to the skin."""
    margin = subject.skull + subject.scalp + 5.0
    return np.asarray(_vault(_normal_shape(points, subject)) > -margin)


def build_head(points: Array, subject: Subject) -> Head:
    """Evaluate the head of ``subject`` at ``points`` (3, N) in mm."""
    local = _normal_shape(points, subject)
    slow = subject.slow(points)
    signal = _shells(local, slow, subject)
    cerebrum, hull = _cerebrum(local, slow)
    ventricles = _ventricles(local, subject)
    signal, cerebrum_weight = _paint_cerebrum(signal, local, (cerebrum, hull), slow, subject)
    signal, hindbrain_weight = _paint_hindbrain(signal, local, subject)
    signal = _paint_deep_grey(signal, local, cerebrum, subject)
    rim = step(ventricles + 2.0, 3.0) * cerebrum_weight
    signal = paint(signal, subject.grey + 0.03, np.float32(0.6) * rim)
    fluid = step(ventricles)
    signal = paint(signal, subject.fluid, fluid)
    tissue = np.maximum(cerebrum_weight, hindbrain_weight) * (1.0 - fluid)
    return Head(signal, tissue, cerebrum, -ventricles)


def _normal_shape(points: Array, subject: Subject) -> Array:
    """Undo the subject's size and asymmetry, and the egg shape that is narrower in front."""
    local = points / subject.size
    widest = BRAIN_RADII[1]
    front = np.clip(local[1] / widest, -1.1, 1.1)
    local[0] /= 1.0 - 0.10 * front
    local[0] -= 20.0 * subject.asymmetry * front * np.abs(front)  # petalia: the ends lean aside
    return local


def _vault(local: Array) -> Array:
    """Distance inside the skull's inner surface; below the brain the head goes on as a cylinder."""
    across, along, up, down = BRAIN_RADII
    straight = local.copy()
    straight[2] = np.maximum(np.where(local[2] > 0, local[2] * (down / up), local[2]), -12.0)
    return ellipsoid(straight, (0.0, 0.0, 0.0), (across + 2.0, along + 2.0, down + 2.0))


def _mirrored(local: Array) -> Array:
    """Points with the left side laid over the right one: the head is nearly symmetric."""
    half = local.copy()
    half[0] = np.abs(local[0])
    return half


def _floor(local: Array) -> Array:
    """Height of the skull base below the frontal and occipital lobes in mm, a shallow bowl."""
    return np.asarray(-25.0 + 0.0020 * local[0] ** 2 + 0.0024 * local[1] ** 2)


def _cerebellum(local: Array) -> Array:
    """Signed distance inside the cerebellum in mm."""
    return ellipsoid(local, (0.0, -46.0, -35.0), (52.0, 34.0, 26.0))


def _stem(local: Array) -> Array:
    """Signed distance inside the brain stem in mm."""
    pons = ellipsoid(local, (0.0, -14.0, -34.0), (15.0, 11.0, 14.0))
    return np.maximum(pons, capsule(local, (0.0, -8.0, -22.0), (0.0, -24.0, -75.0), (11.0, 8.0)))


def _cerebrum(local: Array, slow: Array) -> tuple[Array, Array]:
    """Signed distances in mm: inside the cerebrum, and from its outer surface alone."""
    across, along, up, down = BRAIN_RADII
    straight = local.copy()
    straight[2] = np.where(local[2] > 0, local[2] * (down / up), local[2])
    hull = ellipsoid(straight, (0.0, 0.0, 0.0), (across, along, down)) - 0.8 + 0.5 * slow
    half = _mirrored(local)
    temporal = ellipsoid(half, (39.0, -2.0, -24.0), (23.0, 42.0, 24.0)) + 1.5 * slow
    lobes = np.maximum(local[2] - _floor(local), temporal)
    hollow = np.maximum(_cerebellum(local) + 1.2, _stem(local) + 1.2)
    return np.minimum(np.minimum(hull, lobes), -hollow), hull


def _ventricles(local: Array, subject: Subject) -> Array:
    """Signed distance inside the ventricles in mm."""
    side = np.sign(local[0]) * subject.asymmetry
    half = _mirrored(local)
    wide = 0.5 + 0.5 * subject.ventricles
    horns = (
        capsule(half, (14.0, 30.0, 8.0), (8.5, 14.0, 14.0), (3.5 * wide, 5.0 * wide)),
        capsule(half, (8.5, 14.0, 14.0), (12.0, -20.0, 17.0), (5.0 * wide, 5.0 * wide)),
        capsule(half, (12.0, -20.0, 17.0), (22.0, -38.0, 4.0), (5.0 * wide, 6.0 * wide)),
        capsule(half, (22.0, -38.0, 4.0), (20.0, -58.0, 2.0), (5.0 * wide, 1.5 * wide)),
        capsule(half, (22.0, -38.0, 4.0), (31.0, -10.0, -18.0), (4.0 * wide, 1.2 * wide)),
    )
    lateral = np.maximum.reduce(horns) + np.asarray(8.0 * side, np.float32)
    third = ellipsoid(local, (0.0, -2.0, 2.0), (2.2 * wide, 15.0, 9.0))
    fourth = ellipsoid(local, (0.0, -34.0, -30.0), (7.0 * wide, 4.5, 8.0))
    return np.asarray(np.maximum(np.maximum(lateral, third), fourth))


def _shells(local: Array, slow: Array, subject: Subject) -> Array:
    """Scalp, skull and what lies inside it before the brain is painted."""
    vault = _vault(local)
    skull = np.float32(subject.skull) + np.float32(0.6) * slow
    below = step(_floor(local) - 1.0 - local[2], 3.0)
    signal = np.zeros_like(vault)
    signal = paint(signal, subject.fat * (0.9 + 0.1 * slow), step(vault + skull + subject.scalp))
    muscle = step(-local[2] - 14.0, 20.0) * step(np.abs(local[0]) - 40.0, 14.0)
    signal = paint(signal, 0.34, muscle * step(vault + skull + subject.scalp - 2.5))
    bone = step(vault + skull)
    signal = paint(signal, 0.06, bone)
    marrow = step(vault + 0.65 * skull, 1.2) * step(-vault - 0.3 * skull, 1.2)
    signal = paint(signal, 0.22, np.float32(0.8) * marrow)
    signal = paint(signal, subject.fluid, step(vault))
    base = 0.20 + 0.05 * slow
    low = below > 0
    base[low] += 0.05 * subject.slow(3.0 * local[:, low])
    signal = paint(signal, base, below * step(vault + skull))
    return _paint_face(signal, local, vault, subject)


def _paint_face(signal: Array, local: Array, vault: Array, subject: Subject) -> Array:
    """Orbits with dark globes in bright fat, and the air of the sinuses."""
    half = _mirrored(local)
    inside = step(vault + subject.skull + subject.scalp)
    orbit = ellipsoid(half, (29.0, 62.0, -38.0), (15.0, 22.0, 14.0))
    globe = ellipsoid(half, (31.0, 73.0, -38.0), (12.0, 12.0, 12.0))
    nerve = capsule(half, (29.0, 62.0, -38.0), (14.0, 40.0, -36.0), (2.0, 2.0))
    sinus = ellipsoid(half, (6.0, 66.0, -38.0), (8.0, 18.0, 14.0))
    signal = paint(signal, 0.8 * subject.fat, step(orbit) * inside)
    signal = paint(signal, 0.40, step(nerve) * inside)
    signal = paint(signal, 0.16, step(globe) * inside)
    return paint(signal, 0.03, step(sinus) * inside)


def _paint_cerebrum(
    signal: Array, local: Array, surfaces: tuple[Array, Array], slow: Array, subject: Subject
) -> tuple[Array, Array]:
    """White matter, the folded cortical ribbon, sulci, and the two great fissures."""
    cerebrum, hull = surfaces
    weight = step(cerebrum)
    to_sulcus, reach = _sulci(local, hull, slow, subject)
    opening = 0.9 * subject.sulci * np.clip(1.0 - hull / reach, 0.0, 1.0)
    folded = np.minimum(to_sulcus - opening + 8.0 * step(hull - reach, 4.0), cerebrum)
    midline = np.abs(local[0] + 1.2 * slow)
    callosum = ellipsoid(local, (0.0, 0.0, 6.0), (40.0, 42.0, 21.0))
    fissure = np.where(callosum > 0, np.float32(9.0), midline - 0.7 * subject.sulci)
    folded = np.minimum(folded, np.minimum(fissure, _sylvian(local, slow, subject)))
    signal = paint(signal, subject.white + 0.012 * slow, weight)
    ribbon = step(CORTEX_THICKNESS - folded, 1.8)
    signal = paint(signal, subject.grey + 0.015 * slow, ribbon * weight)
    return paint(signal, subject.fluid, step(-folded, 1.4) * weight), weight


def _sulci(local: Array, hull: Array, slow: Array, subject: Subject) -> tuple[Array, Array]:
    """Distance to the nearest sulcus, and how deep sulci reach here, both in mm.

    Sulci are the zero set of a random field that is stretched along the radius, so that they cut
    into the surface at right angles. The field is nearly the same on both sides, as brains are.
    """
    scaled = local / np.asarray(BRAIN_RADII[:3], np.float32)[:, None]
    level = np.sqrt(np.einsum("ij,ij->j", scaled, scaled))
    surface = local * np.clip(level, 0.35, 1.2) ** np.float32(-0.75)
    side = np.sign(surface[0])
    surface[0] = np.abs(surface[0]) + 40.0
    surface[1] += 3.0 * side
    surface[2] -= 2.5 * side * subject.asymmetry / 0.08
    folds = np.full_like(hull, 2.0)
    near = (hull > -2.0) & (hull < 26.0)
    folds[near] = np.abs(subject.fold(surface[:, near]))
    reach = 15.0 + 4.5 * slow
    return folds * (FOLD_WAVELENGTH / (2 * np.pi)), np.maximum(reach, 7.0)


def _sylvian(local: Array, slow: Array, subject: Subject) -> Array:
    """Distance from the lateral fissure, a sloping cleft between frontal and temporal lobe."""
    across = np.abs(local[0])
    slope = (local[2] + 6.0 + 3.0 * slow - 0.8 * (4.0 - local[1]) + 0.3 * (across - 45.0)) / 1.3
    reach = np.maximum(36.0 - across, np.maximum(local[1] - 30.0, -24.0 - local[1]))
    return np.asarray(np.maximum(np.abs(slope) - 0.8 * subject.sulci, reach))


def _paint_deep_grey(signal: Array, local: Array, cerebrum: Array, subject: Subject) -> Array:
    """Caudate, putamen and thalamus as grey islands in the white matter."""
    half = _mirrored(local)
    caudate = ellipsoid(half, (16.0, 18.0, 8.0), (4.5, 10.0, 9.0))
    putamen = ellipsoid(half, (27.0, 6.0, 2.0), (5.5, 16.0, 11.0))
    thalamus = ellipsoid(half, (11.0, -11.0, 4.0), (8.0, 12.0, 9.0))
    islands = np.maximum(np.maximum(caudate, putamen), thalamus)
    weight = np.float32(0.75) * step(islands, 2.5) * step(cerebrum)
    return paint(signal, subject.grey - 0.02, weight)


def _paint_hindbrain(signal: Array, local: Array, subject: Subject) -> tuple[Array, Array]:
    """Cerebellum with its fine folia, and the brain stem."""
    lobes, stem = _cerebellum(local), step(_stem(local), 2.5)
    weight = step(lobes)
    folia = np.zeros_like(lobes)
    near = lobes > -1.0
    folia[near] = subject.folia(local[:, near])
    shallow = np.clip(1.0 - lobes / 16.0, 0.0, 1.0)
    leaves = subject.white + (subject.grey - subject.white) * shallow - 0.07 * shallow * folia
    signal = paint(signal, leaves, weight)
    notch = 1.0 + 0.15 * np.maximum(-60.0 - local[1], 0.0) - np.abs(local[0])
    behind = step(-44.0 - local[1], 20.0)
    signal = paint(signal, subject.fluid, np.float32(0.5) * weight * step(notch, 1.4) * behind)
    return paint(signal, subject.white, stem), np.asarray(np.maximum(weight, stem))
