#!/bin/bash
# One training on several nodes: sbatch deploy/slurm.sh --data /shared/shop --model resnet50
# Only starts torchrun, once a node, and says where runs are tracked. Data, cache and the folder it
# is started from are to be on a disk that all nodes share. See README.md.
#SBATCH --job-name=shopee-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
# Torchrun is told 90 s before the time is up, and passes it on: time for a checkpoint. Without B:
# it is srun's tasks that are told, and not this script.
#SBATCH --signal=TERM@90
# After a node has failed, or another job went first, Slurm starts this script again.
#SBATCH --requeue
set -euo pipefail

: "${MLFLOW_TRACKING_URI:?set it to the address of the tracking server}"
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${nodes%%$'\n'*}
# A free port of this node, which is the first: one that no other job uses, and that does not follow
# from the job's number. Whoever reaches it is let in; README.md says what closes it to others.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
# Else a node that joins again waits for an address that the first torchrun tells only once.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# Since Slurm 22.05 srun does not take over --cpus-per-task. The first torchrun that has stopped
# must not take the others away while they write a checkpoint; they notice by themselves.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 \
  torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --max-restarts=2 \
  --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$first:$port" \
  -m shopee_mlflow train "$@"
