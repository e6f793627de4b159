# shellcheck shell=bash
# Sourced by the batch scripts in this folder: prepares the environment, runs one job step, and requeues the job.
#
# Variables, set in the environment or with `sbatch --export=ALL,NAME=VALUE`:
#
#   REPOSITORY      the checkout, on a shared file system (default: the folder where sbatch was called)
#   BERT_PLD_VENV   the virtual environment (default: .venv in the checkout)
#   MAX_FAULTS      how often the job is requeued after a lost rank (default 3)
#
# srun starts the step, one task for each rank. So every rank gets the job's signals, no node needs ssh, and Slurm ends
# the processes that remain. The exit code of the step decides what happens:
#
#   0                      done
#   75                     stopped by a signal, work saved: requeued
#   130                    data preparation was interrupted, work saved: requeued
#   69, or 128 + a signal  a rank was lost: requeued, at most MAX_FAULTS times
#   others                 an error: the job ends

REPOSITORY="${REPOSITORY:-${SLURM_SUBMIT_DIR:?this script must be submitted with sbatch}}"
venv="${BERT_PLD_VENV:-$REPOSITORY/.venv}"
# The last element of an array has the job id of the whole array, so an element is addressed as ARRAY_INDEX.
job_id="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
job_id="${job_id:-$SLURM_JOB_ID}"
job_label="${SLURM_ARRAY_JOB_ID:+$job_id = }$SLURM_JOB_ID"

log() { printf '[%(%F %T)T] %s\n' -1 "$*"; }

fail() { # MESSAGE: what is wrong, where, what is allowed
    log "error: $*" >&2
    exit 1
}

[ -d "$REPOSITORY/bert_pld" ] ||
    fail "REPOSITORY=$REPOSITORY: not a checkout of bert_pld; set REPOSITORY, or call sbatch in the checkout"
[ -x "$venv/bin/python" ] ||
    fail "BERT_PLD_VENV=$venv: no virtual environment; create it first (source scripts/environment.sh all)"
export PATH="$venv/bin:$PATH" PYTHONPATH="$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

# Compiled kernels and unpacked data go to the local disk of the node. Nothing is downloaded at run time, unless
# HF_HUB_OFFLINE=0 is exported.
local_disk="${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$local_disk/bert_pld_$UID/triton}"
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$local_disk/bert_pld_$UID/torch_extensions}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$local_disk/bert_pld_$UID/inductor}"
export BERT_PLD_CACHE="${BERT_PLD_CACHE:-$local_disk/bert_pld_$UID/unpacked}"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" HF_DATASETS_OFFLINE="${HF_DATASETS_OFFLINE:-1}"

# The node of rank 0 by the address that Slurm itself uses, because names of compute nodes do not resolve everywhere.
first_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
address="$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')"
export MASTER_ADDR="${MASTER_ADDR:-${address:-$first_node}}"

# Inherited from the shell that called sbatch, a launcher's variables would override those of Slurm.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE

terminated=
run_step() { # SRUN-OPTIONS… -- COMMAND…: runs the command, forwards signals to it, returns its exit code
    local options=() commit status final_status
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    commit="$(git -C "$REPOSITORY" rev-parse --short HEAD 2>/dev/null || echo unknown)"
    log "job $job_label on ${SLURM_JOB_NUM_NODES:-1} node(s) ($SLURM_JOB_NODELIST), ${SLURM_NTASKS:-1} task(s)," \
        "start $((${SLURM_RESTART_COUNT:-0} + 1)), commit $commit"
    log "$(printf '%q ' "$@" | sed -E 's/((key|token|password|secret)=)[^ ]*/\1***/gI')"
    # --wait: after a task has ended, the others get a minute to report the cause and exit before Slurm kills them.
    # --export: tasks get this shell's environment even after `sbatch --export=NAME`.
    # --cpus-per-task: since Slurm 22.05 a step does not inherit it from the job.
    srun --export=ALL --kill-on-bad-exit=0 --wait=60 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
        ${options[@]+"${options[@]}"} "$@" &
    step=$!
    # When Slurm ends the job, it signals the tasks and this shell. A signal to this shell alone (--signal=B:…,
    # scancel --batch) has to be forwarded to the tasks.
    trap 'terminated=1; is_ended_by_slurm || kill -s USR1 "$step" 2>/dev/null' TERM
    trap 'kill -s USR1 "$step" 2>/dev/null' USR1
    wait "$step"
    status=$?
    while kill -0 "$step" 2>/dev/null; do # a signal has interrupted `wait`
        wait "$step"
        status=$?
    done
    wait "$step" 2>/dev/null # the step may have ended between an interrupted `wait` and `kill`
    final_status=$?
    [ "$final_status" -eq 127 ] || status=$final_status
    return "$status"
}

is_ended_by_slurm() { # whether Slurm is ending this job; SIGTERM alone does not mean that
    [ -n "$terminated" ] && ! scontrol show job "$job_id" | grep -q 'JobState=RUNNING'
}

slurm_decides_requeue() { # whether Slurm requeues this job if it should; at the time limit it only ends the job
    is_ended_by_slurm && ! scontrol show job "$job_id" | grep -q 'Reason=TimeLimit'
}

requeue() { # REASON
    if slurm_decides_requeue; then
        log "$1; Slurm ended this job, and requeues it if it was preempted or requeued"
    elif scontrol requeue "$job_id"; then
        log "$1; requeued"
    else
        log "$1; requeuing failed; submit the same command again to resume"
    fi
}

conclude() { # STATUS FOLDER [WHAT-WAS-SAVED]: logs what the step's exit code means, may requeue the job, and exits
    local status="$1" faults="$2/.faults-$SLURM_JOB_ID" saved="${3:-checkpoint saved}" count
    case "$status" in
    0)
        ! is_ended_by_slurm || { # srun may return 0 although Slurm has killed its tasks
            log "job $job_label: ended by Slurm; resumes from its last checkpoint when it is requeued"
            exit 143
        }
        log "job $job_label: done"
        ;;
    75) requeue "job $job_label: stopped by a signal, $saved" ;;
    130) requeue "job $job_label: interrupted; resumes where it stopped" ;; # data preparation
    69 | 129 | 13[0-9] | 14[0-9] | 15[0-9])
        if slurm_decides_requeue; then
            requeue "job $job_label: killed before it could save (exit $status); resumes from its last checkpoint"
        else
            echo "$status" >>"$faults"
            count="$(wc -l <"$faults")"
            if [ "$count" -le "${MAX_FAULTS:-3}" ]; then
                requeue "job $job_label: lost a rank (exit $status), fault $count of at most ${MAX_FAULTS:-3}"
            else
                log "job $job_label: lost a rank (exit $status), fault $count," \
                    "more than MAX_FAULTS=${MAX_FAULTS:-3}; not requeued"
            fi
        fi
        ;;
    *) log "job $job_label: failed (exit $status); see the error above; not requeued" ;;
    esac
    exit "$status"
}
