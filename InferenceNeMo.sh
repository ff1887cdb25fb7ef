#!/usr/bin/env bash
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # if it was started as: sh SCRIPT
# Find the poses of the test images, print the accuracy table and write the report page: ./InferenceNeMo.sh [OCC_LEVEL]
# OCC_LEVEL is an occlusion level such as FGL1_BGL1; without it the unoccluded test set is used.
# Edit the settings below, or set them for one run: SOLVER=best GPUS="" ./InferenceNeMo.sh FGL2_BGL2
#
# ---- settings
ROOT="$(CDPATH= cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)"
DATAROOT="${DATAROOT:-$ROOT/data}"
EXPROOT="${EXPROOT:-$ROOT/exp}"
PATH_PASCAL3DP="${PATH_PASCAL3DP:-$DATAROOT/PASCAL3D+_release1.1}"
PATH_CACHE_TRAINING_SET="${PATH_CACHE_TRAINING_SET:-$DATAROOT/PASCAL3D_train_NeMo}"
PATH_CACHE_TESTING_SET="${PATH_CACHE_TESTING_SET:-$DATAROOT/PASCAL3D_NeMo}"
PATH_CACHE_TESTING_SET_OCC="${PATH_CACHE_TESTING_SET_OCC:-$DATAROOT/PASCAL3D_OCC_NeMo}"
MESH_DIMENSIONS="${MESH_DIMENSIONS:-single}"                          # single or multi, as trained
SUBTYPE="${SUBTYPE:-annotated}"                                       # of several cuboids: annotated (the paper's), or predicted: all, lowest loss wins
AZIMUTH_SELECTION="${AZIMUTH_SELECTION:-}"                            # azimuths that were trained on, such as TFFTTFFT; empty: all
AZIMUTH_TEST="${AZIMUTH_TEST:-unseen}"                                # with AZIMUTH_SELECTION: test on the unseen azimuths, or on the seen
SAVED_NETWORK_PATH="${SAVED_NETWORK_PATH:-$EXPROOT/NeMo_$MESH_DIMENSIONS${AZIMUTH_SELECTION:+_azum_$AZIMUTH_SELECTION}}"
LOAD_FILE_NAME="${LOAD_FILE_NAME:-saved_model_%s_last.pth}"           # checkpoint, the category for %s; the paper's is saved_model_%s_799.pth
CATEGORIES="${CATEGORIES:-aeroplane bicycle boat bottle bus car chair diningtable motorbike sofa train tvmonitor}"
GPUS="${GPUS-all}"                                                    # all, indices such as "0 1 2", or empty for the CPU
BATCH_SIZE="${BATCH_SIZE:-auto}"                                      # images at a time; auto: 64 on a GPU, 8 on a CPU
SOLVER="${SOLVER:-paper}"                                             # paper, best
RENDERER="${RENDERER:-auto}"                                          # auto, torch, numba, triton, pytorch3d, pytorch3d-features
SIX_D="${SIX_D:-false}"                                               # true: also find where the object lies on the map, and start from other distances
TOTAL_EPOCHS="${TOTAL_EPOCHS:-300}"                                   # optimiser steps of an image
LEARNING_RATE="${LEARNING_RATE:-0.05}"                                # of the pose optimiser
PRECISION="${PRECISION:-auto}"                                        # of the backbone: float32, bfloat16; auto: bfloat16 on a GPU unless SOLVER=paper
SHARD="${SHARD:-}"                                                    # i/n: only this machine's share, i from 0; run without it at the end to merge
SAVE_FEATURES="${SAVE_FEATURES:-false}"                               # true: write feature maps (1-4 MB an image) and read them
BASELINES="${BASELINES:-false}"                                       # true: also what knowing only the training poses gives
NUM_PICTURES="${NUM_PICTURES:-6}"                                     # result pictures per category, 0 = none
NUM_FILMS="${NUM_FILMS:-1}"                                           # films of the optimisation per category (GIF), with the pictures
SEED="${SEED:-0}"
WORKERS="${WORKERS:-auto}"                                            # decoding processes beside the solver
# ---- end of settings

set -euo pipefail
[ -f "$ROOT/code/common.sh" ] || # a scheduler runs a copy of what it is given
    { echo "error: $0 is not beside the project's code, as a copy that a scheduler makes; let the job run the script by its path" >&2; exit 1; }
source "$ROOT/code/common.sh"
OCC_LEVEL=""
case "${1-}" in
    FGL[1-3]_BGL[1-3]) OCC_LEVEL="$1"; shift ;;
    "" | -*) ;;
    *) fail "'$1' is not an occlusion level; levels are FGL1_BGL1, FGL2_BGL2 and so on up to FGL3_BGL3" ;;
