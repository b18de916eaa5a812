#!/usr/bin/env bash
# Fine-tuning on two nodes of SLURM: torchrun on each, with a process for each GPU.
#
#   sbatch examples/cluster/finetune_slurm.sh vgg16.safetensors /shared/pets /shared/pets.safetensors
#
# Weights, pictures and the output lie where both nodes see them. --resume goes on from the last finished epoch: after a
# killed process, which torchrun starts again, and when SLURM requeues the job or it is submitted again.
#SBATCH --job-name=finetune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

weights=${1:?"usage: sbatch finetune_slurm.sh WEIGHTS DATA OUTPUT"}
data=${2:?"usage: sbatch finetune_slurm.sh WEIGHTS DATA OUTPUT"}
output=${3:?"usage: sbatch finetune_slurm.sh WEIGHTS DATA OUTPUT"}

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
srun torchrun --no-python --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-backend c10d --rdzv-endpoint "$head:${PORT:-29400}" --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-conf join_timeout=300 --max-restarts 3 \
  convnets-torch finetune "$weights" "$data" --output "$output" --resume
