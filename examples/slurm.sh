#!/bin/bash
# A recipe on several machines under Slurm: sbatch examples/slurm.sh RECIPE [--set ENTRY=VALUE ...]
# The run's folder must be on a file system that all machines share. Submitted again, the run goes on.
#SBATCH --job-name=mobilemoe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
# Two minutes before its time is up the job is told; torchrun passes that on, and kills what has not saved 30 s later.
set -euo pipefail

first_machine=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Shards within a machine, a replica on each: the fast links carry the weights, the slow ones only gradients.
srun torchrun \
  --nnodes="$SLURM_NNODES" --nproc-per-node="$SLURM_GPUS_ON_NODE" \
  --rdzv-backend=c10d --rdzv-endpoint="$first_machine:29500" --rdzv-id="$SLURM_JOB_ID" \
  --local-ranks-filter=0 --no-python \
  mobilemoe train "$@" --set distributed.replicate="$SLURM_NNODES"
