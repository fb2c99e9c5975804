"""The report of a comparison: one self-contained HTML page, its figures, and a picture for a README.

>>> import tempfile
>>> from pathlib import Path
>>> from apical.comparison import CompareConfig, compare
>>> folder = Path(tempfile.mkdtemp()) / "demo"
>>> _ = compare(CompareConfig(rules=("bp", "fa"), epochs=1, seeds=1), folder)
>>> write(folder).name, picture(folder, folder / "demo.svg").name
('report.html', 'demo.svg')
>>> comparison = read(folder)
>>> comparison.names, comparison.title("fa"), comparison.layers
(['bp', 'fa'], 'Feedback alignment', ['1', '3', '5'])
>>> [trace.name for trace in learning_curves(comparison).data]
['Backpropagation', 'Feedback alignment']
>>> angles(comparison, "3").layout.title.text
'3'
>>> final_errors(comparison).layout.xaxis.title.text
'Test error at the end, %'
"""

from apical.report.comparison.comparison import Comparison
from apical.report.comparison.figures import angles, final_errors, learning_curves
from apical.report.comparison.page import write
from apical.report.comparison.picture import picture
from apical.report.comparison.reading import read
from apical.report.error import ReportError

__all__ = ["Comparison", "ReportError", "angles", "final_errors", "learning_curves", "picture", "read", "write"]
