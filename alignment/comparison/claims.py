"""The papers' claims as experiments on the small world: what is expected, and what was found.

A claim is a function that looks at results and returns checks, each an estimate and the side of
zero where the paper would have it. It is confirmed where every interval lies wholly on its side
and every seed's mean does too. Nothing is tuned until it agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from alignment.comparison.measures import CUT_THRESHOLD
from alignment.comparison.results import Estimate, Results, estimate

Verdict = Literal["confirmed", "not confirmed", "cannot be tested here", "not run"]


class Check(NamedTuple):
    """One number of a claim.

    Attributes:
        says: What the number is.
        found: It, with its interval.
        expected: `above` or `below` zero; `not below` where equality is what is claimed.
    """

    says: str
    found: Estimate
    expected: Literal["above", "below", "not below"]

    @property
    def holds(self) -> bool:
        """Whether the interval and every seed lie where they are expected."""
        if self.expected == "above":
            return self.found.low > 0 and min(self.found.seeds) > 0
        if self.expected == "below":
            return self.found.high < 0 and max(self.found.seeds) < 0
        return self.found.high >= 0


class Finding(NamedTuple):
    """What was found on a claim.

    Attributes:
        verdict: Of the whole.
        checks: Each number.
        remark: What must be known to read it; empty for nothing.
    """

    verdict: Verdict
    checks: Sequence[Check] = ()
    remark: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    Attributes:
        name: A word or two.
        paper: Its number at arXiv.
        expects: The claim, in a sentence.
        methods: What must have been run.
        look: Makes checks of results.
        remark: What must be known to read them.
        untestable: Why this world cannot decide; the checks are then shown without a verdict.
    """

    name: str
    paper: str
    expects: str
    methods: tuple[str, ...]
    look: Callable[[Results], Sequence[Check]]
    remark: str = ""
    untestable: str = ""

    def judge(self, results: Results) -> Finding:
        """The finding, `not run` where a method is missing."""
        if missing := [name for name in self.methods if name not in results.methods]:
            return Finding("not run", remark=f"missing: {', '.join(missing)}")
        checks = self.look(results)
        if self.untestable:
            return Finding("cannot be tested here", checks, self.untestable)
        held = all(check.holds for check in checks)
        return Finding("confirmed" if held else "not confirmed", checks, self.remark)


def nca_keeps_chosen(results: Results) -> list[Check]:
    """NCA against InfoNCA and DPO on the same scored samples: where right answers go."""
    rise = "log-prob of right answers, change under"
    return [
        Check(f"{rise} NCA", results.of("nca", "chosen"), "not below"),
        Check(f"{rise} InfoNCA", results.of("infonca", "chosen"), "below"),
        Check(f"{rise} DPO on best and worst", results.of("dpo_sampled", "chosen"), "below"),
        Check(
            "NCA's change minus InfoNCA's",
            results.difference("nca", "infonca", "chosen"),
            "above",
        ),
        Check(
            "NCA's change minus DPO's, both on best and worst",
            results.difference("nca_pairs", "dpo_sampled", "chosen"),
            "above",
        ),
    ]


def groups_beat_pairs(results: Results) -> list[Check]:
    """InfoNCA on all four samples against their best and worst."""
    return [_better(results, "infonca", "infonca_pairs", "InfoNCA, K=4 minus pairs")]


def apo_directions(results: Results) -> list[Check]:
    """Where both anchored losses move both sides."""
    return [
        Check("APO-zero: change of chosen", results.of("apo_zero", "chosen"), "above"),
        Check("APO-zero: change of rejected", results.of("apo_zero", "rejected"), "below"),
        Check("APO-down: change of chosen", results.of("apo_down", "chosen"), "below"),
        Check("APO-down: change of rejected", results.of("apo_down", "rejected"), "below"),
    ]


def apo_fits_data(results: Results) -> list[Check]:
    """Each variant on data whose chosen side is better, or worse, than the model."""
    return [
        _better(results, "apo_zero", "apo_down", "better winners: APO-zero minus APO-down"),
        _better(
            results,
            "apo_down_on_worse",
            "apo_zero_on_worse",
            "worse winners: APO-down minus APO-zero",
        ),
    ]


def apo_wrong_choice_hurts(results: Results) -> list[Check]:
    """The variant that the data does not ask for, against the start."""
    return [
        Check("better winners: APO-down minus the start", results.gain("apo_down"), "below"),
        Check(
            "worse winners: APO-zero minus the start", results.gain("apo_zero_on_worse"), "below"
        ),
    ]


def diagnostic_picks(results: Results) -> list[Check]:
    """The win rate of chosen answers over fresh samples, which decides the advice."""
    return [
        Check("win rate of better winners, minus 1/2", _fact(results, "advice", "pairs"), "above"),
        Check(
            "win rate of worse winners, minus 1/2", _fact(results, "advice", "worse_pairs"), "below"
        ),
    ]


