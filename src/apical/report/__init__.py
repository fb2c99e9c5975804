"""The report of a comparison: one self-contained HTML page, its figures, and a picture for a README."""

from apical.report.comparison.comparison import Comparison
from apical.report.comparison.figures import angles, final_errors, learning_curves
from apical.report.comparison.page import write
from apical.report.comparison.picture import picture
from apical.report.comparison.reading import read
from apical.report.error import ReportError

__all__ = ["Comparison", "ReportError", "angles", "final_errors", "learning_curves", "picture", "read", "write"]
