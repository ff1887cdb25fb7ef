#!/usr/bin/env bash
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # if it was started as: sh SCRIPT
# Prepare PASCAL3D+ (and OccludedPASCAL3D) for training and testing. Finished work is kept, so run it again at will.
# Edit the settings below, or set them for one run: ENABLE_OCCLUDED=true CATEGORIES="car bus" ./PrepareData.sh
#
# ---- settings
ROOT="$(CDPATH= cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)"
DATAROOT="${DATAROOT:-$ROOT/data}"                                    # everything below lies here
PATH_PASCAL3DP="${PATH_PASCAL3DP:-$DATAROOT/PASCAL3D+_release1.1}"    # raw PASCAL3D+, downloaded (7.5 GB) if missing
PATH_OCCLUDED_PASCAL3DP="${PATH_OCCLUDED_PASCAL3DP:-$DATAROOT/OccludedPASCAL3D}"
PATH_CACHE_TRAINING_SET="${PATH_CACHE_TRAINING_SET:-$DATAROOT/PASCAL3D_train_NeMo}"
PATH_CACHE_TESTING_SET="${PATH_CACHE_TESTING_SET:-$DATAROOT/PASCAL3D_NeMo}"
PATH_CACHE_TESTING_SET_OCC="${PATH_CACHE_TESTING_SET_OCC:-$DATAROOT/PASCAL3D_OCC_NeMo}"
ENABLE_OCCLUDED="${ENABLE_OCCLUDED:-false}"                           # true: the occluded test sets, too
OCC_LEVELS="${OCC_LEVELS:-FGL1_BGL1 FGL2_BGL2 FGL3_BGL3}"             # which of them
OCCLUDED_VISIBILITY="${OCCLUDED_VISIBILITY:-clean}"                   # clean: vertices as without occluders (the paper's); subtract: covered ones are hidden
MESH_DIMENSIONS="${MESH_DIMENSIONS:-single multi}"                    # cuboids: one per category, one per CAD model
CATEGORIES="${CATEGORIES:-aeroplane bicycle boat bottle bus car chair diningtable motorbike sofa train tvmonitor}"
GEOMETRY="${GEOMETRY:-paper}"                                         # paper: the reference's crops; exact: true maps, smooth shrinking
RECORD_RULES="${RECORD_RULES:-auto}"                                  # strict, reference: see docs/data.md; auto: reference with Image_subsets, else strict
TRAIN_PARTS="${TRAIN_PARTS:-imagenet}"                                # of PASCAL3D+: imagenet (the paper's), pascal (images of VOC 2012)
TEST_PARTS="${TEST_PARTS:-imagenet}"                                  # the same for the test set
AZIMUTH_SELECTION="${AZIMUTH_SELECTION:-}"                            # such as TFFTTFFT: also the lists of the unseen-pose protocol, see docs/data.md
NUMBER_VERTICES="${NUMBER_VERTICES:-1000}"                            # that a cuboid aims at
MINIMUM_THICKNESS="${MINIMUM_THICKNESS:-auto}"                        # of a cuboid's side, as a share of its longest; auto: 0 (the paper's), exact 0.05
OVERWRITE="${OVERWRITE:-false}"                                       # true: make everything again
WORKERS="${WORKERS:-auto}"                                            # processes; auto: one per core
# ---- end of settings

set -euo pipefail
[ -f "$ROOT/code/common.sh" ] || # a scheduler runs a copy of what it is given
    { echo "error: $0 is not beside the project's code, as a copy that a scheduler makes; let the job run the script by its path" >&2; exit 1; }
source "$ROOT/code/common.sh"
help_or_no_arguments "$0" "$@"
one_of ENABLE_OCCLUDED true false
one_of OVERWRITE true false
one_of GEOMETRY paper exact
one_of OCCLUDED_VISIBILITY clean subtract
case "$AZIMUTH_SELECTION" in
    *[!TF]*) fail "AZIMUTH_SELECTION is '$AZIMUTH_SELECTION', it is a pattern of T and F such as TFFTTFFT" ;;
    "" | *TF* | *FT*) ;;
    *) fail "AZIMUTH_SELECTION is '$AZIMUTH_SELECTION', it must hold both T and F, such as TFFTTFFT" ;;
