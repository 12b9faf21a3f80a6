#!/bin/bash
# A whole Slurm on this machine alone, for the tests marked `slurm`: munge, controller and two nodes that share the
# machine, with configuration, ports and state in a temporary folder, beside any Slurm that is here already.
#
#   slurm.sh run COMMAND...   start it, run the command with it, take it down whatever happened
#   slurm.sh up FOLDER        start it; `export SLURM_CONF=FOLDER/slurm.conf` to use it
#   slurm.sh down FOLDER      take it down
#
# Needs root on Debian or Ubuntu; installs the packages slurm-wlm and munge if they are absent.
set -euo pipefail

DAEMONS=(munged slurmctld slurmd)
HOST=$(hostname -s)
NODES=("$HOST" "$HOST-second") # Slurm sorts them; on the first one the processes of a job look for rank 0
CPUS_PER_NODE=8          # more than there are: jobs of the tests mostly wait

refuse() {
    echo "slurm.sh: $*" >&2
    exit 1
}

check_machine() {
    [ "$(id -u)" = 0 ] || refuse "needs root, as slurmd starts processes for other users. Try: sudo -E make test-slurm"
    getent hosts "$HOST" >/dev/null || refuse "the name of this machine, $HOST, has no address. Add it to /etc/hosts."
    export PATH="$PATH:/usr/sbin:/sbin"
    local missing=()
    for program in "${DAEMONS[@]}" sbatch srun; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || refuse "not found: ${missing[*]}. Install Slurm and munge, then try again."
    echo "slurm.sh: installing slurm-wlm and munge (not found: ${missing[*]})" >&2
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy slurm-wlm munge; } >/dev/null \
        || refuse "apt-get could not install slurm-wlm and munge."
}

free_port() {
    local port
    while port=$((RANDOM % 10000 + 40000)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port"
}

write_configuration() {
    local folder=$1 version
    cat >"$folder/slurm.conf" <<CONF
ClusterName=fulmen_tests
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a requeued job waits until its credential has expired: 5 seconds in place of 2 minutes
AuthInfo=socket=$folder/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmdSpoolDir=$folder/spool-%n
StateSaveLocation=$folder/state
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=5
# a run's port follows from its job's number, which must not be that of a job of another Slurm on this machine
FirstJobId=$((RANDOM % 8000 + 1000))
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MessageTimeout=30
BatchStartTimeout=20
CONF
    for node in "${NODES[@]}"; do
        echo "NodeName=$node NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$(free_port) CPUs=$CPUS_PER_NODE RealMemory=4000"
    done >>"$folder/slurm.conf"
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES" >>"$folder/slurm.conf"
    # since 23.11 slurmd asks for control groups unless told not to
    version=$(slurmd -V | tr -dc '0-9.')
    if [ "$(printf '%s\n' 23.11 "$version" | sort -V | head -n 1)" = 23.11 ]; then
        echo "CgroupPlugin=disabled" >"$folder/cgroup.conf"
    fi
}

up() {
    local folder
    mkdir -p "$1" && folder=$(cd "$1" && pwd)
    check_machine
    chmod 755 "$folder" # munge wants its socket to be reachable and its key not to be readable
    mkdir -p "$folder/state"
    (umask 377 && head -c 1024 /dev/urandom >"$folder/munge.key")
    write_configuration "$folder"
    export SLURM_CONF=$folder/slurm.conf
    munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
    slurmctld -c
    for node in "${NODES[@]}"; do
        mkdir -p "$folder/spool-$node"
        slurmd -N "$node"
    done
    for _ in $(seq 60); do
        [ "$(timeout 5 sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | wc -l)" = ${#NODES[@]} ] && return
        sleep 0.5
    done
    tail -n 20 "$folder"/*.log >&2
    down "$folder"
    refuse "Slurm's nodes did not come up within 30 s; the ends of the logs are above."
}

down() {
    local folder=$1 pids
    export SLURM_CONF=$folder/slurm.conf
    timeout 20 scancel --user="$(id -un)" 2>/dev/null || true
    for _ in $(seq 40); do # jobs end before their nodes do
        [ -z "$(timeout 5 squeue --noheader 2>/dev/null)" ] && break
        sleep 0.25
    done
    pids=()
    for file in "$folder"/slurmd-*.pid "$folder/slurmctld.pid" "$folder/munged.pid"; do
        [ -f "$file" ] && pids+=("$(cat "$file")")
    done
    [ ${#pids[@]} = 0 ] && return
    kill "${pids[@]}" 2>/dev/null || true
    for _ in $(seq 50); do
        kill -0 "${pids[@]}" 2>/dev/null || return 0
        sleep 0.2
    done
    kill -9 "${pids[@]}" 2>/dev/null || true
}

run() {
    folder=$(mktemp -d "${TMPDIR:-/tmp}/slurm.XXXXXX") # global, for the trap
    trap 'down "$folder"; rm -rf "$folder"' EXIT
    up "$folder"
    "$@"
}

case "${1:-}" in
    up | down) [ $# = 2 ] || refuse "usage: slurm.sh $1 FOLDER" && "$1" "$2" ;;
    run) [ $# -gt 1 ] || refuse "usage: slurm.sh run COMMAND..." && shift && run "$@" ;;
    *) refuse "usage: slurm.sh up FOLDER | down FOLDER | run COMMAND..." ;;
esac
