"""The templates, style and script of all pages (`report/templates`)."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

HERE = Path(__file__).parents[1] / "templates"


def template(name: str, **helpers: object) -> jinja2.Template:
    """The template `name`; it may call `helpers`, and what it is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(helpers)
    return environment.get_template(name)


def asset(name: str) -> Markup:
    """A style sheet or script beside the templates, to stand in a page as it is."""
    return Markup((HERE / name).read_text(encoding="utf-8"))
