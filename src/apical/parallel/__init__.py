"""Layer-parallel direct feedback: each process learns one stage of a model, and none waits for another one's backward pass.

>>> from apical.parallel import pipeline
>>> pipeline.__module__
'apical.parallel.pipelined'
"""

from apical.parallel.pipelined import Pipeline, pipeline

__all__ = ["Pipeline", "pipeline"]
