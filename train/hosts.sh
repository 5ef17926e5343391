#!/bin/sh
# One training run on several hosts: plain ones, that ssh reaches without a password and that see this folder at the same path.
#
#   HOSTS="node1 node2" GPUS=8 train/hosts.sh imagereward --on sd2 --seed 0
#   DRY_RUN=1 HOSTS=... prints what would be run on each.
#
# T2I_WEIGHTS_DIR, T2I_PROMPTS_DIR, HF_HOME and HF_HUB_OFFLINE go along; what else a host needs, its shell's profile says. HF_TOKEN does not, as everybody
# on a host can read a command line: `hf auth login` once on each, or once where HF_HOME is a folder that they share.
# Ctrl-C, or the end of this terminal, saves on all of them, and the same command resumes. PORT (29500) and the next one must be free on the first.
set -eu
cd "$(dirname "$0")/.."
set -f
# shellcheck disable=SC2086  # words, split at any blank
[ -n "$(echo ${HOSTS:-})" ] || { echo 'HOSTS="..." must name the hosts, separated by spaces' >&2; exit 2; }
[ "$#" -gt 0 ] || { echo 'give the arguments of `python -m train`, such as: imagereward --on sd2' >&2; exit 2; }
case "${GPUS:-1}" in '' | *[!0-9]* | 0*) echo "GPUS=\"$GPUS\" must be the number of GPUs of each host" >&2; exit 2 ;; esac

quote() { for word; do printf " '%s'" "$(printf %s "$word" | sed "s/'/'\\\\''/g")"; done; }

case "${PORT:-29500}" in *[!0-9]* | 0*) echo "PORT=\"$PORT\" must be a port number" >&2; exit 2 ;; esac
first= count=0 number=0
for host in $HOSTS; do
  first=${first:-${host#*@}} # ssh may need a user, an address has none
  count=$((count + 1))
done
arguments=$(quote "$@")
along=
[ -z "${HF_TOKEN:-}" ] || echo 'note: HF_TOKEN stays here, the hosts use their own login (`hf auth login`)' >&2
for name in T2I_WEIGHTS_DIR T2I_PROMPTS_DIR HF_HOME HF_HUB_OFFLINE; do
  eval "value=\${$name:-}"
  value=$(quote "$value")
  [ "$value" = " ''" ] || along="$along $name=${value# }"
done
for host in $HOSTS; do
  command="cd $(quote "$PWD") && exec env$along .venv/bin/python -m train$arguments --processes ${GPUS:-1} --hosts $count --host $number --first $first:${PORT:-29500}"
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%s\n' "$host: $command" # echo would change a backslash
  else
    # -tt: when this ssh goes, the terminal there closes, and training saves
    ssh -tt "$host" "$command" </dev/null &
    workers="${workers:-} $!"
  fi
  number=$((number + 1))
done
trap 'kill -TERM ${workers:-} 2>/dev/null || true' INT TERM HUP
worst=0
for worker in ${workers:-}; do
  code=0
  wait "$worker" || code=$?
  # interrupted by a signal of ours, the hosts are still saving
  [ "$code" -lt 128 ] || { again=0; wait "$worker" 2>/dev/null || again=$?; [ "$again" = 127 ] || code=$again; }
  [ "$worst" -ne 0 ] || worst=$code
done
exit "$worst"