esac
[[ $NUMBER_VERTICES =~ ^0*[1-9][0-9]*$ ]] || fail "NUMBER_VERTICES is '$NUMBER_VERTICES', it is a whole number above 0"
[[ $MINIMUM_THICKNESS =~ ^(auto|0(\.[0-9]*)?|\.[0-9]+|1(\.0*)?)$ ]] ||
    fail "MINIMUM_THICKNESS is '$MINIMUM_THICKNESS', it is auto or a number from 0 to 1 such as 0.05"
one_of RECORD_RULES auto strict reference
words_of TRAIN_PARTS imagenet pascal
words_of TEST_PARTS imagenet pascal
words_of MESH_DIMENSIONS single multi
words_of OCC_LEVELS FGL{1,2,3}_BGL{1,2,3}
find_python
CATEGORIES="$(code list_categories --categories "$CATEGORIES" \
    --data "$PATH_PASCAL3DP" "$PATH_CACHE_TRAINING_SET" "$PATH_CACHE_TESTING_SET")"

common=(--raw "$PATH_PASCAL3DP" --categories "$CATEGORIES" --overwrite "$OVERWRITE")
wanted=(--raw "$PATH_PASCAL3DP" --categories "$CATEGORIES")
if [ "$ENABLE_OCCLUDED" = true ]; then
    wanted+=(--occluded "$PATH_OCCLUDED_PASCAL3DP" --levels "$OCC_LEVELS")
fi
elsewhere=(--cuboids "$DATAROOT") # of a raw set that cannot be written
cuboids=("${elsewhere[@]}" --number-vertices "$NUMBER_VERTICES" --geometry "$GEOMETRY")
[ "$MINIMUM_THICKNESS" = auto ] || cuboids+=(--minimum-thickness "$MINIMUM_THICKNESS")
# select_azimuths FOLDER ARGUMENTS...: lists of the wanted azimuths and of the others, for $mesh_d
select_azimuths() {
    [ -z "$AZIMUTH_SELECTION" ] || code select_azimuths --prepared "$@" --mesh-d "$mesh_d" --categories "$CATEGORIES" --azimuths "$AZIMUTH_SELECTION"
}
images=(--geometry "$GEOMETRY" --record-rules "$RECORD_RULES" --workers "$WORKERS")
code download_data "${wanted[@]}"
code prepare_images "${common[@]}" "${images[@]}" --out "$PATH_CACHE_TRAINING_SET" --split train --parts "$TRAIN_PARTS"
code prepare_images "${common[@]}" "${images[@]}" --out "$PATH_CACHE_TESTING_SET" --split val --parts "$TEST_PARTS"
for mesh_d in $MESH_DIMENSIONS; do
    code make_cuboids "${common[@]}" --mesh-d "$mesh_d" "${cuboids[@]}"
    code annotate_vertices "${common[@]}" "${elsewhere[@]}" --mesh-d "$mesh_d" --prepared "$PATH_CACHE_TRAINING_SET" --workers "$WORKERS"
    code annotate_vertices "${common[@]}" "${elsewhere[@]}" --mesh-d "$mesh_d" --prepared "$PATH_CACHE_TESTING_SET" --workers "$WORKERS"
    select_azimuths "$PATH_CACHE_TRAINING_SET"
    select_azimuths "$PATH_CACHE_TESTING_SET"
done
if [ "$ENABLE_OCCLUDED" = true ]; then
    for level in $OCC_LEVELS; do
        code prepare_images "${common[@]}" "${images[@]}" --out "$PATH_CACHE_TESTING_SET_OCC" --split val --parts "$TEST_PARTS" \
            --occluded "$PATH_OCCLUDED_PASCAL3DP" --level "$level"
        for mesh_d in $MESH_DIMENSIONS; do
            code annotate_vertices "${common[@]}" "${elsewhere[@]}" --mesh-d "$mesh_d" --prepared "$PATH_CACHE_TESTING_SET_OCC" \
                --clean "$PATH_CACHE_TESTING_SET" --level "$level" --occluded-visibility "$OCCLUDED_VISIBILITY" --workers "$WORKERS"
            select_azimuths "$PATH_CACHE_TESTING_SET_OCC" --level "$level"
        done
    done
fi
echo "prepared: $CATEGORIES; cuboids $MESH_DIMENSIONS; occluded $([ "$ENABLE_OCCLUDED" = true ] && echo "$OCC_LEVELS" || echo none); in $DATAROOT"
