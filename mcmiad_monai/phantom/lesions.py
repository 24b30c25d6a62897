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
class Site:
    """A healthy head at ``points`` (3, N) in mm, and the random choices of a lesion in it."""

    head: Head
    points: Array
    subject: Subject
    rng: np.random.Generator

    def blob(self, depth: tuple[float, float], clear: tuple[float, float] = (4.0, 99.0)) -> Blob:
        """Place a blob in the cerebrum, by depth and distance from the ventricles in mm."""
        head = self.head
        inside = (head.depth > depth[0]) & (head.depth < depth[1])
        inside &= (head.from_ventricles > clear[0]) & (head.from_ventricles < clear[1])
        candidates = np.flatnonzero(inside & (head.tissue > HALF))
        if candidates.size == 0:
            raise ValueError(
                f"none of the {self.points.shape[1]} sampled points of the head lies {depth[0]} to "
                f"{depth[1]} mm deep in the cerebrum; choose a larger shape, "
                "for example (96, 112, 24)."
            )
        centre = self.points[:, candidates[self.rng.integers(candidates.size)]]
        rotation, _ = np.linalg.qr(self.rng.standard_normal((3, 3)))
        stretch = np.exp(self.rng.normal(0.0, 0.16, 3))
        shape = (stretch[:, None] * rotation).astype(np.float32)
        outline = SmoothField(self.rng, wavelength=22.0, order=1)
        return Blob(self.points, centre[:, None], shape, outline)


@dataclass(frozen=True)
class Blob:
    """An ellipsoid around ``centre`` (3, 1), turned and stretched, with an uneven outline."""

    points: Array
    centre: Array
    shape: Array
    outline: SmoothField

    def distance(self, radius: float, *, uneven: float = 0.2) -> Array:
        """Signed distance (N,) in mm, positive inside, for a mean ``radius``."""
        offset = self.shape @ (self.points - self.centre)  # (3, N)
        reach = np.sqrt(np.einsum("ij,ij->j", offset, offset))
        limit = np.zeros_like(reach)
        near = reach < 2.5 * radius  # the outline matters nowhere else
        edge = 1.0 + uneven * self.outline(self.points[:, near])
        limit[near] = radius * np.clip(edge, 0.6, 2.0)  # the very centre is always inside
        return limit - reach


def _mass(site: Site) -> tuple[Array, Array]:
    """A bright, uneven mass in a wider bright oedema."""
    head, white, rng = site.head, site.subject.white, site.rng
    blob, radius = site.blob((12.0, 40.0)), rng.uniform(8.0, 16.0)
    oedema = blob.distance(radius * rng.uniform(1.4, 1.9), uneven=0.32)
    core = blob.distance(radius)
    extent = step(np.maximum(oedema, core), 3.0) * head.tissue
    signal = paint(head.signal, white + rng.uniform(0.30, 0.40), extent)
    bright = white + rng.uniform(0.42, 0.58) + 0.05 * blob.outline(2.0 * site.points)
    return paint(signal, bright, step(core, 2.0) * head.tissue), extent


def _ring(site: Site) -> tuple[Array, Array]:
    """A bright ring around a dark, necrotic core, with oedema."""
    head, white, rng = site.head, site.subject.white, site.rng
    blob, radius = site.blob((12.0, 40.0)), rng.uniform(9.0, 17.0)
    outer = blob.distance(radius)
    oedema = blob.distance(radius * rng.uniform(1.2, 1.6), uneven=0.3)
    extent = step(np.maximum(oedema, outer), 3.0) * head.tissue
    signal = paint(head.signal, white + rng.uniform(0.30, 0.40), extent)
    signal = paint(signal, white + rng.uniform(0.45, 0.6), step(outer, 2.0) * head.tissue)
    core = step(outer - rng.uniform(3.0, 5.0), 2.0) * head.tissue
    return paint(signal, rng.uniform(0.15, 0.28), core), extent


def _hypointense(site: Site) -> tuple[Array, Array]:
    """A dark, fluid-like defect within a bright rim of gliosis, as an old infarct."""
    head, rng = site.head, site.rng
    outer = site.blob((6.0, 26.0)).distance(rng.uniform(11.0, 18.0), uneven=0.25)
    extent = step(outer, 1.6) * head.tissue
    signal = paint(head.signal, site.subject.white + rng.uniform(0.34, 0.44), extent)
    core = step(outer - rng.uniform(4.0, 6.0), 2.0) * head.tissue
    return paint(signal, site.subject.fluid * rng.uniform(0.3, 0.9), core), extent


def _diffuse(site: Site) -> tuple[Array, Array]:
    """A wide, faint brightening with a blurred edge that leaves the folds visible."""
    head, subject, rng = site.head, site.subject, site.rng
    reach = site.blob((10.0, 40.0)).distance(rng.uniform(16.0, 26.0), uneven=0.3)
    not_fluid = step(head.signal - (subject.fluid + subject.white) / 2, 0.1)
    extent = step(reach, 6.0) * head.tissue
    return head.signal + rng.uniform(0.24, 0.32) * extent * not_fluid, extent * not_fluid


def _multiple(site: Site) -> tuple[Array, Array]:
    """Several small bright foci near the ventricles."""
    head, rng = site.head, site.rng
    signal, extent = head.signal, np.zeros_like(head.signal)
    for _ in range(int(rng.integers(5, 11))):
        blob = site.blob((10.0, 60.0), clear=(3.0, 18.0))
        focus = step(blob.distance(rng.uniform(5.0, 8.0)), 1.6) * head.tissue
        signal = paint(signal, site.subject.white + rng.uniform(0.38, 0.52), focus)
        extent = np.maximum(extent, focus)
    return signal, extent


#: Each returns the signal (N,) with the lesion, and how much of the change is present, 0 to 1 (N,);
#: above ``HALF`` is the lesion's mask.
LESIONS: dict[str, Callable[[Site], tuple[Array, Array]]] = {
    "mass": _mass,
    "ring": _ring,
    "hypointense": _hypointense,
    "diffuse": _diffuse,
    "multiple": _multiple,
}
