"""The named rules: pairs of a pathway and a plasticity, with their sources.

A new rule is one line here, and one file in `plasticity` or `pathways` if it answers a question anew.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

from apical.checks import fits, near, told
from apical.citations import CITATIONS
from apical.pathways import PATHWAYS, Direct, FromOutput, Indirect, LayerWise, NoPathway, Pathway, Scalar
from apical.plasticity import (
    PLASTICITIES,
    Fixed,
    Gradient,
    Hebbian,
    Mirror,
    NoPlasticity,
    Perturbation,
    Plasticity,
    Signs,
    Trained,
    Transport,
)
from apical.plasticity.initialization import law_of

Part = TypeVar("Part", Pathway, Plasticity)


@dataclass(frozen=True, init=False)
class Rule:
    """A learning rule: how a teaching signal reaches a synapse, and how its feedback weights come to be.

    Args:
        pathway: a `Pathway`, or its name: "layer-wise", "direct", "indirect", "scalar", "none".
        plasticity: a `Plasticity`, or its name: "fixed", "transport", "signs", "hebbian", "mirror", "perturbation",
            "gradient"; None with pathways "scalar" and "none", which need no feedback weights.
        name: short name; title: what the field calls it; cites: keys of `apical.citations.CITATIONS`.
        where: paper and equation; weight_decay: what the paper's optimizer applies to W and B alike, where it matters.

    Raises:
        ValueError: for a pair without meaning, or an unknown name.

    >>> Rule("direct", "hebbian").name
    'direct/hebbian'
    """

    pathway: Pathway
    plasticity: Plasticity
    name: str = field(default="", kw_only=True)
    title: str = field(default="", kw_only=True)
    cites: tuple[str, ...] = field(default=(), kw_only=True)
    where: str = field(default="", kw_only=True)
    weight_decay: float = field(default=0.0, kw_only=True)

    def __init__(
        self,
        pathway: Pathway | str,
        plasticity: Plasticity | str | None = None,
        *,
        name: str = "",
        title: str = "",
        cites: tuple[str, ...] = (),
        where: str = "",
        weight_decay: float = 0.0,
    ) -> None:
        signal = _part(pathway, PATHWAYS, Pathway, "pathway")
        feedback = _plasticity(plasticity, signal)
        # A frozen dataclass is filled by way of its dictionary.
        vars(self).update(
            pathway=signal,
            plasticity=feedback,
            name=name or f"{signal.name}/{feedback.name}",
            title=title or f"{feedback.name} feedback, {signal.name}".capitalize(),
            cites=cites,
            where=where,
            weight_decay=weight_decay,
        )

    @property
    def direct(self) -> bool:
        """Whether signals come from the output's error, so that `attach` needs `example_input` for their feedback's shapes."""
        return isinstance(self.pathway, FromOutput)

    @property
    def trains(self) -> bool:
        """Whether the user's optimizer moves the feedback."""
        return isinstance(self.plasticity, Trained)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Name -> value of everything that `apical.rule(name, ...)` may set."""
        return {
            f.name: getattr(part, f.name)
            for part in (self.pathway, self.plasticity)
            for f in dataclasses.fields(part)
            if not f.metadata.get("settled_by_name")
        }

    @property
    def citations(self) -> list[str]:
        """The works to cite for this rule."""
        return [CITATIONS[key] for key in self.cites]


def _plasticity(given: Plasticity | str | None, pathway: Pathway) -> Plasticity:
    """The plasticity that goes with a pathway."""
    absent = given in (None, "none") or isinstance(given, NoPlasticity)
    if isinstance(pathway, NoPathway | Scalar):
        if absent:
            return NoPlasticity()
        raise ValueError(
            f"pathway '{pathway.name}' has no feedback weights, so plasticity {_label(given)} would never be used; leave "
            "plasticity out"
        )
    if absent:
        raise ValueError(
            f"pathway '{pathway.name}' needs feedback weights; give plasticity=, one of {', '.join(PLASTICITIES)}"
        )
    plasticity = _part(given, PLASTICITIES, Plasticity, "plasticity")
    if pathway.name not in plasticity.pathways:
        why = _WHY_NOT.get(plasticity.name)
        raise ValueError(
            f"pathway '{pathway.name}' with plasticity '{plasticity.name}' has no meaning{f': {why}' if why else ''}; "
            f"'{plasticity.name}' goes with {' or '.join(sorted(plasticity.pathways))}"
        )
    if isinstance(pathway, Direct) and (pathway.shared or pathway.seeded):
        option = "shared" if pathway.shared else "seeded"
        if not isinstance(plasticity, Fixed):
            raise ValueError(
                f"{option}=True is for fixed feedback, and that of plasticity '{plasticity.name}' learns, each place's on its "
                "own; leave it out, or make less to be learned with positions= or rank="
            )
        law_of(plasticity.init)
    return plasticity


_WHY_NOT = {
    "fixed": "nothing would carry it",
    "transport": "the transposed weights of a synapse take only that synapse's own error back",
    "signs": "the signs of a synapse's weights are signs for that synapse's own error only",
    "hebbian": "the indirect signal travels on through the forward weights, and no product of activities belongs to it",
    "mirror": "the indirect signal travels on through the forward weights, and its feedback stands for no weights to mirror",
    "perturbation": "the indirect signal is no estimate of a gradient that its feedback could be fitted to",
    "gradient": "the indirect signal is no estimate of a gradient that its feedback could be fitted to",
}


def _label(value: Any) -> str:
    return repr(value if isinstance(value, str) else getattr(value, "name", value))


def _part(value: Any, table: dict[str, type[Part]], kind: type[Part], argument: str) -> Part:
    """A pathway or plasticity, from itself or its name."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and (key := value.lower().replace("_", "-")) in table:
        return table[key]()
    if isinstance(value, type) and issubclass(value, kind):
        raise ValueError(f"{argument} got the class {value.__name__}; give an instance, {value.__name__}()")
    raise ValueError(f"unknown {argument} {value!r}; give one of {', '.join(table)}, or an instance of {kind.__name__}")


