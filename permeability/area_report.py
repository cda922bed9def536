"""The figures of an area estimate: per zone and class as plain values, as text, as a page and as polygons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from permeability.area import NORMAL, Auxiliary, Floats, Ints, Points, Share, Strata, points_needed, ratio, share

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Survey:
    """Judged points, and what is known of all pixels."""

    classes: Sequence[str]
    points: Points
    reference: Ints
    strata: Strata
    """Zone by zone, class by class."""
    auxiliary: tuple[Floats, Floats] | None
    """Probabilities (n, K) at the points, and their means (H, K)."""

    def result(self, zone: int | None, name: str) -> dict[str, Any]:
        """All figures of a zone, None = all zones, as plain values.

        Raises:
            ValueError: a stratum has too few judged points.
        """
        size = len(self.classes)
        number = np.arange(len(self.strata.area))
        chosen = (self.strata.pixels > 0) & ((number // size == zone) if zone is not None else True)
        here, points = self.points.of(chosen)
        strata, truth, mapped = self.strata[chosen], self.reference[here], self.points.stratum[here] % size
        total = float(strata.area.sum())
        kinds = []
        for k, label in enumerate(self.classes):
            extra = None
            if self.auxiliary is not None:
                extra = Auxiliary(self.auxiliary[0][here, k], self.auxiliary[1][chosen, k])
            of_class = number[chosen] % size == k
            found = share(truth == k, points, strata, extra)
            kinds.append(
                {
                    "class": label,
                    "pixel_area": float(strata.area[of_class].sum()),
                    **_area(found, total),
                    "users_accuracy": self._users(of_class, truth == k, points, strata),
                    "producers_accuracy": _plain(ratio((truth == k) & (mapped == k), truth == k, points, strata)),
                    "points_to_halve": _points_to_halve(truth == k, points, strata, found),
                }
            )
        weight = strata.area[points.stratum] / np.bincount(points.stratum)[points.stratum] / total
        matrix = np.bincount(mapped * size + truth, weight, size * size).reshape(size, size)
        return {
            "zone": name,
            "area": total,
            "points": len(truth),
            "classes": kinds,
            "overall_accuracy": _plain(share(truth == mapped, points, strata)),
            "error_matrix": matrix.tolist(),
        }

    def _users(self, of_class: Flags, hits: Flags, points: Points, strata: Strata) -> dict[str, float] | None:
        """Share of a map class that is right."""
        if not of_class.any():
            return None
        inside, those = points.of(of_class)
        return _plain(share(hits[inside], those, strata[of_class]))


def _area(found: Share, total: float) -> dict[str, float]:
    return {
        "estimate": found.value * total,
        "standard_error": found.error * total,
        "half_width": NORMAL * found.error * total,
        "low": found.low * total,
        "high": found.high * total,
    }


def _plain(found: Share | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)


def _points_to_halve(hits: Flags, points: Points, strata: Strata, found: Share) -> int:
    """How many more points, in the best proportions, would halve an interval."""
    count = np.bincount(points.stratum, minlength=len(strata.area))
    means = (np.bincount(points.stratum, hits, len(strata.area)) + 0.5) / (count + 1)
    half = (found.high - found.low) / 4
    return max(0, points_needed(strata, np.sqrt(means * (1 - means)), half) - len(hits)) if half > 0 else 0


# What people see


def table(result: dict[str, Any], unit: str) -> str:
    """A zone's figures as text."""
    accuracy = result["overall_accuracy"]
    lines = [
        f"{result['zone']}: {result['area']:,.0f} {unit}, {result['points']} points, overall accuracy "
        f"{accuracy['value']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%})",
        f"  {'class':18}{'by pixels':>16}{'estimate':>16}{'95 % from':>16}{'to':>16}{'user':>8}{'producer':>10}"
        f"{'to halve':>10}",
    ]
    for kind in result["classes"]:
        shown = [kind[key] for key in ("pixel_area", "estimate", "low", "high")]
        users, producers = (
            "n/a" if kind[key] is None else f"{kind[key]['value']:.1%}"
            for key in ("users_accuracy", "producers_accuracy")
        )
        lines.append(
            f"  {kind['class']:18}"
            + "".join(f"{value:16,.0f}" for value in shown)
            + f"{users:>8}{producers:>10}{kind['points_to_halve']:>10,}"
        )
    return "\n".join(lines)


def page(report: dict[str, Any]) -> str:
    """A self-contained HTML page."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template("estimate.html.j2").render(report=report)


def write_zones(
    path: Path, outlines: Mapping[str, Any], crs: CRS, classes: Sequence[str], results: list[dict[str, Any]]
) -> None:
    """Write the zones as polygons with ``<class>_m2``, ``_low``, ``_high`` of every class."""
    if len(outlines) == 1:
        outlines = {"all": next(iter(outlines.values()))}
    chosen = [result for result in results if result["zone"] in outlines]
    fields: dict[str, Flags] = {"zone": np.array([result["zone"] for result in chosen], object)}
    for k, name in enumerate(classes):
        for suffix, key in (("m2", "estimate"), ("low", "low"), ("high", "high")):
            fields[f"{name}_{suffix}"] = np.array([result["classes"][k][key] for result in chosen])
    pyogrio.raw.write(
        path,
        shapely.to_wkb(np.array([outlines[result["zone"]] for result in chosen], object)),
        list(fields.values()),
        list(fields),
        layer="areas",
        driver="GPKG",
        geometry_type="Unknown",
        crs=crs.to_wkt() if crs else None,
        encoding="UTF-8",
    )
