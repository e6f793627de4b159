# shellcheck shell=bash
# Sourced by the batch scripts beside it: environment, one step of the job, and what its end means.
#
# Variables, from the environment or `sbatch --export=ALL,NAME=VALUE`:
#
#   REPOSITORY      the checkout, on a file system that all nodes share (default: where sbatch was called)
#   BERT_PLD_VENV   the virtual environment (default: .venv in the checkout)
#   MAX_FAULTS      how often a job that lost a rank is started again (default 3)
#
# A step is run by srun, one task a rank: every rank gets the job's signals itself, no node needs ssh, and what is left
# of a step is ended by Slurm. Exit codes of a step: 0 done; 75 stopped by a signal with its work saved, 130 data
# preparation interrupted: the job is queued again; 69, or one of a killed process: a rank was lost: queued again,
# MAX_FAULTS times; others: a mistake, which ends the job.

REPOSITORY="${REPOSITORY:-${SLURM_SUBMIT_DIR:?this script is for sbatch}}"
environment="${BERT_PLD_VENV:-$REPOSITORY/.venv}"
# To Slurm, the number of an array's last element means all of its elements.
this_job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
this_job="${this_job:-$SLURM_JOB_ID}"
job="${SLURM_ARRAY_JOB_ID:+$this_job = }$SLURM_JOB_ID"

say() { printf '[%(%F %T)T] %s\n' -1 "$*"; }

fail() { # MESSAGE: what is wrong, where, what is allowed
    say "error: $*" >&2
    exit 1
}

[ -d "$REPOSITORY/bert_pld" ] || fail "REPOSITORY=$REPOSITORY: not a checkout of bert_pld; give one, or call sbatch in it"
[ -x "$environment/bin/python" ] ||
    fail "BERT_PLD_VENV=$environment: no virtual environment; make it before (source scripts/environment.sh all)"
export PATH="$environment/bin:$PATH" PYTHONPATH="$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

# Compiled kernels and unpacked data go to the node's own disk; nothing is fetched from the network at run time.
local_disk="${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$local_disk/bert_pld_$UID/triton}"
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$local_disk/bert_pld_$UID/torch_extensions}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$local_disk/bert_pld_$UID/inductor}"
export BERT_PLD_CACHE="${BERT_PLD_CACHE:-$local_disk/bert_pld_$UID/unpacked}"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" HF_DATASETS_OFFLINE="${HF_DATASETS_OFFLINE:-1}"

# The node of rank 0 by the address that Slurm itself uses: names of compute nodes do not resolve everywhere.
first_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
address="$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')"
export MASTER_ADDR="${MASTER_ADDR:-${address:-$first_node}}"

# A rank is what Slurm says, not what a launcher said to the shell that called sbatch.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE

terminated=
run_step() { # SRUN-ARGUMENTS… -- COMMAND…: run it, pass signals on, return its exit code
    local arguments=() status again
    while [ "$1" != -- ]; do
        arguments+=("$1")
        shift
    done
    shift
    say "job $job on ${SLURM_JOB_NUM_NODES:-1} node(s) ($SLURM_JOB_NODELIST), ${SLURM_NTASKS:-1} task(s)," \
        "start $((${SLURM_RESTART_COUNT:-0} + 1)), code $(git -C "$REPOSITORY" rev-parse --short HEAD 2>/dev/null || echo unknown)"
    say "$(printf '%q ' "$@" | sed -E 's/((key|token|password|secret)=)[^ ]*/\1***/gI')"
    # A task that ends takes the others along after a minute, in which ranks have said what they lost and left. Tasks get
    # this shell's environment even after `sbatch --export=NAME`, and the CPUs asked for, which srun forgets since 22.05.
    srun --export=ALL --kill-on-bad-exit=0 --wait=60 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
        ${arguments[@]+"${arguments[@]}"} "$@" &
    step=$!
    # Slurm that ends the job signals tasks and this shell. Sent to this shell alone (--signal=B:…, scancel --batch), a
    # signal is handed on.
    trap 'terminated=1; ended_by_slurm || kill -s USR1 "$step" 2>/dev/null' TERM
    trap 'kill -s USR1 "$step" 2>/dev/null' USR1
    wait "$step"
    status=$?
    while kill -0 "$step" 2>/dev/null; do # it was only a signal that ended `wait`
        wait "$step"
        status=$?
    done
    wait "$step" 2>/dev/null
    again=$?
    [ "$again" -eq 127 ] || status=$again
    return "$status"
}

ended_by_slurm() { # whether Slurm is ending this job, which a signal alone does not mean
    [ -n "$terminated" ] && ! scontrol show job "$this_job" | grep -q 'JobState=RUNNING'
}

left_to_slurm() { # whether Slurm decides if this job is queued again; one at its time limit it would only end
    ended_by_slurm && ! scontrol show job "$this_job" | grep -q 'Reason=TimeLimit'
}

requeue() { # WHY
    if left_to_slurm; then
        say "$1; Slurm ended this job, and queues it again if it was preempted or requeued"
    elif scontrol requeue "$this_job"; then
        say "$1; queued again"
    else
        say "$1; it could not be queued again: sbatch the same command, which goes on where it stopped"
    fi
}

conclude() { # STATUS FOLDER [WHAT-75-SAVED]: say what a step's exit code means, requeue where that helps, exit with it
    local status="$1" faults="$2/.faults-$SLURM_JOB_ID" saved="${3:-after its checkpoint}" count
    case "$status" in
    0)
        ! ended_by_slurm || { # srun does not say how tasks ended that Slurm killed
            say "job $job: ended by Slurm; goes on from its last checkpoint when it is queued again"
            exit 143
        }
        say "job $job: done"
        ;;
    75) requeue "job $job: stopped by a signal $saved" ;;
    130) requeue "job $job: interrupted; goes on where it stopped" ;; # data preparation, which saves as it goes
    69 | 129 | 13[0-9] | 14[0-9] | 15[0-9])
        if left_to_slurm; then
            requeue "job $job: ended by a signal before it could save (exit $status); goes on from its last checkpoint"
        else
            echo "$status" >>"$faults"
            count="$(wc -l <"$faults")"
            if [ "$count" -le "${MAX_FAULTS:-3}" ]; then
                requeue "job $job: lost a rank (exit $status), fault $count of at most ${MAX_FAULTS:-3}"
            else
                say "job $job: lost a rank (exit $status) once more than MAX_FAULTS=${MAX_FAULTS:-3} allows"
            fi
        fi
        ;;
    *) say "job $job: failed (exit $status); the error is above; not queued again" ;;
    esac
    exit "$status"
}
