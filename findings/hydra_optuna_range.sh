#!/usr/bin/env bash
# `range(start,stop,step)` in a Hydra multirun, say of epochs or beta, leaves out its stop. With hydra/sweeper=optuna the same
# override would be expected to stand for the same values, whatever the sampler.
# Optuna's samplers (random here) also try the stop. Its grid sampler leaves out the stop, and the last value before it, too,
# where the step does not divide the interval, or not in floating point: a grid of two values becomes one.
# hydra-core 1.3.8, hydra-optuna-sweeper 1.3.0, optuna 2.10.1; no warning.
# Methods tuned with different sweepers have then not had the same search space, and the best value of a grid may never have
# been run. A list, `choice(0.1,0.2)`, is the same for all. Seen:
#   range(1,4)          basic 1 2 3    optuna grid 1 2 3   optuna random 1 2 3 4
#   range(2,10,3)       basic 2 5 8    optuna grid 2 5     optuna random 2 5 8
#   range(0.1,0.3,0.1)  basic 0.1 0.2  optuna grid 0.1     optuna random 0.1 0.2 0.3
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet \
    hydra-core==1.3.8 hydra-optuna-sweeper==1.3.0 optuna==2.10.1 SQLAlchemy==1.4.54 alembic==1.19.2
cd "$dir"
cat >tried.py <<'PY'
import hydra


@hydra.main(version_base=None, config_path=None)
def main(config):
    with open("tried", "a") as tried:
        print(f"{config.value:g}", file=tried)
    return config.value


main()
PY
values() {
    rm -f tried
    "$dir/venv/bin/python" tried.py -m "+value=$1" hydra.sweep.dir=runs "${@:2}" >log 2>&1 || { cat log >&2; exit 1; }
    sort -gu tried | tr '\n' ' '
}
check() {
    local basic grid sampled
    basic=$(values "$1")
    grid=$(values "$1" hydra/sweeper=optuna hydra/sweeper/sampler=grid)
    sampled=$(values "$1" hydra/sweeper=optuna hydra/sweeper/sampler=random \
        hydra.sweeper.sampler.seed=1 hydra.sweeper.n_trials=40)
    printf '%-18s  basic %-8s optuna grid %-7s optuna random %s\n' "$1" "$basic" "$grid" "$sampled"
    [[ "$basic|$grid|$sampled" == "$2" ]]
}
check 'range(1,4)' '1 2 3 |1 2 3 |1 2 3 4 '
check 'range(2,10,3)' '2 5 8 |2 5 |2 5 8 '
check 'range(0.1,0.3,0.1)' '0.1 0.2 |0.1 |0.1 0.2 0.3 '
