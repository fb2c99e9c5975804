"""The named rules: pairs of a pathway and a plasticity, with their sources.

A new rule is one line here, and one file in `plasticity` (or a class in `pathway`) if it answers a question anew.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_type_hints

from apical.checks import fits, told
from apical.citations import CITATIONS
from apical.pathways import PATHWAYS
from apical.pathways.base import Pathway
from apical.pathways.direct import Direct
from apical.pathways.indirect import Indirect
from apical.pathways.layer_wise import LayerWise
from apical.pathways.none import NoPathway
from apical.pathways.scalar import Scalar
from apical.plasticity import PLASTICITIES, Fixed, Gradient, Hebbian, Mirror, Perturbation, Plasticity, Signs, Transport
from apical.plasticity.none import NO_PLASTICITY


@dataclass(frozen=True)
class Rule:
    """A learning rule: how a teaching signal reaches a synapse, and how its feedback weights come to be.

    Args:
        pathway: a `Pathway`, or its name: "layer-wise", "direct", "indirect", "scalar", "none".
        plasticity: a `Plasticity`, or its name: "fixed", "transport", "signs", "hebbian", "mirror", "perturbation",
            "gradient"; None with pathways "scalar" and "none", which need no feedback weights.
        name: short name; title: what the field calls it; cites: keys of `CITATIONS`.
        where: paper and equation; weight_decay: what the paper's optimizer applies to W and B alike, where it matters.

    Raises:
        ValueError: for a pair without meaning, or an unknown name.
    """

    pathway: Pathway
    plasticity: Plasticity = None  # type: ignore[assignment]
    name: str = field(default="", kw_only=True)
    title: str = field(default="", kw_only=True)
    cites: tuple[str, ...] = field(default=(), kw_only=True)
    where: str = field(default="", kw_only=True)
    weight_decay: float = field(default=0.0, kw_only=True)

    if TYPE_CHECKING:

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
        ) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "pathway", _named(self.pathway, PATHWAYS, Pathway, "pathway"))
        pathway = self.pathway
        if isinstance(pathway, NoPathway | Scalar):
            if self.plasticity not in (None, "none", NO_PLASTICITY):
                raise ValueError(
                    f"pathway '{pathway.name}' has no feedback weights, so plasticity {_label(self.plasticity)} would never be "
                    "used; leave plasticity out"
                )
            object.__setattr__(self, "plasticity", NO_PLASTICITY)
        else:
            if self.plasticity in (None, "none"):
                raise ValueError(
                    f"pathway '{pathway.name}' needs feedback weights; give plasticity=, one of {', '.join(PLASTICITIES)}"
                )
            object.__setattr__(self, "plasticity", _named(self.plasticity, PLASTICITIES, Plasticity, "plasticity"))
        plasticity = self.plasticity
        if pathway.name not in plasticity.pathways:
            why = _WHY_NOT.get(plasticity.name)
            raise ValueError(
                f"pathway '{pathway.name}' with plasticity '{plasticity.name}' has no meaning{f': {why}' if why else ''}; "
                f"'{plasticity.name}' goes with {' or '.join(sorted(plasticity.pathways))}"
            )
        if not self.name:
            object.__setattr__(self, "name", f"{pathway.name}/{plasticity.name}")
        if not self.title:
            object.__setattr__(self, "title", f"{plasticity.name} feedback, {pathway.name}".capitalize())

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Name -> value of everything `apical.rule(name, ...)` may set."""
        return {
            f.name: getattr(part, f.name)
            for part in (self.pathway, self.plasticity)
            for f in dataclasses.fields(part)  # type: ignore[arg-type]
            if not f.metadata.get("settled_by_name")
        }

    @property
    def citations(self) -> list[str]:
        """The works to cite for this rule."""
        return [CITATIONS[key] for key in self.cites]


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


def _named(value: Any, table: dict[str, Any], kind: type, argument: str) -> Any:
    if isinstance(value, kind):
        return value
    if isinstance(value, str):
        key = value.lower().replace("_", "-")
        if key in table:
            return table[key]()
    if isinstance(value, type) and issubclass(value, kind):
        raise ValueError(f"{argument} got the class {value.__name__}; give an instance, {value.__name__}()")
    raise ValueError(f"unknown {argument} {value!r}; give one of {', '.join(table)}, or an instance of {kind.__name__}")


_RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(LayerWise(), Transport(), name="bp", title="Backpropagation", cites=("rumelhart1986",)),
        Rule(NoPathway(), name="shallow", title="Shallow learning", cites=("lillicrap2016",), where="Fig. 2a"),
        Rule(
            LayerWise(),
            Fixed(),
            name="fa",
            title="Feedback alignment",
            cites=("lillicrap2016",),
            where="Fig. 3c, Methods",
        ),
        Rule(
            LayerWise(),
            Fixed("amit2019"),
            name="frfb",
            title="Fixed random feedback",
            cites=("amit2019",),
            where="section 3",
        ),
        Rule(Direct(), Fixed(), name="dfa", title="Direct feedback alignment", cites=("nokland2016",)),
        Rule(
            Indirect(), Fixed(), name="ifa", title="Indirect feedback alignment", cites=("nokland2016",), where="eq. 9"
        ),
        Rule(
            LayerWise(), Signs(), name="usf", title="Uniform sign-concordant feedback", cites=("liao2016", "akrout2019")
        ),
        Rule(
            LayerWise(),
            Signs("batchwise"),
            name="brsf",
            title="Batchwise random sign-concordant feedback",
            cites=("liao2016",),
        ),
        Rule(
            LayerWise(), Signs("fixed"), name="frsf", title="Fixed random sign-concordant feedback", cites=("liao2016",)
        ),
        Rule(
            LayerWise(),
            Hebbian(),
            name="kp",
            title="Kolen-Pollack",
            cites=("kolen1994", "akrout2019"),
            where="eqs 16-17",
            weight_decay=1e-4,
        ),
        Rule(
            LayerWise(),
            Hebbian(),
            name="matched",
            title="Matched updates with weight decay",
            cites=("lansdell2020",),
            weight_decay=1e-4,  # [R] the paper says weight decay and prints no value.
        ),
        Rule(
            LayerWise(),
            Hebbian(init="amit2019"),
            name="urfb",
            title="Updated random feedback",
            cites=("amit2019",),
            where="section 3",
        ),
        Rule(Direct(), Hebbian(), name="kp-direct", title="Direct Kolen-Pollack", cites=("akrout2019", "nokland2016")),
        Rule(
            LayerWise(),
            Mirror(),
            name="wm",
            title="Weight mirror",
            cites=("akrout2019",),
            where="eqs 5-7, 19-25, Algorithm 1",
        ),
        Rule(
            LayerWise(),
            Perturbation(),
            name="np",
            title="Feedback learned from node perturbation",
            cites=("lansdell2020",),
            where="eqs 1, 2, 8, 9",
        ),
        Rule(
            Direct(),
            Perturbation(),
            name="np-direct",
            title="Direct feedback learned from node perturbation",
            cites=("lansdell2020",),
            where="section 3.1",
        ),
        Rule(
            LayerWise(), Gradient(), name="sg", title="Synthetic gradients", cites=("lansdell2020",), where="Table 2a"
        ),
        Rule(
            Direct(),
            Gradient(),
            name="sg-direct",
            title="Direct synthetic gradients",
            cites=("lansdell2020",),
            where="Table 2b",
        ),
        Rule(
            Scalar(),
            name="reinforce",
            title="Node perturbation",
            cites=("lillicrap2016", "lansdell2020"),
            where="Fig. 2a, fast RL; eq. 2",
        ),
    )
}


def rules() -> dict[str, Rule]:
    """Every named rule, by name, with its defaults."""
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
        # By its title, too: "feedback-alignment" is 'fa'.
        known = {**{one.title.lower(): key for key, one in _RULES.items()}, **{key: key for key in _RULES}}
        wanted = str(name).lower().replace("_", " ").strip()
        close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
        close += difflib.get_close_matches(wanted.replace("-", " "), known, n=3, cutoff=0.8)
        near = list(dict.fromkeys(known[key] for key in close))[:3]
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"unknown rule {name!r}; {hint}the rules are {', '.join(_RULES)}")
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


def as_rule(value: str | Rule) -> Rule:
    """A `Rule` from what `attach` takes."""
    if isinstance(value, Rule):
        return value
    if isinstance(value, str):
        return rule(value)
    raise TypeError(
        f"rule must be a name, a Rule, or a dict from module names to these, got {value!r}; the names are {', '.join(_RULES)}"
    )
