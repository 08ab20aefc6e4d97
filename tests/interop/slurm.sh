#!/usr/bin/env bash
# Conversions and comparisons as array jobs of a real Slurm on this machine, with the script that `quantize job emit slurm` prints: the
# bytes, or figures, must be those of one run, also when tasks are cancelled, killed and queued again meanwhile.
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

submitted() { # JOB TASKS HARM: runs it to its end, with what is done to its tasks meanwhile
  local job=$1 tasks=$2 harm=$3
  "$Q" job emit slurm "$job" --cpus 1 --memory 1 >"$WORK/submit.sh"
  sh "$WORK/submit.sh" >"$WORK/ids"
  local array; array=$(sed -n '1s/^.*: //p' "$WORK/ids") # of the first phase
  case $harm in
    quiet) ;;
    requeue) # Tasks end in the middle, and begin anew.
      for i in 1 2 3 4 5 6; do
        sleep 0.$((RANDOM % 5)); scontrol requeue "${array}_$((RANDOM % tasks))" 2>/dev/null || true
      done ;;
    kill) # The processes themselves die; what is missing is done by hand afterwards.
      for i in 1 2 3 4 5 6; do
        sleep 0.$((RANDOM % 5))
        pid=$(pgrep -f "^$Q job run $job " | shuf -n 1) && kill -KILL "$pid" 2>/dev/null || true
      done ;;
  esac
  wait_for_all
  if [ "$harm" = kill ]; then
    "$Q" job run "$job" --quiet
    "$Q" job assemble "$job" --quiet --force >/dev/null 2>&1
  fi
}

check() { # TYPE TASKS HARM [FLAGS...]
  local type=$1 tasks=$2 harm=$3; shift 3
  local label; label=$type-$(printf %s "$*" | tr -dc a-z0-9-)
  local job=$WORK/job-$label-$tasks-$harm one=$WORK/one-$label
  [ -d "$one" ] || { mkdir "$one"; "$Q" --to "$type" "$MODEL" "$@" -o "$one/" --quiet 2>/dev/null >/dev/null; }
  "$Q" job plan --to "$type" "$MODEL" "$@" -o "$job" --tasks "$tasks" --quiet >/dev/null
  submitted "$job" "$tasks" "$harm"
  local made
  for made in "$one"/*; do
    diff -r "$made" "$job/$(basename "$made")" || { echo "$type: differs"; cat "$job"/*.log; exit 1; }
  done
  echo "$type $* in $tasks tasks, $harm: same bytes"
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

compare() { # TASKS HARM
  local job=$WORK/compare-$1-$2
  "$Q" job compare "${COMPARED[@]}" --report "$job.json" -o "$job" --tasks "$1" --quiet >/dev/null
  submitted "$job" "$1" "$2"
  python3 - "$WORK/one.json" "$job.json" <<'CHECK'
import json, sys
one, made = ({k: v for k, v in json.load(open(name)).items() if k not in ("created", "command", "environment")} for name in sys.argv[1:])
sys.exit(one != made)
CHECK
  echo "comparison in $1 tasks, $2: same figures"
}

{ cat "$MODEL/config.json"; head -c 30000 "$MODEL/tokenizer.json"; } >"$WORK/text.txt"
"$Q" --to q4_0,q8_0 "$MODEL" -o "$WORK/" --quiet --no-check >/dev/null 2>&1
COMPARED=("$MODEL" "$WORK/$NAME-Q4_0.gguf" "$WORK/$NAME-Q8_0.gguf" --text "$WORK/text.txt" --ctx 128)
"$Q" compare "${COMPARED[@]}" --report "$WORK/one.json" --quiet >/dev/null
for harm in quiet requeue kill; do compare 8 $harm; done
