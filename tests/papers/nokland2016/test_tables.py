"""Printed cells, and ours beside them."""

from apical.papers import Curve, Record
from apical.papers.nokland2016.fig3 import FIG3
from apical.papers.nokland2016.table1 import TABLE1
from apical.papers.nokland2016.table23 import TABLE2, TABLE3
from apical.papers.nokland2016.tables import Cell, rows_of


def test_a_blank_cell_is_a_bound():
    def agree(train: float, cell: Cell) -> list[bool | None]:
        made = Record(numbers={"test error": [1.6]}, curves={"train error": Curve([1.0], [[train]])})
        return [row.agrees for row in rows_of("", made, cell)]

    assert agree(0.01, Cell(1.60, 0.06)) == [True, True]
    assert agree(0.02, Cell(1.60, 0.06)) == [True, False]
    assert agree(0.12, Cell(1.60, 0.06, 0.12)) == [True, True]
    assert agree(0.0, Cell(1.60, 0.06, 0.12)) == [True, False]


def test_a_few_minibatches_of_another_epoch_are_no_training_error():
    def shown(x, *y):
        record = Record(numbers={"test error": [2.0] * len(y)}, curves={"train error": Curve(x, y)})
        return list(rows_of("1x800 tanh, bp", record, None)[1].ours)

    assert shown([1.0, 2.0, 2.02], [3.0, 1.0, 50.0], [3.0, float("nan"), float("nan")]) == [1.0, 3.0]
    assert shown([1.0, 2.0], [3.0, 1.0]) == [1.0]
    assert shown([0.25, 0.5], [80.0, 70.0]) == [70.0]


def test_published_cells():
    assert len(TABLE1.conditions) == 30
    assert [row.net.name for row in TABLE1.rows[:2]] == ["7x240 tanh", "100x240 tanh"]
    cells = {
        f"{row.net.name}, {rule}": getattr(row, rule)
        for t in (TABLE1, TABLE2)
        for row in t.rows
        for rule in ("bp", "fa", "dfa")
    }
    assert cells["100x240 tanh, bp"] is cells["100x240 tanh, fa"] is None
    assert (cells["100x240 tanh, dfa"].test, cells["100x240 tanh, dfa"].train) == (3.92, 0.12)
    assert (cells["2x800 tanh + ADV, dfa"].test, cells["2x800 tanh + ADV, dfa"].spread) == (1.02, 0.05)
    assert (cells["3x1000 tanh + DO, fa"].test, cells["3x1000 tanh + DO, fa"].train) == (46.9, 48.9)
    assert [row.bp.tag for row in TABLE3.rows] == ["M", "P", "M"]
    assert (TABLE2.data, TABLE3.data, FIG3.net.name) == ("uoft-cs/cifar10", "uoft-cs/cifar100", "3x400 tanh")
