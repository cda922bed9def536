"""From the network's maps to single nuclei: h-maxima of the distance map seed a watershed inside the foreground.

The network predicts, besides the nucleus probability, each pixel's distance to its own nucleus' outline relative to
that nucleus' largest (1 in the middle, 0 at the outline, also where two nuclei touch). One nucleus is one hill of that
map, whatever its size; two hills count as two nuclei when the valley between them is at least ``depth`` deep.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

DEPTH = 0.12
"""Smallest valley between two nuclei, relative to the middle of a nucleus (1)."""
SMOOTHING = 2.0
MIN_AREA = 60
Labels = NDArray[np.int32]


def distance_map(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Distance of each pixel to its object's outline over the object's largest, (H, W) float32 in 0..1; 0 outside."""
    result = np.zeros(labels.shape, np.float32)
    labels = compact(labels)  # track ids may be sparse, and find_objects keeps an entry for every number
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            inside = labels[box] == label
            distance = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
            result[box][inside] = (distance / distance.max())[inside]
    return result


def separate(
    foreground: NDArray[np.bool_],
    distance: NDArray[np.float32] | None = None,
    *,
    min_area: int = MIN_AREA,
) -> Labels:
    """Label the nuclei of a mask.

    Args:
        foreground: (H, W) bool, pixels of any nucleus.
        distance: (H, W) float32, the predicted relative distance map; None = a network without one: the mask's own
            distance transform is used, in pixels, with a valley depth of 1 px in place of `DEPTH`.
        min_area: smaller objects are removed, in pixels.

    Returns:
        (H, W) int32, 0 = background, 1...N without gaps.
    """
    if not foreground.any():
        return np.zeros(foreground.shape, np.int32)
    depth = DEPTH
    if distance is None:
        distance, depth = ndimage.distance_transform_edt(foreground).astype(np.float32), 1.0
    hills = np.where(foreground, ndimage.gaussian_filter(distance, SMOOTHING), 0).astype(np.float32)
    summits = local_maxima(reconstruction(hills - depth, hills)) & foreground
    # An island that nowhere rises to ``depth`` has no summit: it is one nucleus, or dirt for ``min_area``.
    islands, count = ndimage.label(foreground)
    flat = ~np.isin(np.arange(count + 1), islands[summits])
    flat[0] = False
    seeds, _ = ndimage.label(summits | flat[islands], structure=np.ones((3, 3)))
    labels = watershed(-hills, seeds, mask=foreground)
    small = np.bincount(labels.ravel()) < min_area
    labels[small[labels]] = 0
    return compact(labels)


def compact(labels: NDArray[np.integer]) -> Labels:
    """Renumber labels to 1...N in the order of their numbers; 0 stays."""
    values, inverse = np.unique(labels, return_inverse=True)
    offset = 0 if values[0] == 0 else 1
    compacted: Labels = (inverse.reshape(labels.shape) + offset).astype(np.int32)
    return compacted
