#!/bin/bash
# One training on several nodes: sbatch deploy/slurm.sh --data /shared/shop --model resnet50
# Starts torchrun once per node. Data, cache and the current folder must be on a disk that all nodes
# share. See README.md.
#SBATCH --job-name=shopee-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
# Send SIGTERM 90 s before the time limit, so that there is time for a checkpoint; torchrun forwards
# it. Without the prefix B:, srun's tasks receive it, not this script.
#SBATCH --signal=TERM@90
# Slurm starts this script again after a node has failed or the job was preempted.
#SBATCH --requeue
set -euo pipefail

: "${MLFLOW_TRACKING_URI:?set it to the address of the tracking server}"
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${nodes%%$'\n'*}
# A free port of the first node, on which this script runs. It is not derived from the job's id,
# which would make it easy to guess: anyone who can connect to it can join. See README.md on how to
# close it to others.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
# Without this, a restarted node waits for an address that the first torchrun publishes only once.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# Since Slurm 22.05, srun does not inherit --cpus-per-task. When one torchrun has stopped, srun must
# not kill the others while they write a checkpoint; they stop by themselves.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 \
  torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --max-restarts=2 \
  --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$first:$port" \
  -m shopee_mlflow train "$@"
