"""Plotly figures of a comparison: on a page they follow its theme, in a notebook they stand alone."""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go

from apical.report.comparison.comparison import Band, Comparison
from apical.report.comparison.wording import percent
from apical.report.drawing.colours import GRID, MUTED, PAPER, TEXT, Ink, inks, veil
from apical.report.drawing.scales import decades, logarithmic
from apical.report.error import ReportError

FONT = (
    '-apple-system, BlinkMacSystemFont, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, '
    "sans-serif"
)
CURVES = {"test_error": "Test error, %", "test_loss": "Test loss", "train_loss": "Training loss"}
ANGLES = {"delta_angle": "Delta angle, degrees", "matrix_angle": "Matrix angle, degrees"}
ROW = 56  # a rule's height in the bars, in pixels


def learning_curves(comparison: Comparison, measure: str = "test_error") -> go.Figure:
    """A figure of a measure over training: the mean over seeds, and a band from the lowest to the highest.

    Unfinished runs of a rule that also has finished ones are thin lines of their own.

    Raises:
        ReportError: for an unknown measure, or one that no run has.

    >>> learning_curves(comparison, "test_loss").show()  # doctest: +SKIP
    """
    if measure not in CURVES:
        raise ReportError(f"unknown measure {measure!r}; give one of {', '.join(CURVES)}")
    digits = 2 if measure == "test_error" else 3
    figure = _over_training(comparison, (measure,), f".{digits}f", "%" if measure == "test_error" else "")
    figure.update_layout(height=400, title_text=f"{CURVES[measure]} on {html.escape(str(comparison.data['name']))}")
    traces: Any = figure.data  # its type is made for item assignment
    values = [value for trace in traces for value in trace.y]
    if not values:
        raise ReportError(f"{comparison.folder}: no run has {measure!r} in its metrics.jsonl")
    possible = min(values) > 0
    steps = decades(min(values) / 1.2, max(values) * 1.2) if possible else []
    figure.update_layout(
        yaxis_title_text=CURVES[measure],
        yaxis_rangemode="tozero",
        meta={"logarithmic": possible, "marks": steps, "texts": [f"{mark:g}" for mark in steps]},
    )
    if logarithmic(values):
        figure.update_yaxes(type="log", tickvals=steps, ticktext=[f"{mark:g}" for mark in steps])
    return figure


def angles(comparison: Comparison, layer: str, measure: str = "delta_angle") -> go.Figure:
    """A figure of a layer's angle over training. Unrelated vectors have 90 degrees, the dashed line.

    Raises:
        ReportError: for an unknown layer or measure.

    >>> angles(comparison, comparison.layers[0], "matrix_angle").show()  # doctest: +SKIP
    """
    if measure not in ANGLES:
        raise ReportError(f"unknown measure {measure!r}; give one of {', '.join(ANGLES)}")
    if layer not in comparison.layers:
        raise ReportError(f"no angles of layer {layer!r}; measured were {', '.join(comparison.layers) or 'none'}")
    figure = _over_training(comparison, ("alignment", layer, measure), ".1f", "°")
    figure.update_layout(height=250, title_text=html.escape(layer))
    figure.update_yaxes(
        title_text=ANGLES[measure],
        range=[-4, angle_limit(comparison, measure)],
        tickvals=[0, 30, 60, 90, 120, 150, 180],
        ticksuffix="°",
    )
    figure.add_hline(y=90, line={"color": MUTED[0], "width": 1, "dash": "5px,4px"}, layer="below")
    return figure


def final_errors(comparison: Comparison) -> go.Figure:
    """A figure of the final test errors: a bar per rule, best first, its standard error, and a ring per seed.

    >>> final_errors(comparison).show()  # doctest: +SKIP
    """
    figure = _blank()
    chosen = inks(comparison.names)
    rows = comparison.ranking
    seeds = {row.rule: _final(comparison, row.rule) for row in rows}
    high = max(
        [(row.test_error_mean or 0) + (row.test_error_sem or 0) for row in rows]
        + [error for pairs in seeds.values() for _, error in pairs],
    )
    for place, row in enumerate(rows):
        ink = chosen[row.rule]
        title = html.escape(comparison.title(row.rule), quote=False)
        if row.test_error_mean is not None:
            _add_bar(figure, place, row.rule, title, ink, row.test_error_mean, row.test_error_sem)
        figure.add_scatter(
            x=[error for _, error in seeds[row.rule]],
            y=[place + 0.24] * len(seeds[row.rule]),
            customdata=[seed for seed, _ in seeds[row.rule]],
            mode="markers",
            marker={"size": 6, "symbol": "circle-open", "color": ink.light, "line": {"width": 1.5}},
            hovertemplate="seed %{customdata}: %{x:.2f} %<extra></extra>",
            name=title,
            legendgroup=row.rule,
            showlegend=False,
        )
        said = "no finished run" if row.test_error_mean is None else f"<b>{percent(comparison, row)}</b>"
        end = (row.test_error_mean or 0) + (row.test_error_sem or 0)
        label: dict[str, Any] = {"y": place, "xanchor": "left", "showarrow": False, "borderpad": 0, "font_size": 13}
        figure.add_annotation(text=_short(comparison.title(row.rule)), x=0, yshift=18, xshift=-2, **label)
        figure.add_annotation(text=said, x=end, xshift=6 if end else -2, **label)
    figure.update_layout(
        height=ROW * len(rows) + 70,
        title_text="Final test error",
        showlegend=False,
        hovermode="closest",
        barmode="overlay",
        margin={"l": 4, "r": 8, "t": 10, "b": 46},
        xaxis={"title_text": "Test error at the end, %", "range": [0, high * 1.42 or 1], "showspikes": False},
        yaxis={"visible": False, "range": [len(rows) - 0.55, -0.65]},
    )
    return figure