def minimal_revisions(results: Results) -> list[Check]:
    """APO-zero on CLAIR's pairs against pairs by a judge and by a stronger model."""
    return [
        _better(results, "apo_zero", "apo_zero_on_judged", "CLAIR minus judge's pairs"),
        _better(results, "apo_zero", "apo_zero_on_stronger", "CLAIR minus stronger preferred"),
        Check(
            "overlap of CLAIR's sides minus that of the judge's",
            _contrast(results, "pairs", "judged_pairs"),
            "above",
        ),
        Check(
            "overlap of CLAIR's sides minus that of stronger preferred",
            _contrast(results, "pairs", "stronger_pairs"),
            "above",
        ),
    ]


def stronger_hurts(results: Results) -> list[Check]:
    """A stronger model's answers as winners, without minimality."""
    return [Check("minus the start", results.gain("apo_zero_on_stronger"), "below")]


def cut_finds(results: Results) -> list[Check]:
    """CUT's selection at its threshold against the characters that are wrong."""
    found = [one[str(CUT_THRESHOLD)] for one in results.found["cut"]]
    precision = [one["hits"] / max(1, one["selected"]) for one in found]
    base = [one["planted"] / one["tokens"] for one in found]
    recall = [one["hits"] / one["planted"] for one in found]
    return [
        Check(
            f"precision at {CUT_THRESHOLD} minus the share of wrong tokens",
            estimate([[a - b] for a, b in zip(precision, base, strict=True)]),
            "above",
        ),
        Check(
            f"recall at {CUT_THRESHOLD} minus the share of tokens selected",
            estimate(
                [
                    [a - one["selected"] / one["tokens"]]
                    for a, one in zip(recall, found, strict=True)
                ]
            ),
            "above",
        ),
    ]


def cut_learns(results: Results) -> list[Check]:
    """CUT on judgments alone."""
    return [Check("CUT minus the start", results.gain("cut"), "above")]


def cut_needs_threshold(results: Results) -> list[Check]:
    """Every token of a judged answer unlearnt."""
    return [
        Check("without minus the start", results.gain("cut_without_threshold"), "below"),
        _better(results, "cut", "cut_without_threshold", "with minus without"),
    ]


def cpo_beats(results: Results) -> list[Check]:
    """CPO, SFT on winners and DPO on the same pairs."""
    return [
        _better(results, "cpo", "sft_on_chosen", "CPO minus SFT on winners"),
        _better(results, "cpo", "dpo", "CPO minus DPO"),
    ]


def small_beta_displaces(results: Results) -> list[Check]:
    """The change of right answers at beta 0.1 against 0.5."""
    return [
        Check(
            f"{name}: change at beta 0.1 minus at 0.5",
            results.difference(f"{method}_beta_0.1", method, "chosen"),
            "below",
        )
        for name, method in (("DPO", "dpo"), ("APO-zero", "apo_zero"))
    ]


def distillm2_leads(results: Results) -> list[Check]:
    """DistiLLM-2 against other ways to learn from the same teacher's and student's answers."""
    others = {"distillm": "DistiLLM", "gkd": "GKD", "kd": "forward KL", "seqkd": "sequence KD"}
    return [
        _better(results, "distillm2", method, f"DistiLLM-2 minus {name}")
        for method, name in others.items()
    ]


def distillm2_parts(results: Results) -> list[Check]:
    """DistiLLM-2 without one of its parts."""
    return [
        _better(results, "distillm2", "distillm2_fixed_skew", "adaptive minus fixed skew"),
        _better(results, "distillm2", "distillm2_no_curriculum", "curriculum on minus off"),
    ]


def rlcd_against_rlaif(results: Results) -> list[Check]:
    """Labels by provenance against those of a labeller who is right in 60% or 95% of cases."""
    return [
        _better(results, "rlcd", "rlaif_weak", "RLCD minus RLAIF, weak labeller"),
        Check(
            "RLAIF, strong labeller, minus RLCD",
            results.difference("rlaif_strong", "rlcd"),
            "not below",
        ),
    ]


def popalign_contrasts(results: Results) -> list[Check]:
    """How often the chosen side is the better one, for the contrasts that this world has."""
    return [
        Check(
            "larger against smaller model: share of true pairs, minus 1/2",
            _fact(results, "accuracy", "stronger_pairs"),
            "above",
        ),
        Check(
            "prefix: share of true pairs, minus 1/2",
            _fact(results, "accuracy", "provenance_pairs"),
            "above",
        ),
    ]