def _line(
    name: str,
    pathway: Pathway,
    plasticity: Plasticity | None,
    title: str,
    cites: str,
    where: str = "",
    decay: float = 0.0,
) -> Rule:
    return Rule(
        pathway, plasticity, name=name, title=title, cites=tuple(cites.split()), where=where, weight_decay=decay
    )


# fmt: off
_TABLE = (
    _line("bp", LayerWise(), Transport(), "Backpropagation", "rumelhart1986"),
    _line("shallow", NoPathway(), None, "Shallow learning", "lillicrap2016", "Fig. 2a"),
    _line("fa", LayerWise(), Fixed(), "Feedback alignment", "lillicrap2016", "Fig. 3c, Methods"),
    _line("frfb", LayerWise(), Fixed("amit2019"), "Fixed random feedback", "amit2019", "section 3"),
    _line("dfa", Direct(), Fixed(), "Direct feedback alignment", "nokland2016"),
    _line("ifa", Indirect(), Fixed(), "Indirect feedback alignment", "nokland2016", "eq. 9"),
    _line("usf", LayerWise(), Signs(), "Uniform sign-concordant feedback", "liao2016 akrout2019"),
    _line("brsf", LayerWise(), Signs("batchwise"), "Batchwise random sign-concordant feedback", "liao2016"),
    _line("frsf", LayerWise(), Signs("fixed"), "Fixed random sign-concordant feedback", "liao2016"),
    _line("kp", LayerWise(), Hebbian(), "Kolen-Pollack", "kolen1994 akrout2019", "eqs 16-17", decay=1e-4),
    # [R] the paper says weight decay and prints no value.
    _line("matched", LayerWise(), Hebbian(), "Matched updates with weight decay", "lansdell2020", decay=1e-4),
    _line("urfb", LayerWise(), Hebbian(init="amit2019"), "Updated random feedback", "amit2019", "section 3"),
    _line("kp-direct", Direct(), Hebbian(), "Direct Kolen-Pollack", "akrout2019 nokland2016"),
    _line("wm", LayerWise(), Mirror(), "Weight mirror", "akrout2019", "eqs 5-7, 19-25, Algorithm 1"),
    _line("np", LayerWise(), Perturbation(), "Feedback learned from node perturbation", "lansdell2020", "eqs 1, 2, 8, 9"),
    _line("np-direct", Direct(), Perturbation(), "Direct feedback learned from node perturbation", "lansdell2020", "section 3.1"),
    _line("sg", LayerWise(), Gradient(), "Synthetic gradients", "lansdell2020", "Table 2a"),
    _line("sg-direct", Direct(), Gradient(), "Direct synthetic gradients", "lansdell2020", "Table 2b"),
    _line("reinforce", Scalar(), None, "Node perturbation", "lillicrap2016 lansdell2020", "Fig. 2a, fast RL; eq. 2"),
)
# fmt: on
_RULES = {one.name: one for one in _TABLE}


def rules() -> dict[str, Rule]:
    """Every named rule, by name, with its defaults.

    >>> rules()["fa"].title
    'Feedback alignment'
    """
    return dict(_RULES)


def rule(name: str, **hyperparameters: Any) -> Rule:
    """The named rule, with some hyperparameters changed.

    >>> rule("urfb", epsilon=0.5).plasticity.epsilon
    0.5

    Raises:
        ValueError: for an unknown name (the nearest ones are offered), a hyperparameter that the rule doesn't have, or a value
            of a wrong kind.
    """
    if not isinstance(name, str) or name not in _RULES:
        raise ValueError(f"unknown rule {name!r}; {_hint(str(name))}the rules are {', '.join(_RULES)}")
    found = _RULES[name]
    known = found.hyperparameters
    unknown = [key for key in hyperparameters if key not in known]
    if unknown:
        raise ValueError(
            f"rule '{name}' has no hyperparameter {', '.join(map(repr, unknown))}; it has {', '.join(known) or 'none'}"
        )
    changed = {}
    for part in ("pathway", "plasticity"):
        value = getattr(found, part)
        own = {key: v for key, v in hyperparameters.items() if key in {f.name for f in dataclasses.fields(value)}}
        kinds = get_type_hints(type(value)) if own else {}
        for key, v in own.items():
            if not fits(v, kinds[key]):
                raise ValueError(f"rule '{name}': {key} must be {told(kinds[key])}, got {v!r}")
        if own:
            changed[part] = dataclasses.replace(value, **own)
    return dataclasses.replace(found, **changed) if changed else found


def _hint(name: str) -> str:
    """Rules that a name may have meant; by their titles, too: "feedback-alignment" is 'fa'."""
    known = {**{one.title.lower(): key for key, one in _RULES.items()}, **{key: key for key in _RULES}}
    wanted = name.lower().replace("_", " ").strip()
    close = [*near(wanted, known), *near(wanted.replace("-", " "), known, cutoff=0.8)]
    offered = list(dict.fromkeys(known[key] for key in close))[:3]
    return f"did you mean {' or '.join(map(repr, offered))}? " if offered else ""


def as_rule(value: object) -> Rule:
    """A `Rule` from what `attach` takes.

    Raises:
        TypeError: for anything but a name or a rule.
    """
    if isinstance(value, Rule):
        return value
    if isinstance(value, str):
        return rule(value)
    raise TypeError(
        f"rule must be a name, a Rule, or a dict from module names to these, got {value!r}; the names are {', '.join(_RULES)}"
    )
