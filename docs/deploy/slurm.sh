#!/bin/bash
#SBATCH --job-name=boxwright-fleet
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --requeue
# A Ray cluster of a Slurm job, and the fleet on it. Not run: adapt and try it on two nodes.
# OUT is on a file system that all nodes share; a job that is queued again goes on where it stopped.
set -euo pipefail

OUT=${OUT:-$SLURM_SUBMIT_DIR/found}
MODEL=${MODEL:-$SLURM_SUBMIT_DIR/yolo11n.plan}
INPUT=${INPUT:-$SLURM_SUBMIT_DIR/list.parquet}
PORT=6379

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')

srun --nodes=1 --ntasks=1 -w "$head" \
    ray start --head --node-ip-address="$address" --port="$PORT" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus=8 --include-dashboard=false --block &
sleep 15
if ((${#nodes[@]} > 1)); then
    others=$(IFS=,; echo "${nodes[*]:1}")
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) -w "$others" \
        ray start --address="$address:$PORT" \
        --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus=8 --block &
    sleep 15
fi

boxwright fleet predict "$MODEL" "$INPUT" --out "$OUT" \
    --engine ray --ray-address "$address:$PORT" --num-gpus 1 --num-cpus 8 --decoders 8 \
    --actors $((8 * ${#nodes[@]})) --batch 64 --shard-size 8192 --shared-out
