#!/usr/bin/env bash
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # if it was started as: sh SCRIPT
# From nothing to poses, a table and pictures: installs, makes sample data, prepares, trains, infers, draws.
# Everything lies in demo/, your own data/ and exp/ are not touched. A second run reuses what is there.
#
# ---- settings
ROOT="$(CDPATH= cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)"
DEMOROOT="${DEMOROOT:-$ROOT/demo}"
DEMO_CATEGORIES="${DEMO_CATEGORIES:-car chair}"       # the generator has these
DEMO_TRAIN_IMAGES="${DEMO_TRAIN_IMAGES:-240}"         # per category
DEMO_TEST_IMAGES="${DEMO_TEST_IMAGES:-60}"            # per category
DEMO_EPOCHS="${DEMO_EPOCHS:-16}"                      # more is better
DEMO_OCC_LEVEL="${DEMO_OCC_LEVEL:-FGL1_BGL1}"         # the occlusion level that is tested beside the clean images
DEMO_PICTURES="${DEMO_PICTURES:-4}"                   # result pictures per category, clean and occluded
GPUS="${GPUS-all}"                                    # all, indices such as "0 1", or empty for the CPU
# ---- end of settings

set -euo pipefail
[ -f "$ROOT/code/common.sh" ] || # a scheduler runs a copy of what it is given
    { echo "error: $0 is not beside the project's code, as a copy that a scheduler makes; let the job run the script by its path" >&2; exit 1; }
source "$ROOT/code/common.sh"
help_or_no_arguments "$0" "$@"
make_environment
export PYTHON

step() {
    printf '\n== %s\n' "$*"
}

# what you have set for your own runs does not reach the demo's
unset PATH_PASCAL3DP PATH_OCCLUDED_PASCAL3DP PATH_CACHE_TRAINING_SET PATH_CACHE_TESTING_SET PATH_CACHE_TESTING_SET_OCC \
    SAVED_NETWORK_PATH LOAD_FILE_NAME SEPARATE_BANK WEIGHT_CLUTTER NUM_CLUTTER_IMAGE NUM_CLUTTER_GROUP SEED RESUME OVERWRITE \
    WORKERS PARALLEL NUM_PROCESSES TORCHRUN_ARGUMENTS SYNC_BATCHNORM COMPILE VALIDATE_EVERY VALIDATION_SHARE TENSORBOARD \
    IMAGE_CACHE DETERMINISTIC RENDERER PRECISION SIX_D SUBTYPE SHARD TOTAL_EPOCHS LEARNING_RATE BATCH_SIZE SAVE_FEATURES \
    BASELINES NUM_FILMS AZIMUTH_SELECTION AZIMUTH_TEST RECORD_RULES TRAIN_PARTS TEST_PARTS NUMBER_VERTICES MINIMUM_THICKNESS \
    OCCLUDED_VISIBILITY FREEZE TRUNK_RATE OCCLUDER_PICTURES RANK WORLD_SIZE LOCAL_RANK
export CATEGORIES="$DEMO_CATEGORIES" DATAROOT="$DEMOROOT/data" EXPROOT="$DEMOROOT/exp" MESH_DIMENSIONS=single GPUS
started=$SECONDS

step "1/5 sample data"
code make_sample_data --out "$DATAROOT" --categories "$CATEGORIES" --train-images "$DEMO_TRAIN_IMAGES" --val-images "$DEMO_TEST_IMAGES" ||
    fail "no sample data; if settings have changed since the last run, delete $DEMOROOT or set DEMOROOT to another folder"

step "2/5 PrepareData.sh"
GEOMETRY=exact ENABLE_OCCLUDED=true OCC_LEVELS="$DEMO_OCC_LEVEL" "$ROOT/PrepareData.sh"

step "3/5 TrainNeMo.sh"
BACKBONE=resnet18fpn PRETRAINED=none IMAGE_SCALE=0.5 RECIPE=fixed AUGMENT="flip color occlude" \
    BATCH_SIZE=16 LEARNING_RATE=1e-3 TOTAL_EPOCHS="$DEMO_EPOCHS" "$ROOT/TrainNeMo.sh"

step "4/5 InferenceNeMo.sh"
SOLVER=best NUM_PICTURES="$DEMO_PICTURES" "$ROOT/InferenceNeMo.sh"

step "5/5 InferenceNeMo.sh $DEMO_OCC_LEVEL"
SOLVER=best NUM_PICTURES="$DEMO_PICTURES" "$ROOT/InferenceNeMo.sh" "$DEMO_OCC_LEVEL"

printf '\ndone in %d minutes %d seconds; tables: %s; pictures: %s; report, for a browser: %s\n' \
    $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) \
    "$EXPROOT/Accuracy_single" "$EXPROOT/Report_single" "$EXPROOT/Report_single/index.html"
