"""Records as JSON, and joined."""

import json

import numpy as np

from apical.papers import Curve, Record


def test_records_survive_json():
    record = Record(
        curves={"a": Curve([0, 1], [[1.0, float("nan")]])}, numbers={"b": [float("inf")]}, seeds=(4,), seconds=1.5
    )
    again = Record.of(json.loads(json.dumps(record.asdict(), allow_nan=False)))
    np.testing.assert_array_equal(again.curves["a"].values, [[1.0, np.nan]])
    assert np.isnan(again.numbers["b"][0])
    longer = Record(curves={"a": Curve([0, 1, 2], [[1.0, 2.0, 3.0]])}, numbers={"b": [2.0]}, seeds=(5,))
    joined = Record.joined([again, longer])
    np.testing.assert_array_equal(joined.curves["a"].values, [[1.0, np.nan, np.nan], [1.0, 2.0, 3.0]])
    assert joined.seeds == [4, 5]
