"""Write the defaults into the hyperparameter tables of these pages, from the rules: `python docs/rules/tables.py`.

A table starts with a comment that names its rules. Its last column, what each hyperparameter means, is kept as it stands.
"""

from __future__ import annotations

import re
from pathlib import Path

import apical

TABLE = re.compile(r"<!-- defaults of (?P<names>[\w\- ]+), written by tables.py -->\n(?P<rows>(?:\|.*\n)+)")


def written(page: str) -> str:
    """The page with its tables as they have to be.

    Raises:
        ValueError: if a hyperparameter has no meaning yet.
    """
    return TABLE.sub(_table, page)


def _table(found: re.Match[str]) -> str:
    rules = [apical.rule(name) for name in found["names"].split()]
    names = list(dict.fromkeys(name for rule in rules for name in rule.hyperparameters))
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in found["rows"].splitlines()[2:]]
    meanings = {row[0].strip("`"): row[-1] for row in rows}
    if missing := [name for name in names if name not in meanings]:
        raise ValueError(f"add rows to the table of {found['names']} that say what these mean: {', '.join(missing)}")
    lines = [
        ["hyperparameter", *(f"`{rule.name}`" for rule in rules), "meaning"],
        ["---"] * (len(rules) + 2),
        *([f"`{name}`", *(_default(rule, name) for rule in rules), meanings[name]] for name in names),
    ]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")
    return f"{found[0][: found.start('rows') - found.start()]}{text}\n"


def _default(rule: apical.Rule, name: str) -> str:
    value = rule.hyperparameters.get(name, "")
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("*.md")):
        path.write_text(written(path.read_text()))
