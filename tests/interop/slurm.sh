#!/usr/bin/env bash
# Conversions as array jobs of a real Slurm on this machine, with the script that `quantize job emit slurm` prints: the bytes must
# be those of one run, also when tasks are cancelled, killed and queued again meanwhile.
#
#   tests/interop/slurm.sh QUANTIZE MODEL SLURM_LOCAL
#
# SLURM_LOCAL: a script that starts and stops a local Slurm (`start DIR`, `stop DIR`, `DIR/env`), as root.
set -euo pipefail
[ $# = 3 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
Q=$(realpath "$1") MODEL=$(realpath "$2") LOCAL=$(realpath "$3")
WORK=$(mktemp -d /tmp/quantize-slurm.XXXXXX)
trap 'bash "$LOCAL" stop "$WORK/s" || true; rm -rf "$WORK"' EXIT
bash "$LOCAL" start "$WORK/s"
. "$WORK/s/env"
export QUANTIZE=$Q
NAME=$(basename "$MODEL")

wait_for_all() { while [ -n "$(squeue -h)" ]; do sleep 0.3; done; }

check() { # TYPE TASKS HARM [FLAGS...]
  local type=$1 tasks=$2 harm=$3; shift 3
  local label; label=$type-$(printf %s "$*" | tr -dc a-z0-9-)
  local job=$WORK/job-$label-$tasks-$harm one=$WORK/one-$label
  [ -d "$one" ] || { mkdir "$one"; "$Q" --to "$type" "$MODEL" "$@" -o "$one/" --quiet 2>/dev/null >/dev/null; }
  "$Q" job plan --to "$type" "$MODEL" "$@" -o "$job" --tasks "$tasks" --quiet >/dev/null
  set -- "$type" "$tasks" "$harm" "$*"
  "$Q" job emit slurm "$job" --cpus 1 --memory 1 >"$WORK/submit.sh"
  sh "$WORK/submit.sh" >"$WORK/ids"
  local array; array=$(sed -n '1s/^.*: //p' "$WORK/ids") # of the first phase
  case $3 in
    quiet) ;;
    requeue) # Tasks end in the middle, and begin anew.
      for i in 1 2 3 4 5 6; do
        sleep 0.$((RANDOM % 5)); scontrol requeue "${array}_$((RANDOM % $2))" 2>/dev/null || true
      done ;;
    kill) # The processes themselves die; what is missing is done by hand afterwards.
      for i in 1 2 3 4 5 6; do
        sleep 0.$((RANDOM % 5))
        pid=$(pgrep -f "^$Q job run $job " | shuf -n 1) && kill -KILL "$pid" 2>/dev/null || true
      done ;;
  esac
  wait_for_all
  if [ "$3" = kill ]; then
    "$Q" job run "$job" --quiet
    "$Q" job assemble "$job" --quiet --force >/dev/null 2>&1
  fi
  local made
  for made in "$one"/*; do
    diff -r "$made" "$job/$(basename "$made")" || { echo "$type: differs"; cat "$job"/*.log; exit 1; }
  done
  echo "$type $4 in $2 tasks, $3: same bytes"
}

for tasks in 2 16; do check q4_k_m "$tasks" quiet; done
check q4_k_m 16 requeue
check q4_k_m 16 kill
check fp8 8 quiet
DATA="--calibration default --calibration-tokens 8192"
for harm in quiet requeue kill; do
  # shellcheck disable=SC2086 # words
  check q4_k_m 6 $harm $DATA --rounding nearest
  # shellcheck disable=SC2086
  check q4_0 6 $harm $DATA
done
