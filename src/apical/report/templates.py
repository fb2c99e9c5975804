"""The templates beside this file."""

from __future__ import annotations

from pathlib import Path

import jinja2


def template(name: str, **helpers: object) -> jinja2.Template:
    """The template `name`; it may call `helpers`, and what it is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(helpers)
    return environment.get_template(name)
