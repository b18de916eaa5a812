#!/usr/bin/env bash
# A job on SLURM, without an engine: every task of the array takes its share of the shards, and then what is missing.
#
#   convnets-torch batch plan /shared/job s3://bucket/photos --weights /shared/vgg16.safetensors --outputs classes,vector
#   sbatch examples/cluster/slurm_array.sh /shared/job
#
# Submit it again, with any number of tasks, if some were killed or ran out of time: only missing shards are computed.
#SBATCH --job-name=pictures
#SBATCH --array=0-15
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

job=${1:?"usage: sbatch slurm_array.sh JOB"}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
convnets-torch batch run "$job" --executor static --workers "${SLURM_CPUS_PER_TASK:-1}"
