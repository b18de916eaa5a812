#!/usr/bin/env bash
# Fine-tuning on two machines without a scheduler. On each of them, with its number, 0 or 1:
#
#   FIRST=10.0.0.1 bash examples/cluster/finetune_two_hosts.sh NUMBER WEIGHTS DATA OUTPUT [OPTION...]
#
# FIRST is the address of machine 0. Machine 1 needs the same weights and pictures, and both must see the checkpoint: in
# the folder of OUTPUT, or with --checkpoint in another folder or a store, such as --checkpoint s3://bucket/run.
# GPUS is the number of processes on each machine. MINE is this machine's address, if its name does not lead to it.
set -euo pipefail

number=${1:?"usage: FIRST=ADDRESS finetune_two_hosts.sh NUMBER WEIGHTS DATA OUTPUT [OPTION...]"}
weights=${2:?"name the weights"}
data=${3:?"name the pictures"}
output=${4:?"name the output"}
shift 4

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec torchrun --no-python --nnodes 2 --nproc-per-node "${GPUS:-1}" \
  --rdzv-backend c10d --rdzv-endpoint "${FIRST:?"set FIRST to the address of machine 0"}:${PORT:-29400}" \
  --rdzv-id "${ID:-finetune}" --rdzv-conf "is_host=$((number == 0)),join_timeout=${JOIN:-300}" \
  ${MINE:+--local-addr "$MINE"} --max-restarts "${RESTARTS:-3}" \
  convnets-torch finetune "$weights" "$data" --output "$output" --resume "$@"
