#!/usr/bin/env bash
# A run on several machines under Slurm: one launcher per machine, one process per GPU.
#
#   sbatch --nodes 2 recipes/accelerate/slurm.sh --config recipes/apo/smoke.yaml --key value
#
# LAUNCHER names another file beside (multi_node by default). A requeued job goes on from its latest
# checkpoint. Environment, account and partition are those of the submitting shell and of sbatch.
#SBATCH --job-name alignment
#SBATCH --nodes 2
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 64
#SBATCH --time 24:00:00
#SBATCH --requeue
#SBATCH --signal SIGTERM@120
set -euo pipefail

main=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export LAUNCHER="${LAUNCHER:-multi_node}" MAIN_ADDRESS="$main"
export MAIN_PORT="$((20000 + SLURM_JOB_ID % 20000))"

# Each machine learns its own rank from Slurm, so the line is read there.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c 'exec alignment train --launcher "$LAUNCHER" \
  --nodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" \
  --main_address "$MAIN_ADDRESS" --main_port "$MAIN_PORT" \
  --resume_from_checkpoint latest "$@"' alignment "$@"
