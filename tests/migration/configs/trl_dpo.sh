#!/bin/bash
# Two steps, of which the second trains.
export WANDB_PROJECT=pairs
python prepare.py --output data

accelerate launch --config_file zero3.yaml --num_processes 4 trl/scripts/dpo.py \
  --model_name_or_path some-org/instruct --dataset_name some-org/pairs --loss_type nca_pair \
  --beta 0.05 --learning_rate=1e-6 --precompute_ref_log_probs --precompute_ref_batch_size 32 \
  --use_peft --lora_target_modules q_proj v_proj --per_device_train_batch_size 2 \
  --ld_alpha 0.5 --output_dir outputs/nca
