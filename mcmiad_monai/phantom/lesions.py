"""Lesions of several kinds as continuous functions, each with the exact extent of its change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mcmiad_monai.phantom.anatomy import Head, Subject
from mcmiad_monai.phantom.fields import Array, SmoothField, paint, step

# Share of the change above which a voxel belongs to the mask: the middle of every soft edge.
HALF = 0.5


@dataclass(frozen=True)
class Blob:
    """An uneven ellipsoid.

    Attributes
    ----------
    centre : (3, 1) array
        Its middle in mm.
    shape : (3, 3) array
        Rotation and relative stretch.
    outline : SmoothField
        What makes its edge uneven.
    """

    centre: Array
    shape: Array
    outline: SmoothField

    @classmethod
    def draw(cls, rng: np.random.Generator, centre: Array) -> Blob:
        """Draw a shape at random around ``centre`` (3,)."""
        rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        stretch = np.exp(rng.normal(0.0, 0.16, 3))
        shape = (stretch[:, None] * rotation).astype(np.float32)
        return cls(centre[:, None], shape, SmoothField(rng, wavelength=22.0, order=1))

    def distance(self, points: Array, radius: float, *, uneven: float = 0.2) -> Array:
        """Signed distance in mm, positive inside, for a mean ``radius``; (3, N) to (N,)."""
        offset = self.shape @ (points - self.centre)  # (3, N)
        reach = np.sqrt(np.einsum("ij,ij->j", offset, offset))
        limit = np.zeros_like(reach)
        near = reach < 2.5 * radius  # the outline matters nowhere else
        edge = 1.0 + uneven * self.outline(points[:, near])
        limit[near] = radius * np.clip(edge, 0.6, 2.0)  # the very centre is always inside
        return limit - reach


def add_lesion(
    kind: str, head: Head, points: Array, subject: Subject, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Paint a lesion into a head.

    Parameters
    ----------
    kind : str
        One of ``LESIONS``.
    head : Head
        The healthy head at ``points``.
    points : (3, N) array
        Positions in the head's own coordinates in mm.
    subject : Subject
        Whose tissue values the lesion's are relative to.
    rng : numpy.random.Generator
        Source of place, size and contrast.

    Returns
    -------
    (N,) array
        The signal with the lesion.
    (N,) array
        How much of the change is present, 0 to 1; above ``HALF`` is the lesion's mask.

    Raises
    ------
    ValueError
        If the kind is not known.
    """
    if kind not in LESIONS:
        raise ValueError(f"lesion {kind!r} is not known; choose one of {sorted(LESIONS)}.")
    return LESIONS[kind](head, points, subject, rng)


def _place(
    head: Head,
    points: Array,
    rng: np.random.Generator,
    *,
    depth: tuple[float, float],
    clear: tuple[float, float] = (4.0, 99.0),
) -> Array:
    """Choose one of the sampled points in the cerebrum by depth and distance from ventricles."""
    inside = (head.depth > depth[0]) & (head.depth < depth[1])
    inside &= (head.from_ventricles > clear[0]) & (head.from_ventricles < clear[1])
    inside &= head.tissue > HALF
    candidates = np.flatnonzero(inside)
    if candidates.size == 0:
        raise ValueError(
            f"none of the {points.shape[1]} sampled points of the head lies {depth[0]} to "
            f"{depth[1]} mm deep in the cerebrum; choose a larger shape, for example (96, 112, 24)."
        )
    return np.asarray(points[:, candidates[rng.integers(candidates.size)]])


def _mass(
    head: Head, points: Array, subject: Subject, rng: np.random.Generator
) -> tuple[Array, Array]:
    """A bright, uneven mass in a wider bright oedema."""
    blob = Blob.draw(rng, _place(head, points, rng, depth=(12.0, 40.0)))
    radius = rng.uniform(8.0, 16.0)
    oedema = blob.distance(points, radius * rng.uniform(1.4, 1.9), uneven=0.32)
    core = blob.distance(points, radius)
    extent = step(np.maximum(oedema, core), 3.0) * head.tissue
    signal = paint(head.signal, subject.white + rng.uniform(0.30, 0.40), extent)
    bright = subject.white + rng.uniform(0.42, 0.58) + 0.05 * blob.outline(2.0 * points)
    return paint(signal, bright, step(core, 2.0) * head.tissue), extent


def _ring(
    head: Head, points: Array, subject: Subject, rng: np.random.Generator
) -> tuple[Array, Array]:
    """A bright ring around a dark, necrotic core, with oedema."""
    blob = Blob.draw(rng, _place(head, points, rng, depth=(12.0, 40.0)))
    radius = rng.uniform(9.0, 17.0)
    outer = blob.distance(points, radius)
    oedema = blob.distance(points, radius * rng.uniform(1.2, 1.6), uneven=0.3)
    extent = step(np.maximum(oedema, outer), 3.0) * head.tissue
    signal = paint(head.signal, subject.white + rng.uniform(0.30, 0.40), extent)
    ring = subject.white + rng.uniform(0.45, 0.6)
    signal = paint(signal, ring, step(outer, 2.0) * head.tissue)
    core = step(outer - rng.uniform(3.0, 5.0), 2.0) * head.tissue
    return paint(signal, rng.uniform(0.15, 0.28), core), extent


def _hypointense(
    head: Head, points: Array, subject: Subject, rng: np.random.Generator
) -> tuple[Array, Array]:
    """A dark, fluid-like defect within a bright rim of gliosis, as an old infarct."""
    blob = Blob.draw(rng, _place(head, points, rng, depth=(6.0, 26.0)))
    outer = blob.distance(points, rng.uniform(11.0, 18.0), uneven=0.25)
    extent = step(outer, 1.6) * head.tissue
    signal = paint(head.signal, subject.white + rng.uniform(0.34, 0.44), extent)
    core = step(outer - rng.uniform(4.0, 6.0), 2.0) * head.tissue
    return paint(signal, subject.fluid * rng.uniform(0.3, 0.9), core), extent


def _diffuse(
    head: Head, points: Array, subject: Subject, rng: np.random.Generator
) -> tuple[Array, Array]:
    """A wide, faint brightening with a blurred edge that leaves the folds visible."""
    blob = Blob.draw(rng, _place(head, points, rng, depth=(10.0, 40.0)))
    extent = step(blob.distance(points, rng.uniform(16.0, 26.0), uneven=0.3), 6.0) * head.tissue
    not_fluid = step(head.signal - (subject.fluid + subject.white) / 2, 0.1)
    return head.signal + rng.uniform(0.24, 0.32) * extent * not_fluid, extent * not_fluid


def _multiple(
    head: Head, points: Array, subject: Subject, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Several small bright foci near the ventricles."""
    signal, extent = head.signal, np.zeros_like(head.signal)
    for _ in range(int(rng.integers(5, 11))):
        place = _place(head, points, rng, depth=(10.0, 60.0), clear=(3.0, 18.0))
        blob = Blob.draw(rng, place)
        focus = step(blob.distance(points, rng.uniform(5.0, 8.0)), 1.6) * head.tissue
        signal = paint(signal, subject.white + rng.uniform(0.38, 0.52), focus)
        extent = np.maximum(extent, focus)
    return signal, extent


LESIONS: dict[str, Callable[[Head, Array, Subject, np.random.Generator], tuple[Array, Array]]] = {
    "mass": _mass,
    "ring": _ring,
    "hypointense": _hypointense,
    "diffuse": _diffuse,
    "multiple": _multiple,
}
