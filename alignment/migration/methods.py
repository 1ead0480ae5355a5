"""Which objective a foreign loss is here, with its hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alignment.cli import UserError
from alignment.migration.draft import Draft


@dataclass(frozen=True)
class Method:
    """An objective as a recipe names it.

    Attributes:
        objective: Its name.
        kwargs: Its hyper-parameters.
        remark: Where it is not the same in every respect.
    """

    objective: str
    kwargs: Mapping[str, Any]
    remark: str = ""


def choose_trainer(keys: Mapping[str, Any]) -> str:
    """The trainer that a configuration is for, by keys and losses that others lack.

    Returns:
        A key of `METHODS`; `dpo` where nothing speaks for another.
    """
    losses = keys.get("loss_type")
    loss = str(losses[0] if isinstance(losses, list) and losses else losses)
    if "gamma_beta_ratio" in keys or "sft_weight" in keys:
        return "simpo"
    if loss in _DISTILLATION:
        return "distillm"
    if {"cpo_alpha", "simpo_gamma"} & set(keys) or loss in ("simpo", "alphapo"):
        return "cpo"
    if {"desirable_weight", "undesirable_weight"} & set(keys) or loss in _KTO:
        return "kto"
    if set(_SFT) & set(keys) and "beta" not in keys:
        return "sft"
    return "dpo"


def dpo(draft: Draft) -> Method:
    """TRL's `DPOTrainer`, and alignment-handbook's use of it."""
    loss = _single_loss(draft, "sigmoid")
    if loss not in _DPO:
        raise _no_objective("dpo", loss, _DPO)
    objective, kwargs, remark = _DPO[loss]
    if "beta" in draft.left or objective != "sft":
        kwargs = {"beta": draft.take_number("beta", 0.1), **kwargs}
    if objective == "sft":
        kwargs = {}
    return Method(objective, kwargs, remark)


def cpo(draft: Draft) -> Method:
    """TRL's `CPOTrainer` and that of CPO_SIMPO."""
    loss = _single_loss(draft, "sigmoid")
    alpha = draft.take_number("cpo_alpha", 1.0)
    remark = ""
    if loss == "alphapo":
        loss, alpha = "simpo", 0.0
        remark = "`loss_type: alphapo` there is `simpo` with `cpo_alpha: 0`."
    if loss not in ("sigmoid", "hinge", "ipo", "simpo"):
        raise _no_objective("cpo", loss, ("sigmoid", "hinge", "ipo", "simpo", "alphapo"))
    kwargs = {
        "loss_type": loss,
        "beta": draft.take_number("beta", 0.1),
        "cpo_alpha": alpha,
        "simpo_gamma": draft.take_number("simpo_gamma", 0.5),
        "label_smoothing": draft.take_number("label_smoothing", 0.0),
        "alpha": draft.take_number("alpha", 0.0),
    }
    if loss == "simpo" and alpha == 1.0:
        remark = (
            "SimPO with the likelihood of the chosen side at weight 1, CPO's default, which the "
            "configuration leaves as it is; plain SimPO is `cpo_alpha: 0`."
        )
    unused = () if loss == "simpo" else ("simpo_gamma",)
    return Method("cpo", {k: v for k, v in kwargs.items() if k not in unused}, remark)


def simpo(draft: Draft) -> Method:
    """The SimPO project's trainer, which states the margin as a share of beta."""
    loss = _single_loss(draft, "sigmoid")
    if loss != "sigmoid":
        raise _no_objective("simpo", loss, ("sigmoid",))
    beta, ratio = draft.take_number("beta", 2.0), draft.take_number("gamma_beta_ratio", 0.25)
    gamma = round(beta * ratio, 12)
    weight, smoothing = (
        draft.take_number("sft_weight", 0.0),
        draft.take_number("label_smoothing", 0.0),
    )
    remark = f"gamma is beta x gamma_beta_ratio: {beta} x {ratio} = {gamma}."
    if not weight and not smoothing:
        return Method("simpo", {"beta": beta, "gamma": gamma}, remark)
    kwargs = {"loss_type": "simpo", "beta": beta, "simpo_gamma": gamma, "cpo_alpha": weight}
    remark += " With `sft_weight` or `label_smoothing` SimPO is a form of `cpo` here."
    return Method("cpo", {**kwargs, "label_smoothing": smoothing}, remark)