CLAIMS = (
    Claim(
        "NCA keeps the chosen likelihood",
        "2402.05369",
        "NCA keeps the likelihood of good answers from falling, where InfoNCA and DPO let it fall.",
        ("nca", "infonca", "dpo_sampled", "nca_pairs"),
        nca_keeps_chosen,
        remark="InfoNCA on pairs of the same groups is the row `infonca_pairs`.",
    ),
    Claim(
        "InfoNCA gains from more than two responses",
        "2402.05369",
        "InfoNCA on four scored responses is better than on the best and the worst of them.",
        ("infonca", "infonca_pairs"),
        groups_beat_pairs,
    ),
    Claim(
        "APO moves both sides as told",
        "2408.06266",
        "APO-zero raises the chosen and lowers the rejected; APO-down lowers both.",
        ("apo_zero", "apo_down"),
        apo_directions,
    ),
    Claim(
        "Each APO wins on its data",
        "2408.06266",
        "APO-zero is better where winners are better than the model, APO-down where they are "
        "worse.",
        ("apo_zero", "apo_down", "apo_zero_on_worse", "apo_down_on_worse"),
        apo_fits_data,
        remark="At this learning rate APO-down goes far from the start on either data: see its KL.",
    ),
    Claim(
        "The wrong APO hurts",
        "2408.06266",
        "The variant that does not fit the data makes the model worse than it was.",
        ("apo_down", "apo_zero_on_worse"),
        apo_wrong_choice_hurts,
    ),
    Claim(
        "The diagnostic picks the right APO",
        "2408.06266",
        "Chosen answers win against fresh samples where APO-zero fits, and lose where APO-down "
        "does.",
        (),
        diagnostic_picks,
    ),
    Claim(
        "Minimal revisions teach most",
        "2408.06266",
        "At equal prompts CLAIR's pairs are better than a judge's and than stronger preferred, and "
        "their sides overlap more.",
        ("apo_zero", "apo_zero_on_judged", "apo_zero_on_stronger"),
        minimal_revisions,
    ),
    Claim(
        "Stronger preferred hurts",
        "2408.06266",
        "Pairs of a stronger model's answer against one's own make the model worse.",
        ("apo_zero_on_stronger",),
        stronger_hurts,
        remark="The larger model here shares alphabet, style and length with the smaller one.",
    ),
    Claim(
        "CUT finds what a judgment complains of",
        "2312.14591",
        "The tokens that a judgment makes more likely are those that are wrong: its threshold "
        "picks them with more precision and recall than chance.",
        ("cut",),
        cut_finds,
    ),
    Claim(
        "CUT learns from judgments alone",
        "2312.14591",
        "CUT makes the model better from answers with words on what is wrong with them.",
        ("cut",),
        cut_learns,
        remark="The start has never read a judgment, so that at first the selection is a guess; "
        "how good it is after training stands at the end of this page.",
    ),
    Claim(
        "CUT needs its threshold",
        "2312.14591",
        "Without the threshold training diverges.",
        ("cut", "cut_without_threshold"),
        cut_needs_threshold,
    ),
    Claim(
        "CPO beats SFT on winners and DPO",
        "2401.08417",
        "On the same pairs CPO is better than SFT on the chosen side and than DPO.",
        ("cpo", "sft_on_chosen", "dpo"),
        cpo_beats,
        remark="Winners here are always right, which no real data set's are.",
    ),
    Claim(
        "A small beta displaces likelihood",
        "2401.08417",
        "The smaller beta, the more the likelihood of right answers falls with that of wrong ones.",
        ("dpo", "dpo_beta_0.1", "apo_zero", "apo_zero_beta_0.1"),
        small_beta_displaces,
        remark="An observation on this world rather than a claim of that paper.",
    ),
    Claim(
        "DistiLLM-2 leads its kin",
        "2503.07067",
        "DistiLLM-2 is better than DistiLLM, GKD, forward KL and sequence KD with the same "
        "teacher.",
        ("distillm2", "distillm", "gkd", "kd", "seqkd"),
        distillm2_leads,
    ),
    Claim(
        "DistiLLM-2 needs its parts",
        "2503.07067",
        "Adaptive skew and the curriculum each make DistiLLM-2 better.",
        ("distillm2", "distillm2_fixed_skew", "distillm2_no_curriculum"),
        distillm2_parts,
    ),
    Claim(
        "RLCD against RLAIF",
        "2307.12950",
        "Labels by provenance beat those of a weak labeller; a strong one catches up.",
        ("rlcd", "rlaif_weak", "rlaif_strong"),
        rlcd_against_rlaif,
    ),
    Claim(
        "PopAlign's contrasts by accuracy",
        "2410.13785",
        "Of six contrasts the elicitive one and the larger model are the truest, refinement is a "
        "coin's toss.",
        (),
        popalign_contrasts,
        untestable="Demonstrations, elicitation and refinement ask a model to follow instructions "
        "that one of this size has never seen, so the order of all six is out of reach; two are "
        "measured. `python -m benchmarks.contrast` holds the builder of all six against programs "
        "of known accuracy.",
    ),
)


def _better(results: Results, method: str, other: str, says: str) -> Check:
    found = results.difference(method, other)
    return Check(f"{says}, probability of a right answer", found, "above")


def _fact(results: Results, kind: str, data: str) -> Estimate:
    """The scores of each seed's data, minus one half."""
    return estimate([[value - 0.5 for value in fact[kind][data]] for fact in results.facts])


def _contrast(results: Results, data: str, other: str) -> Estimate:
    """A difference of means over pairs; each seed is one value."""
    return estimate([[fact["overlap"][data] - fact["overlap"][other]] for fact in results.facts])
