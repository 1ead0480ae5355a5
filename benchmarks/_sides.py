"""The two trainers as they are measured: TRL's `DPOTrainer` and `GroupTrainer`, step by step.

Both run their own `train()`, each in a greenlet that is let go for one optimiser step at a time. So
a step is all that the trainer does for it: reading and collating rows, reference, forward,
backward, clipping, optimiser, callbacks. Threads would not do: each that computes has a team of
OpenMP's of its own, and where teams are more than there are cores they sleep between operations,
which makes a step up to a third slower than in training.

The learning rate is 0: the optimiser does its work, and the weights stay, so that losses and
gradients of a whole epoch can be compared between sides that walk it in different orders.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from greenlet import getcurrent, greenlet
from peft import LoraConfig
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import pad

from alignment.core.groups import Group
from alignment.core.packing import TokenGroup
from alignment.data import GroupDataset
from alignment.objectives.apo import APO
from alignment.objectives.base import GroupTerms
from alignment.objectives.nca import NCA
from alignment.trainers.base import GroupTrainer
from alignment.trainers.config import GroupConfig
from benchmarks._data import MAX_LENGTH, as_dataset
from tests.tiny import BOS_ID, EOS_ID, PAD_ID, tiny_tokenizer


@dataclass(frozen=True)
class Side:
    """One way to train on the same groups.

    Attributes:
        trl: TRL's trainer, or this project's.
        by_length: Batches of rows of similar length, as sorting all data makes them.
        stored: The reference is computed before training.
    """

    trl: bool
    by_length: bool = False
    stored: bool = False


SIDES = {
    "trl": Side(trl=True),
    "trl, sorted": Side(trl=True, by_length=True),
    "trl, stored reference": Side(trl=True, stored=True),
    "ours": Side(trl=False),
    "ours, stored reference": Side(trl=False, stored=True),
}


@dataclass(frozen=True)
class Shape:
    """Model and precision.

    Attributes:
        vocabulary: Rows of embedding and head, which are not tied.
        hidden: Width.
        intermediate: Width of the MLP.
        layers: Number of layers.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        rank: Of the adapter, on all linear layers but the head.
        device: `cpu` or `cuda`.
        dtype: Of the base model; the adapter is float32 as peft makes it.
        checkpointing: Recomputes activations in the backward pass, on all sides.
    """

    vocabulary: int = 32_000
    hidden: int = 192
    intermediate: int = 512
    layers: int = 6
    heads: int = 6
    kv_heads: int = 3
    rank: int = 16
    device: str = "cpu"
    dtype: str = "float32"
    checkpointing: bool = False

    def config(self) -> LlamaConfig:
        """The model's configuration."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=4 * MAX_LENGTH,
            pad_token_id=PAD_ID,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
            dtype=self.dtype,
        )

    def model(self) -> PreTrainedModel:
        """The model with random weights."""
        torch.manual_seed(0)
        with torch.device(self.device):
            model = LlamaForCausalLM._from_config(
                self.config(), attn_implementation="sdpa", dtype=getattr(torch, self.dtype)
            )
        return model.requires_grad_(False)


def sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules around the same tensors, to take an adapter of its own."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def trainer_for(  # noqa: PLR0913 - everything a run depends on
    side: Side,
    shape: Shape,
    model: PreTrainedModel,
    batches: Sequence[Sequence[TokenGroup]],
    folder: Path,
    steps: int,
) -> Any:
    """A trainer of a fresh adapter on groups of ids.

    Args:
        side: Which.
        shape: Precision and adapter.
        model: The base model; another side may share its tensors.
        batches: The groups of an epoch in batches of similar length, all of one size.
        folder: For outputs and the stored reference.
        steps: Optimiser steps that will be run at most.
    """
    groups = [group for batch in batches for group in batch]
    size = len(batches[0])
    if not side.trl:
        rows = as_dataset(groups)
        return our_trainer(shape, model, rows, folder, size, steps, stored=side.stored)
    order = "sequential" if side.by_length else "random"
    args = DPOConfig(
        **_settings(shape, folder, size, steps),
        precompute_ref_log_probs=side.stored,
        loss_type="apo_zero",
        train_sampling_strategy=order,
    )
    pairs = groups[0].reward is None
    kind = PaddedPairs if pairs else PaddedGroups
    return kind(
        sharing_weights(model),
        args=args,
        train_dataset=Dataset.from_list([kind.row(group) for group in groups]),
        data_collator=None if pairs else collate_padded_groups,
        processing_class=tiny_tokenizer(),
        peft_config=_adapter(shape),
    )


