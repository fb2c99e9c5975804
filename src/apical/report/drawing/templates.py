"""The templates, style and script of all pages (`report/templates`)."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

HERE = Path(__file__).parents[1] / "templates"


def template(name: str, **helpers: object) -> jinja2.Template:
    """The template `name`, which may call `helpers`. A variable that it is not given is an error."""
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
    """The text of a style sheet or script beside the templates, not to be escaped."""
    return Markup((HERE / name).read_text(encoding="utf-8"))
