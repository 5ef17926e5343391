#!/bin/bash
# One training run on the hosts of a SLURM job; submitted from the repository's folder, which all of them see:
#
#   sbatch --nodes=16 --gpus-per-node=8 --time=24:00:00 train/slurm.sh imagereward --on sd2 --seed 0
#
# Five minutes before its time is up, or when it is preempted, the job saves. It is then queued again and resumes; submitting it again does the same.
#SBATCH --job-name=train
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -eu
[ "$#" -gt 0 ] || { echo 'give the arguments of `python -m train`, such as: imagereward --on sd2' >&2; exit 2; }
: "${SLURM_JOB_NODELIST:?this is a job for sbatch}" "${SLURM_GPUS_ON_NODE:?give sbatch --gpus-per-node}"

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + 2 * (SLURM_JOB_ID % 10000))) # two ports a job: jobs that share a host do not meet
code=0
# the number of a host is known only there, hence the quotes
srun --kill-on-bad-exit=0 --wait=0 sh -c 'exec .venv/bin/python -m train "$@" --host "$SLURM_NODEID"' train \
  "$@" --processes "$SLURM_GPUS_ON_NODE" --hosts "$SLURM_JOB_NUM_NODES" --first "$first:$port" || code=$?
if [ "$code" -eq 143 ]; then # stopped by SIGTERM with its state saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
