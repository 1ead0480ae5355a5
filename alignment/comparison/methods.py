"""The methods that are compared: objective, data, and what differs from the common settings.

All train the same LoRA from the same model with the same learning rate and number of steps, and a
step reads the same number of responses. Where a method has a `beta` that weighs a log-ratio to the
start, it is 0.5 unless its name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignment.cli import unknown

BETA: Mapping[str, Any] = {"beta": 0.5}
SCORED: Mapping[str, Any] = {**BETA, "tau": 0.1}
"""Rewards lie in [0, 1], where the release's tau of 1e-4 would see only the best response."""
ALIGNED, MISALIGNED = "+", "-"
"""Control tokens of conditional training, which the alphabet has."""
TEACHER = ("--teacher_model_name_or_path", "{seed}/teacher")

LORA = ("--use_peft", "true", "--lora_r", "16", "--lora_target_modules", "all-linear")

Part = Literal["main", "claims", "wider", "free"]


@dataclass(frozen=True)
class Method:
    """One training, or one way to decode without it.

    Attributes:
        name: Of its row.
        objective: What it trains with; empty for none.
        data: A file of the seed's data, without `.jsonl`.
        part: In which table it stands: the eight that are always run, what the claims need
            besides, the wider field, or what is not trained.
        kwargs: The objective's hyper-parameters.
        adapter: Options of `alignment train` that say what is trained.
        words: Options of `alignment train` besides, or of `alignment generate` where nothing is
            trained; `{seed}` is the folder of the seed, `{own}` that of the method.
        responses: Of a group, which decides how many groups a step reads.
        prefix: What the answer is made to begin with, and is not part of it.
        helper: What decoding needs besides: a model that has seen a third of the start's
            demonstrations, or a pair of soft prompts tuned on CLAIR's pairs.
    """

    name: str
    objective: str
    data: str
    part: Part = "main"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    words: Sequence[str] = ()
    adapter: Sequence[str] = LORA
    responses: int = 2
    prefix: str = ""
    helper: Literal["amateur", "soft_prompts"] | None = None


_BEST_WORST = ("--pair_rule", "best_worst")

METHODS = (
    Method("apo_zero", "apo", "pairs", kwargs=BETA),
    Method("apo_down", "apo", "pairs", kwargs={**BETA, "variant": "down"}),
    Method("nca", "nca", "groups", kwargs=SCORED, responses=4),
    Method("infonca", "infonca", "groups", kwargs=SCORED, responses=4),
    Method("cpo", "cpo", "pairs"),
    Method("cut", "cut", "judgments", responses=1),
    Method("distillm2", "distillm2", "distill", words=TEACHER),
    Method("dpo", "dpo", "pairs", kwargs=BETA),
    # What the claims need besides.
    Method("nca_pairs", "nca", "groups", "claims", {**SCORED, "form": "pair"}, _BEST_WORST),
    Method("infonca_pairs", "infonca", "groups", "claims", {**SCORED, "form": "pair"}, _BEST_WORST),
    Method("dpo_sampled", "dpo", "groups", "claims", BETA, _BEST_WORST),
    Method("apo_zero_on_worse", "apo", "worse_pairs", "claims", BETA),
    Method("apo_down_on_worse", "apo", "worse_pairs", "claims", {**BETA, "variant": "down"}),
    Method("apo_zero_on_judged", "apo", "judged_pairs", "claims", BETA),
    Method("apo_zero_on_stronger", "apo", "stronger_pairs", "claims", BETA),
    Method("apo_zero_beta_0.1", "apo", "pairs", "claims", {"beta": 0.1}),
    Method("dpo_beta_0.1", "dpo", "pairs", "claims", {"beta": 0.1}),
    Method("cut_without_threshold", "cut", "judgments", "claims", {"threshold": 1e-9}, responses=1),
    Method("sft_on_chosen", "seqkd", "pairs", "claims"),
    Method("distillm", "distillm", "distill", "claims", words=TEACHER),
    Method("gkd", "gkd", "distill", "claims", words=TEACHER),
    Method("kd", "kd", "distill", "claims", words=TEACHER),
    Method("seqkd", "seqkd", "distill", "claims"),
    Method("distillm2_fixed_skew", "distillm2", "distill", "claims", {"skew": "fixed"}, TEACHER),
    Method(
        "distillm2_no_curriculum", "distillm2", "distill", "claims", {"curriculum": "off"}, TEACHER
    ),
    Method("rlcd", "apo", "provenance_pairs", "claims", BETA),
    Method("rlaif_weak", "apo", "weakly_labelled_pairs", "claims", BETA),
    Method("rlaif_strong", "apo", "strongly_labelled_pairs", "claims", BETA),
    # The wider field.
    Method("simpo", "simpo", "pairs", "wider"),
    Method("apo_unpaired", "apo", "labelled", "wider", {**BETA, "form": "unpaired"}, responses=1),
    Method("ulma", "ulma", "labelled", "wider", BETA, responses=1),
    Method("d2o", "d2o", "sides", "wider", {"beta": 0.5, "alpha": 0.5}, responses=4),
    Method("ampo", "ampo", "groups", "wider", responses=4),
    Method("clha", "clha", "groups", "wider", {"margin": 0.1}, responses=4),
    Method("figa", "figa", "pairs", "wider"),
    Method("conditional", "conditional", "conditioned", "wider", responses=1, prefix=ALIGNED),
    Method(
        "unlikelihood", "unlikelihood", "segments", "wider", {"score_threshold": 0.5}, responses=1
    ),
    Method("awr", "awr", "segments", "wider", responses=1),
    Method("span_unlikelihood", "span_unlikelihood", "spans", "wider", responses=1),
    Method("span_ascent", "span_ascent", "spans", "wider", responses=1),
    Method("dpkd", "dpkd", "distill", "wider", words=TEACHER),
    Method("dckd", "dckd", "distill", "wider", words=TEACHER),
    Method(
        "adpa",
        "adpa",
        "distill",
        "wider",
        words=(*TEACHER, "--second_teacher_model_name_or_path", "{seed}/teacher-before"),
    ),
    Method("clm", "dpo", "pairs", "wider", BETA, adapter=("--adapter", "clm")),
    Method("aligner", "dpo", "pairs", "wider", BETA, adapter=("--adapter", "aligner")),
    Method(
        "panacea",
        "panacea",
        "aspects",
        "wider",
        BETA,
        adapter=("--adapter", "panacea", "--adapter_kwargs", '{"r": 16}'),
        responses=4,
    ),
    # Without training.
    Method("plain", "", "", "free"),
    Method(
        "contrastive",
        "",
        "",
        "free",
        words=("--contrast", "contrastive", "--amateur", "{own}/amateur"),
        helper="amateur",
    ),
    Method(
        "obrien_lewis",
        "",
        "",
        "free",
        words=("--contrast", "obrien_lewis", "--amateur", "{own}/amateur"),
        helper="amateur",
    ),
    Method(
        "adversarial",
        "",
        "",
        "free",
        words=("--contrast", "adversarial", "--soft-prompts", "{own}/soft_prompts"),
        helper="soft_prompts",
    ),
)
"""In the order in which they are run and shown."""

PARTS = ("main", "claims", "wider", "free")


def chosen(names: Sequence[str]) -> list[Method]:
    """The methods that are named, singly or by part, in their own order.

    Raises:
        UserError: There is no such method.
    """
    known = {method.name for method in METHODS}
    for name in names:
        if name not in known and name not in PARTS:
            raise unknown("method", name, [*PARTS, *known])
    return [method for method in METHODS if method.name in names or method.part in names]