def kto(draft: Draft) -> Method:
    """TRL's `KTOTrainer`, of whose losses one is here."""
    loss = _single_loss(draft, "kto")
    if loss != "apo_zero_unpaired":
        raise _no_objective("kto", loss, ("apo_zero_unpaired",))
    kwargs = {
        "form": "unpaired",
        "beta": draft.take_number("beta", 0.1),
        "desirable_weight": draft.take_number("desirable_weight", 1.0),
        "undesirable_weight": draft.take_number("undesirable_weight", 1.0),
    }
    return Method("apo", kwargs)


def sft(draft: Draft) -> Method:
    """TRL's `SFTTrainer`: a likelihood of responses."""
    loss = _single_loss(draft, "nll")
    if loss not in ("nll", "chunked_nll"):
        raise _no_objective("sft", loss, ("nll",))
    return Method(
        "sft",
        {},
        "Only the response is trained on, of `messages` the last turn: TRL's "
        "`completion_only_loss`. Rows of one `text` have no response and are rejected.",
    )


def distillm(draft: Draft) -> Method:
    """The trainer of distillm-2, which calls the teacher a reference."""
    loss = _single_loss(draft, "distillm_v2")
    if loss not in _DISTILLATION:
        raise _no_objective("distillm", loss, _DISTILLATION)
    if "ref_model_name_or_path" in draft.left:
        draft.put(
            "teacher_model_name_or_path",
            draft.take("ref_model_name_or_path"),
            "`ref_model_name_or_path` there, which is the teacher.",
        )
    objective, kwargs, remark = _DISTILLATION[loss]
    if objective == "dpkd":
        kwargs = {"beta": draft.take_number("beta", 0.1)}
    return Method(objective, kwargs, remark)


METHODS: dict[str, Callable[[Draft], Method]] = {
    "dpo": dpo,
    "cpo": cpo,
    "simpo": simpo,
    "kto": kto,
    "sft": sft,
    "distillm": distillm,
}
"""Trainers whose configurations are understood."""

_Known = Mapping[str, tuple[str, dict[str, Any], str]]

_DPO: _Known = {
    "sigmoid": ("dpo", {}, ""),
    "apo_zero": ("apo", {}, ""),
    "apo_down": ("apo", {"variant": "down"}, ""),
    "nca_pair": ("nca", {"form": "pair"}, ""),
    "bco_pair": (
        "nca",
        {"form": "pair", "biased": True},
        "As in TRL 1.16; earlier releases subtract a moving baseline from the rewards.",
    ),
    "sft": ("sft", {}, ""),
}
_KTO = ("kto", "apo_zero_unpaired")
_SFT = (
    *("max_seq_length", "packing", "completion_only_loss", "assistant_only_loss"),
    "dataset_text_field",
)
_DISTILLATION: _Known = {
    "distillm_v2": (
        "distillm2",
        {"form": "release", "skew": "fixed", "curriculum": "off"},
        "What the released code computes: both of its schedules are switched off. The paper's are "
        "this objective's defaults.",
    ),
    "distillm_v1": ("distillm", {}, ""),
    "gkd": ("gkd", {"beta": 0.9}, ""),
    "kd": ("kd", {}, ""),
    "speculative_kd": ("kd", {}, ""),
    "seqkd": ("seqkd", {}, ""),
    "dpkd": ("dpkd", {}, ""),
}


def _single_loss(draft: Draft, default: str) -> str:
    """The one loss that a configuration names.

    Raises:
        UserError: It adds several up.
    """
    losses = draft.take("loss_type", default)
    losses = losses if isinstance(losses, list) else [losses]
    weights = draft.take("loss_weights")
    if not losses:
        raise UserError("`loss_type` is an empty list; name a loss, or leave it out")
    if len(losses) > 1:
        raise UserError(
            f"`loss_type` adds up {', '.join(map(str, losses))}, and no objective here is that "
            "sum: name one by `--objective`, or write it (README, Write your own objective)"
        )
    if weights not in (None, [1], [1.0]):
        raise UserError(f"`loss_weights` is {weights}: scale `learning_rate` and leave it out")
    return str(losses[0])


def _no_objective(trainer: str, loss: str, known: Any) -> UserError:
    return UserError(
        f"`loss_type: {loss}` of the {trainer} trainer has no counterpart here (of that trainer: "
        f"{', '.join(known)}); `--objective NAME` takes over all else with an objective of your "
        "choice"
    )
