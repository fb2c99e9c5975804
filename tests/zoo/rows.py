"""A network's row in the table: what holds of it, or an error that says what does not."""

from __future__ import annotations

from dataclasses import dataclass

from apical import AuditReport
from zoo import checks
from zoo.networks import Network

REFUSALS = {
    "kp": ("computes them from others in every pass",),
    "dfa": ("the batch in the first dimension throughout", "its direct feedback has one shape"),
    "attach": ("is used outside of the layer's own call", "is a weight, with which an activity is multiplied"),
}
"""Words of the errors by which rules, or all of them, are refused."""
SCALE = "normalization scale"


@dataclass(frozen=True)
class Row:
    """What holds of one network, in words.

    Attributes:
        network: which. parameters: of the tiny build. synapses: layers that learn by a rule. answers: rule -> "yes" or "no".
        remark: why not; and what the audits list beside "nothing".
    """

    network: Network
    parameters: int
    synapses: int
    answers: dict[str, str]
    remark: str


def row(network: Network) -> Row:
    """Check everything that is asked of a network.

    Raises:
        AssertionError: if something else holds than the network's entry says.
    """
    parameters = sum(p.numel() for p in checks.built(network).parameters())
    if network.refused:
        _refused(network, "fa", "attach")
        return Row(
            network, parameters, 0, dict.fromkeys(("fa", "kp", "dfa"), "no"), f"{network.refused}; refused by name"
        )
    for rule, prepare in (("bp", None), ("fa", checks.with_weights_for_feedback)):
        found, name = checks.difference(network, rule, prepare)
        assert found <= network.tolerance, f"{rule}: the gradient of {name} is {found:.1e} off that of the plain model"
    answers, remarks, reports = {}, [], []
    for rule, reason in (("fa", ""), ("kp", network.no_kp), ("dfa", network.no_dfa)):
        answers[rule] = "no" if reason else "yes"
        if reason:
            _refused(network, rule, rule)
            remarks.append(f"{rule}: {reason}")
        else:
            reports.append(checks.trained_and_audited(network, rule))
    remarks.append(_listed(network, reports))
    return Row(network, parameters, checks.synapses(network), answers, "; ".join(filter(None, remarks)))


def _refused(network: Network, rule: str, reason: str) -> None:
    told = ""
    try:
        checks.attached(checks.built(network), network, rule, network.example())
    except ValueError as error:
        told = str(error)
    assert told, f"{rule} is said to be refused, but attaches"
    assert any(words in told for words in REFUSALS[reason]), f"{rule}: {told}"


def _listed(network: Network, reports: list[AuditReport]) -> str:
    """What audits list; an AssertionError if it is more than scales, and weights of layers that are backpropagated."""
    scales, weights = set[str](), set[str]()
    for report in reports:
        for name, kind in report.transported.items():
            if kind == SCALE:
                scales.add(name)
            elif kind != "nothing":
                assert network.apart.get(name) == "bp", f"{report.rule}: {kind} at {name}"
                weights.add(name)
    found = [f"weights at the {len(weights)} layers that learn by bp"] if weights else []
    return " and ".join(
        [*found, *([f"{SCALE} of {len(scales)} of {len(reports[0].transported)} modules"] if scales else [])]
    )