esac
help_or_no_arguments "$0" "$@"
one_of MESH_DIMENSIONS single multi
one_of SUBTYPE annotated predicted
one_of AZIMUTH_TEST unseen seen
one_of SAVE_FEATURES true false
one_of BASELINES true false
one_of SIX_D true false
one_of PRECISION auto float32 bfloat16
one_of SOLVER paper best
one_of RENDERER auto torch numba triton pytorch3d pytorch3d-features
for setting in NUM_PICTURES NUM_FILMS; do
    [[ "${!setting}" =~ ^[0-9]+$ ]] || fail "$setting is '${!setting}', it can be a whole number, 0 for none"
done
[[ "$SHARD" =~ ^([0-9]+/[1-9][0-9]*)?$ ]] && ((${SHARD%/*} + 0 < ${SHARD#*/} + (${#SHARD} == 0))) ||
    fail "SHARD is '$SHARD', it can be i/n with 0 <= i < n, or empty"
[ -z "$SHARD" ] || [ "$SAVE_FEATURES" = false ] ||
    fail "SHARD does not go with SAVE_FEATURES=true, since every share would write the same feature maps; leave one of them out"
find_python
CATEGORIES="$(code list_categories --categories "$CATEGORIES" --data "$PATH_PASCAL3DP" "$PATH_CACHE_TESTING_SET")"

tested="$PATH_CACHE_TESTING_SET"
[ -z "$OCC_LEVEL" ] || tested="$PATH_CACHE_TESTING_SET_OCC"
results=(--mesh-d "$MESH_DIMENSIONS" --categories "$CATEGORIES" --exp "$EXPROOT" --azimuths "${AZIMUTH_SELECTION:+$AZIMUTH_SELECTION:$AZIMUTH_TEST}")
data=("${results[@]}" --level "$OCC_LEVEL")
network=(--raw "$PATH_PASCAL3DP" --cuboids "$DATAROOT" --prepared "$tested" --save-dir "$SAVED_NETWORK_PATH" --load-file-name "$LOAD_FILE_NAME")
solver=(--subtype "$SUBTYPE" --solver "$SOLVER" --six-d "$SIX_D" --renderer "$RENDERER" --total-epochs "$TOTAL_EPOCHS"
    --learning-rate "$LEARNING_RATE" --precision "$PRECISION" --batch-size "$BATCH_SIZE" --seed "$SEED" --workers "$WORKERS"
    --from-features "$SAVE_FEATURES")

if [ "$SAVE_FEATURES" = true ]; then
    code extract_features "${data[@]}" "${network[@]}" --gpus "$GPUS" --batch-size "$BATCH_SIZE" --workers "$WORKERS"
fi
gpu_list=()
[ -z "$GPUS" ] || gpu_list=($(code list_gpus --gpus "$GPUS"))
shard="${SHARD%/*}" shards="${SHARD#*/}"
if [ "${#gpu_list[@]}" -gt 1 ]; then # every GPU takes a share of the images; the run below merges them
    jobs=()
    for i in "${!gpu_list[@]}"; do
        "$PYTHON" "$ROOT/code/solve_poses.py" "${data[@]}" "${network[@]}" "${solver[@]}" \
            --gpus "${gpu_list[$i]}" --shard "$((${shard:-0} * ${#gpu_list[@]} + i))/$((${shards:-1} * ${#gpu_list[@]}))" &
        jobs+=($!)
    done
    trap 'kill "${jobs[@]}" 2>/dev/null || true' EXIT
    for job in "${jobs[@]}"; do
        wait "$job" || fail "the solver failed on one of the GPUs, its message is above; what the others solved is kept"
    done
    trap - EXIT
elif [ -n "$SHARD" ]; then
    code solve_poses "${data[@]}" "${network[@]}" "${solver[@]}" --gpus "$GPUS" --shard "$SHARD"
fi
if [ -n "$SHARD" ]; then
    echo "share $SHARD is done; when all shares are, run $(basename "$0") without SHARD to merge them"
    exit 0
fi
code solve_poses "${data[@]}" "${network[@]}" "${solver[@]}" --gpus "$GPUS" --shard 0/1 # everything, whatever RANK a cluster has set
baselines=()
[ "$BASELINES" != true ] || baselines=(--train "$PATH_CACHE_TRAINING_SET")
code report_accuracy "${data[@]}" --clean "$PATH_CACHE_TESTING_SET" --prepared "$tested" ${baselines[@]+"${baselines[@]}"}
if [ "$NUM_PICTURES" != 0 ]; then
    code draw_results "${data[@]}" "${network[@]}" --clean "$PATH_CACHE_TESTING_SET" --images "$NUM_PICTURES" --film "$NUM_FILMS" \
        --gpus "$GPUS"
fi
code write_report "${results[@]}" --raw "$PATH_PASCAL3DP" --cuboids "$DATAROOT" --clean "$PATH_CACHE_TESTING_SET" --occluded "$PATH_CACHE_TESTING_SET_OCC"