def our_trainer(  # noqa: PLR0913 - everything a run depends on
    shape: Shape,
    model: PreTrainedModel,
    groups: GroupDataset,
    folder: Path,
    batch: int,
    steps: int,
    *,
    stored: bool = False,
) -> GroupTrainer:
    """This project's trainer: APO-zero on pairs, NCA on groups of any other size."""
    args = GroupConfig(
        **_settings(shape, folder, batch, steps),
        precompute_ref_log_probs=stored,
        ref_cache_dir=str(folder / "reference"),
    )
    return GroupTrainer(
        sharing_weights(model),
        args,
        groups,
        processing_class=tiny_tokenizer(),
        peft_config=_adapter(shape),
        objective=APO() if groups[0].reward is None else GROUP_LOSS,
    )


def _settings(shape: Shape, folder: Path, batch: int, steps: int) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "learning_rate": 0.0,
        "lr_scheduler_type": "constant",
        # Norms are taken and nothing is cut, so that gradients can be compared.
        "max_grad_norm": 1e9,
        "bf16": shape.dtype == "bfloat16",
        "use_cpu": shape.device == "cpu",
        "max_length": MAX_LENGTH,
        "gradient_checkpointing": shape.checkpointing,
        "dataloader_pin_memory": shape.device == "cuda",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _adapter(shape: Shape) -> LoraConfig:
    return LoraConfig(
        r=shape.rank,
        lora_alpha=2 * shape.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


@dataclass(frozen=True)
class AnyNumber(NCA):
    """NCA that also takes one response, which teaches it nothing and costs as much."""

    def misfit(self, group: Group) -> None:
        """No row."""


GROUP_LOSS = AnyNumber(beta=0.1, tau=0.3)
"""For any number of responses but two; at this temperature every one of them counts."""


class PaddedPairs(DPOTrainer):
    """TRL's trainer on rows that are token ids already, so that both sides have the same ones."""

    @staticmethod
    def row(group: TokenGroup) -> dict[str, Any]:
        """A pair in the columns that TRL's own preparation makes."""
        sides = dict(zip(group.role, group.responses, strict=True))
        return {
            "prompt_ids": list(group.prefix),
            "chosen_ids": list(sides[1]),
            "rejected_ids": list(sides[-1]),
        }

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


class PaddedGroups(DPOTrainer):
    """What TRL's trainer would be for K responses, which it does not offer.

    Its forward on one padded row per response, its fused head with the outputs it asks for, its
    reference pass, sampler and loop; the summed log-probs then go to this project's NCA. Only its
    metrics are left out.
    """

    @staticmethod
    def row(group: TokenGroup) -> dict[str, Any]:
        """A group with its rewards."""
        return {
            "prompt_ids": list(group.prefix),
            "response_ids": [list(response) for response in group.responses],
            "rewards": group.reward,
        }

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt_ids", "response_ids", "rewards", "ref_logps"]

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """The reference of every row, in batches like TRL's own."""
        found: list[list[float]] = []
        for start in range(0, len(dataset), batch_size):
            rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
            inputs = self._prepare_inputs(self.data_collator(rows))
            sizes = [len(row["response_ids"]) for row in rows]
            found += [part.tolist() for part in self._reference(inputs).cpu().split(sizes)]
        return dataset.add_column("ref_logps", found)

    def _reference(self, inputs: Mapping[str, Tensor]) -> Tensor:
        names = ("input_ids", "attention_mask", "completion_mask")
        # It takes the first half of the rows for the chosen ones; together they are all rows.
        halves = self.compute_ref_log_probs(self.model, {name: inputs[name] for name in names})
        return torch.cat(halves)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Tensor:
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        names = ("input_ids", "attention_mask")
        forward = {name: inputs[name] for name in names}
        output = model(**forward, labels=labels, use_cache=False, fused_lm_head=True)
        logps = output.log_probs.sum(1)
        ref_logps = inputs["ref_logps"] if "ref_logps" in inputs else self._reference(inputs)
        rows = torch.arange(len(logps), device=logps.device)
        terms = GroupTerms(
            logps=logps,
            ref_logps=ref_logps,
            response_of_token=rows,
            group_of_response=inputs["group_of_response"],
            role=torch.zeros_like(rows),
            reward=inputs["rewards"],
        )
        return GROUP_LOSS(terms).loss().float()


def collate_padded_groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """One padded row per response, as TRL's collator makes of pairs."""
    ids, masks = [], []
    for row in rows:
        prompt = row["prompt_ids"]
        for response in row["response_ids"]:
            ids.append(torch.tensor(prompt + response))
            masks.append(torch.tensor([0] * len(prompt) + [1] * len(response)))
    sizes = torch.tensor([len(row["response_ids"]) for row in rows])
    batch = {
        "input_ids": pad(ids, padding_value=PAD_ID),
        "attention_mask": pad([torch.ones_like(part) for part in ids], padding_value=0),
        "completion_mask": pad(masks, padding_value=0),
        "group_of_response": torch.repeat_interleave(sizes),
        "rewards": torch.tensor([reward for row in rows for reward in row["rewards"]]),
    }
    if "ref_logps" in rows[0]:
        batch["ref_logps"] = torch.tensor([value for row in rows for value in row["ref_logps"]])
    return batch


@dataclass
class Tally:
    """What some steps computed.

    Attributes:
        loss: Sum over the steps of the first epoch.
        gradient: Sum over the steps of the first epoch, of all trainable weights by name.
        positions: Positions that went through the policy with gradient, padding included.
        others: Positions that went through the model without.
    """

    loss: float = 0.0
    gradient: dict[str, Tensor] = field(default_factory=dict)
    positions: int = 0
    others: int = 0


class Turns(TrainerCallback, AbstractContextManager["Turns"]):
    """A trainer that runs one optimiser step whenever it is its turn.

    Before the first one, and after what the trainer does before training, the adapter is drawn
    anew, so that both of its halves get gradients. Leaving the context ends the training.

    Args:
        trainer: Either side's.
        gradients: Keeps their sum over the first epoch in float64.
    """

    def __init__(self, trainer: Any, *, gradients: bool = True) -> None:
        self.trainer, self.tally = trainer, Tally()
        self._gradients = gradients
        self._training, self._over = greenlet(trainer.train), False
        self._cuda = trainer.args.device.type == "cuda"
        embedding: nn.Module = trainer.model.get_input_embeddings()
        embedding.register_forward_hook(self._count)
        self._step = trainer.training_step
        trainer.training_step = self._training_step
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)

    def step(self) -> float:
        """Seconds of one optimiser step; of the first one without what precedes it."""
        self._started = time.perf_counter()
        self._training.switch()
        return time.perf_counter() - self._started

    def __exit__(self, *error: object) -> None:
        self._over = True
        if self._training:
            self._training.switch()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draws the adapter, the same one on every side, and starts the clock."""
        if state.global_step == 0:
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for _, weight in self._trained():
                    weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
            # Checks before training and stored references are no part of a step.
            self.tally = Tally()
            self._started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds up the gradients of the first epoch."""
        total = self.tally.gradient
        if self._gradients and state.epoch < 1:
            for name, weight in self._trained():
                grad = weight.grad.detach().double().cpu()
                total[name] = total[name] + grad if name in total else grad

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Waits for the next turn."""
        if self._cuda:
            torch.cuda.synchronize()
        waiting = getcurrent().parent
        assert waiting is not None
        waiting.switch()
        control.should_training_stop = self._over

    def _trained(self) -> list[tuple[str, Any]]:
        named = self.trainer.model.named_parameters()
        return sorted((name, weight) for name, weight in named if weight.requires_grad)

    def _training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = self._step(*args, **kwargs)
        if self.trainer.state.epoch < 1:
            self.tally.loss += float(loss)
        return loss

    def _count(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if torch.is_grad_enabled():
            self.tally.positions += inputs[0].numel()
        else:
            self.tally.others += inputs[0].numel()


def difference(found: Tally, truth: Tally) -> float:
    """How far a gradient is from another, over the norm of that, all weights together.

    Raises:
        ValueError: The sides train different weights, or gradients were not added up.
    """
    if not truth.gradient or found.gradient.keys() != truth.gradient.keys():
        raise ValueError("the sides train different weights")
    apart = sum((found.gradient[n] - g).square().sum() for n, g in truth.gradient.items())
    whole = sum(gradient.square().sum() for gradient in truth.gradient.values())
    return float((apart / whole) ** 0.5)
