"""The page: one HTML file that needs no network."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from apical.files import write_text
from apical.report.comparison import wording
from apical.report.comparison.comparison import Comparison, Samples
from apical.report.comparison.figures import ANGLES, CURVES, angles, final_errors, learning_curves
from apical.report.comparison.reading import read
from apical.report.drawing.colours import darkened, inks
from apical.report.drawing.templates import asset, template
from apical.report.error import ReportError

CHIPS = {"nothing": "good", "signs": "mild", "normalization scale": "mild", "weights": "bad"}
COLUMNS = 5  # layers that get a column of their own in the table; more are given as a range


def write(folder: Path, *, destination: Path | None = None) -> Path:
    """Write the report of a comparison folder, to `report.html` in it where no destination is given.

    The file is self-contained: scripts, style, figures and images are in it, and its own policy forbids any request. So it
    can be sent by mail, and shows the same years later.

    Returns:
        Where the report is.

    Raises:
        ReportError: where comparison.json or a run's metrics are missing or damaged.

    >>> write(Path("runs/demo"))  # doctest: +SKIP
    PosixPath('runs/demo/report.html')
    """
    comparison = read(folder)
    path = Path(destination) if destination is not None else comparison.folder / "report.html"
    if path.is_dir():
        raise ReportError(f"{path}: is a folder; give the file to write, such as {path / 'report.html'}")
    write_text(path, render(comparison))
    return path


def render(comparison: Comparison) -> str:
    """The page as text."""
    curves, panels = _curves(comparison), _panels(comparison)
    return template("page.html.jinja", count=wording.count).render(
        comparison=comparison,
        headline=wording.headline(comparison),
        setting=wording.setting(comparison),
        spread=wording.spread(comparison),
        inks=inks(comparison.names),
        curves={measure: CURVES[measure].removesuffix(", %") for measure in curves},
        measures={measure: ANGLES[measure].removesuffix(", degrees") for measure in panels},
        chips=CHIPS,
        angle_columns=_angle_columns(comparison),
        grid=_sample_grid(comparison.samples) if comparison.samples else None,
        style=asset("page.css"),
        script=asset("page.js"),
        plotly=Markup(get_plotlyjs().replace("</script", r"<\/script")),
        payload=htmlsafe_json_dumps(
            {
                "curves": curves,
                "errors": _figure(final_errors(comparison)),
                "angles": panels,
                "dark": darkened(),
            },
            dumps=json.dumps,
            separators=(",", ":"),
        ),
    )


def _figure(figure: Any) -> dict[str, Any]:
    plain = figure.to_plotly_json()
    plain["layout"].pop("template", None)
    return {"data": plain["data"], "layout": plain["layout"]}


def _curves(comparison: Comparison) -> dict[str, Any]:
    measured = [m for m in CURVES if any(comparison.track(run, m) for run in comparison.runs)]
    return {measure: _figure(learning_curves(comparison, measure)) for measure in measured}


def _panels(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Measure -> layer -> figure, of what was measured."""
    panels = {
        measure: {
            layer: _figure(angles(comparison, layer, measure))
            for layer in comparison.layers
            if any(comparison.track(run, "alignment", layer, measure) for run in comparison.runs)
        }
        for measure in ANGLES
    }
    return {measure: layers for measure, layers in panels.items() if layers}


def _angle_columns(comparison: Comparison) -> list[str]:
    """The layers that the table has a column for: all, where they are few and any angle is known."""
    layers = list(dict.fromkeys(layer for row in comparison.table for layer in row.angles))
    known = [layer for layer in layers if any(row.angles.get(layer) is not None for row in comparison.table)]
    return known if len(known) <= COLUMNS else []


def _sample_grid(samples: Samples) -> dict[str, Any]:
    return {
        "images": [_data_uri(image, place) for place, image in enumerate(samples.images)],
        "labels": [samples.name_of(label) for label in samples.labels],
        "rows": {
            rule: [
                {"said": samples.name_of(said), "right": said == label}
                for said, label in zip(answers, samples.labels, strict=True)
            ]
            for rule, answers in samples.predictions.items()
        },
        "wide": any(len(name) > 3 for name in samples.class_names),
    }


def _data_uri(image: Any, place: int) -> str:
    """An image of 0..255 as PNG in the page itself."""
    fault = f"samples.images[{place}] of comparison.json must be [H, W], [1, H, W] or [3, H, W] of whole 0..255"
    try:
        pixels = np.asarray(image)
    except ValueError:
        raise ReportError(f"{fault}; run the comparison again") from None
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    fits = pixels.ndim in (2, 3) and pixels.size and pixels.shape[2:] in ((), (3,))
    if not fits or pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise ReportError(f"{fault}; run the comparison again")
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.astype(np.uint8))).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