def angle_limit(comparison: Comparison, measure: str) -> float:
    """The top of the angle axis, the same for all layers: a little above 90 degrees, or above what was measured."""
    paths = [("alignment", layer, measure) for layer in comparison.layers]
    values = [angle for run in comparison.runs for path in paths for angle in comparison.track(run, *path).values()]
    return min(184.0, max([*values, 94.0]) + 6.0)


def _add_bar(figure: go.Figure, place: int, rule: str, title: str, ink: Ink, mean: float, sem: float | None) -> None:
    said = f"%{{x:.2f}} % ± {sem:.2f}" if sem is not None else "%{x:.2f} %"
    figure.add_bar(
        x=[mean],
        y=[place],
        orientation="h",
        width=0.22,
        marker={"color": ink.light, "line_width": 0},
        error_x={
            "type": "data",
            "array": [sem or 0],
            "color": TEXT[0],
            "thickness": 1.5,
            "width": 4,
            "visible": sem is not None,
        },
        hovertemplate=f"{said}<extra></extra>",
        name=title,
        legendgroup=rule,
    )


def _final(comparison: Comparison, rule: str) -> list[tuple[int, float]]:
    runs = [run for run in comparison.runs if run.rule == rule]
    return [(run.seed, run.test_error) for run in runs if run.test_error is not None]


def _over_training(comparison: Comparison, path: tuple[str, ...], form: str, unit: str) -> go.Figure:
    figure = _blank()
    chosen = inks(comparison.names)
    for entry in comparison.rules:
        title = html.escape(entry.title, quote=False)
        band = comparison.band(entry.name, *path)
        if band is not None:
            _add_band(figure, entry.name, title, chosen[entry.name], band, form, unit)
        for run in comparison.left_out(entry.name):
            track = comparison.track(run, *path)
            figure.add_scatter(
                x=comparison.positions(run, list(track)),
                y=list(track.values()),
                mode="lines",
                line={"color": chosen[entry.name].light, "width": 1, "dash": "dot"},
                hovertemplate=f"%{{y:{form}}}{unit and ' ' + unit}",
                name=f"{title}, seed {run.seed} (unfinished)",
                legendgroup=entry.name,
                showlegend=False,
            )
    figure.update_xaxes(title_text=comparison.axis.capitalize(), rangemode="tozero")
    return figure


def _add_band(figure: go.Figure, rule: str, title: str, ink: Ink, band: Band, form: str, unit: str) -> None:
    unit = "°" if unit == "°" else unit and f" {unit}"
    several = len(band.seeds) > 1
    if several:
        figure.add_scatter(
            x=band.x + band.x[::-1],
            y=band.high + band.low[::-1],
            fill="toself",
            fillcolor=veil(ink.light),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            name=title,
            legendgroup=rule,
            showlegend=False,
        )
    span = f" (%{{customdata[0]:{form}}} to %{{customdata[1]:{form}}})" if several else ""
    figure.add_scatter(
        x=band.x,
        y=band.mean,
        customdata=[list(pair) for pair in zip(band.low, band.high, strict=True)],
        mode="lines" if len(band.x) > 1 else "markers",
        line={"color": ink.light, "width": 2.2, "dash": ink.dash},
        hovertemplate=f"%{{y:{form}}}{unit}{span}",
        name=title,
        legendgroup=rule,
    )


def _short(title: str, most: int = 42) -> str:
    return html.escape(title if len(title) <= most else title[: most - 1] + "…", quote=False)


def _blank() -> go.Figure:
    axis: dict[str, Any] = {
        "gridcolor": GRID[0],
        "zeroline": False,
        "linecolor": GRID[0],
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 12.5, "color": MUTED[0]}},
        "tickfont": {"size": 12, "color": MUTED[0]},
        "fixedrange": True,
    }
    layout = {
        "template": "none",
        "autosize": True,
        "paper_bgcolor": PAPER[0],
        "plot_bgcolor": PAPER[0],
        "font": {"family": FONT, "size": 13, "color": TEXT[0]},
        "title": {"font": {"size": 15}, "x": 0.01, "xanchor": "left"},
        "margin": {"l": 10, "r": 12, "t": 44, "b": 40},
        "hovermode": "x unified",
        "hoverlabel": {
            "bgcolor": PAPER[0],
            "bordercolor": GRID[0],
            "font": {"family": FONT, "size": 12.5, "color": TEXT[0]},
            "namelength": -1,
        },
        "legend": {"orientation": "h", "y": -0.2},
        "xaxis": {**axis, "showgrid": False, "showline": True, "ticks": "outside", "tickcolor": GRID[0], "ticklen": 4},
        "yaxis": {**axis, "showgrid": True},
    }
    return go.Figure(layout=layout)
