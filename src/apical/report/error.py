"""The error of every report."""


class ReportError(ValueError):
    """A folder or file from which no report can be made; the message names it and the way out.

    >>> from pathlib import Path
    >>> from apical.report import ReportError, read
    >>> try:
    ...     read(Path("nowhere"))
    ... except ReportError as error:
    ...     print(error)
    nowhere/comparison.json: no such file; give a folder that 'apical compare' wrote
    """
