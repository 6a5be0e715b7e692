"""What heat maps point at, on a page: a section, and its figures."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from medclip_jax.evaluation.pointing import PointingResult, ShownMap
from medclip_jax.evaluation.results import number
from medclip_jax.pages.figures import LUNG_HU, plane, slices
from medclip_jax.pages.result_sections import Place, add_section, add_tile


@add_tile.register
def _(result: PointingResult, at: Place) -> None:
    at.page.tile(number(result.metrics()["hit_mean"]), "lesions that heat maps point at")


@add_section.register
def _(result: PointingResult, at: Place) -> None:
    at.page.section(
        at.title("Pointing game", "pointing"),
        "Does the place where a heat map is highest lie in the lesion? The lesion's share of the volume is "
        "what a map that knows nothing would reach.",
    )
    at.page.table(result.table())
    for shown in result.maps:
        at.page.figure(
            lesion_and_map(shown),
            f"Three slices through the lesion, with the heat map of {shown.finding.replace('_', ' ')}",
            "Outlined: the lesion. Color: relevance for the prompt; "
            + ("the highest place lies inside." if shown.hit >= 0.5 else "the highest place lies elsewhere."),
        )


def lesion_and_map(shown: ShownMap) -> Figure:
    """Slices through the lesion where it is widest, with its outline and the heat map.

    Args:
        shown: of the evaluator.
    """
    at = [int(shown.lesion.sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]
    figure = slices(
        shown.volume,
        shown.spacing,
        at=at,
        window=LUNG_HU,
        heat=shown.heat,
        title=shown.finding.replace("_", " "),
    )
    for axis, panel in enumerate(figure.axes[:3]):
        mask, extent = plane(shown.lesion, shown.spacing, axis, at[axis])
        if mask.all() or min(mask.shape) < 2:
            continue
        y, x = (
            (np.arange(count) + 0.5) / count * length
            for count, length in zip(mask.shape, (extent[3], extent[1]), strict=True)
        )
        panel.contour(x, y[::-1], mask, levels=[0.5], colors="#4cc9f0", linewidths=1.2)
    return figure
