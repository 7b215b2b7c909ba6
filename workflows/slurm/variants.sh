#!/bin/bash
# Score a VCF file by an array of Slurm jobs, then merge; a job that ran out of time continues when it is sent again:
#   sbatch --array=1-20 workflows/slurm/variants.sh default in.vcf.gz genome.mb scored.vcf.gz
#   sbatch --dependency=singleton --job-name megabase --wrap "megabase merge scored.vcf.gz.shard-*-of-20"
# Not tried on a cluster; the commands are tested without one.
#SBATCH --job-name=megabase
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail
if [ $# -lt 4 ]; then
  echo "usage: sbatch --array=1-N $0 MODEL VCF GENOME OUTPUT [options of megabase variants]" >&2
  exit 2
fi
model=$1 variants=$2 genome=$3 output=$4
shift 4
i=${SLURM_ARRAY_TASK_ID:?run with sbatch --array=1-N} n=${SLURM_ARRAY_TASK_MAX:?}
parts=$output.shard-$i-of-$n
if [ -e "$parts/command.json" ]; then
  echo "$parts is finished"
  exit 0
fi
resume=()
if [ -e "$parts/manifest.json" ]; then resume=(--resume); fi
exec megabase variants "$model" "$variants" "$genome" -o "$output" --shard "$i/$n" --workers 1 "${resume[@]}" "$@"
