#!/usr/bin/env bash
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # if it was started as: sh SCRIPT
# Train a neural mesh per category on the data of PrepareData.sh. A stopped training goes on where it was.
# Edit the settings below, or set them for one run: GPUS="" BACKBONE=resnet18fpn TOTAL_EPOCHS=20 ./TrainNeMo.sh
#
# ---- settings
ROOT="$(CDPATH= cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)"
DATAROOT="${DATAROOT:-$ROOT/data}"
EXPROOT="${EXPROOT:-$ROOT/exp}"
PATH_PASCAL3DP="${PATH_PASCAL3DP:-$DATAROOT/PASCAL3D+_release1.1}"
PATH_CACHE_TRAINING_SET="${PATH_CACHE_TRAINING_SET:-$DATAROOT/PASCAL3D_train_NeMo}"
MESH_DIMENSIONS="${MESH_DIMENSIONS:-single}"                          # single: one cuboid per category; multi: one per CAD model
AZIMUTH_SELECTION="${AZIMUTH_SELECTION:-}"                            # azimuths to train on, such as TFFTTFFT; empty: all
SAVED_NETWORK_PATH="${SAVED_NETWORK_PATH:-$EXPROOT/NeMo_$MESH_DIMENSIONS${AZIMUTH_SELECTION:+_azum_$AZIMUTH_SELECTION}}"
CATEGORIES="${CATEGORIES:-aeroplane bicycle boat bottle bus car chair diningtable motorbike sofa train tvmonitor}"
GPUS="${GPUS-all}"                                                    # all, indices such as "0 1 2", or empty for the CPU
PARALLEL="${PARALLEL:-dp}"                                            # several GPUs by dp: DataParallel (the paper's), or ddp: torchrun, a process for each
SEPARATE_BANK="${SEPARATE_BANK:-false}"                               # dp: true puts the bank alone on the last of several GPUs
NUM_PROCESSES="${NUM_PROCESSES:-auto}"                                # ddp: processes on this machine; auto: one for each GPU
TORCHRUN_ARGUMENTS="${TORCHRUN_ARGUMENTS:---standalone}"              # ddp: for several machines such as "--nnodes 2 --rdzv-endpoint host:29500 --rdzv-backend c10d"
SYNC_BATCHNORM="${SYNC_BATCHNORM:-false}"                             # ddp on GPUs: batch norm over all processes; the paper's is per GPU
COMPILE="${COMPILE:-false}"                                           # true: torch.compile the network
BACKBONE="${BACKBONE:-resnetext}"                                     # resnetext (the paper's), resnet18fpn, lite0 (small and good), or timm:NAME
PRETRAINED="${PRETRAINED:-imagenet}"                                  # imagenet (of a package, else downloaded), none, or a file of weights
FREEZE="${FREEZE:-false}"                                             # true: the pretrained trunk keeps its weights
TRUNK_RATE="${TRUNK_RATE:-1}"                                         # learning rate of the pretrained trunk, as a share of LEARNING_RATE
IMAGE_SCALE="${IMAGE_SCALE:-1}"                                       # 1, or 0.5: a quarter of the work on the same data
RECIPE="${RECIPE:-paper}"                                             # paper: with all its quirks; fixed: for small data; robust: for occlusion; see docs/settings.md
AUGMENT="${AUGMENT-recipe}"                                           # any of: flip shift color occlude; recipe: the recipe's own
OCCLUDER_PICTURES="${OCCLUDER_PICTURES:-}"                            # RECIPE=robust: a folder of pictures to make occluders of, too; without your category
BATCH_SIZE="${BATCH_SIZE:-108}"                                       # images per iteration, of all GPUs and processes together
TOTAL_EPOCHS="${TOTAL_EPOCHS:-800}"
LEARNING_RATE="${LEARNING_RATE:-1e-4}"
WEIGHT_CLUTTER="${WEIGHT_CLUTTER:-5e-3}"                              # of a clutter feature among the negatives
NUM_CLUTTER_IMAGE="${NUM_CLUTTER_IMAGE:-recipe}"                      # clutter features drawn from an image
NUM_CLUTTER_GROUP="${NUM_CLUTTER_GROUP:-recipe}"                      # the clutter bank holds that many images' features
VALIDATE_EVERY="${VALIDATE_EVERY:-0}"                                 # epochs between validations, which also keep the best checkpoint; 0: train on all images
VALIDATION_SHARE="${VALIDATION_SHARE:-0.1}"                           # of the training images that are held out if VALIDATE_EVERY is not 0
TENSORBOARD="${TENSORBOARD:-true}"                                    # true: scalars and similarity maps below $SAVED_NETWORK_PATH/tensorboard
IMAGE_CACHE="${IMAGE_CACHE:-memory}"                                  # decoded crops: memory, or disk (shared by all processes and later trainings)
SEED="${SEED:-0}"
DETERMINISTIC="${DETERMINISTIC:-false}"                               # true: the same bits from the same GPU, slower; a CPU gives them anyway
RESUME="${RESUME:-true}"                                              # false: start an unfinished training again
OVERWRITE="${OVERWRITE:-false}"                                       # true: train again where a checkpoint exists
WORKERS="${WORKERS:-auto}"                                            # decoding processes beside the training
# ---- end of settings

set -euo pipefail
[ -f "$ROOT/code/common.sh" ] || # a scheduler runs a copy of what it is given
    { echo "error: $0 is not beside the project's code, as a copy that a scheduler makes; let the job run the script by its path" >&2; exit 1; }
source "$ROOT/code/common.sh"
help_or_no_arguments "$0" "$@"
one_of MESH_DIMENSIONS single multi
one_of RECIPE paper fixed robust
one_of PARALLEL dp ddp
find_python
CATEGORIES="$(code list_categories --categories "$CATEGORIES" --data "$PATH_PASCAL3DP" "$PATH_CACHE_TRAINING_SET")"

arguments=(--raw "$PATH_PASCAL3DP" --cuboids "$DATAROOT" --prepared "$PATH_CACHE_TRAINING_SET" --save-dir "$SAVED_NETWORK_PATH"
    --mesh-d "$MESH_DIMENSIONS" --azimuths "$AZIMUTH_SELECTION" --categories "$CATEGORIES"
    --gpus "$GPUS" --parallel "$PARALLEL" --separate-bank "$SEPARATE_BANK"
    --sync-batchnorm "$SYNC_BATCHNORM" --compile "$COMPILE"
    --backbone "$BACKBONE" --pretrained "$PRETRAINED" --freeze "$FREEZE" --trunk-rate "$TRUNK_RATE"
    --image-scale "$IMAGE_SCALE" --recipe "$RECIPE" --augment "$AUGMENT" --occluder-pictures "$OCCLUDER_PICTURES"
    --batch-size "$BATCH_SIZE" --total-epochs "$TOTAL_EPOCHS" --learning-rate "$LEARNING_RATE"
    --weight-clutter "$WEIGHT_CLUTTER" --num-clutter-image "$NUM_CLUTTER_IMAGE" --num-clutter-group "$NUM_CLUTTER_GROUP"
    --validate-every "$VALIDATE_EVERY" --validation-share "$VALIDATION_SHARE" --tensorboard "$TENSORBOARD"
    --image-cache "$IMAGE_CACHE" --seed "$SEED" --deterministic "$DETERMINISTIC" --resume "$RESUME" --overwrite "$OVERWRITE" --workers "$WORKERS")

if [ "$PARALLEL" = dp ] || [ -n "${TORCHELASTIC_RUN_ID-}" ]; then # the latter: your torchrun has started this script
    code train "${arguments[@]}"
else
    if [ "$NUM_PROCESSES" = auto ]; then
        gpu_list=($(code list_gpus --gpus "$GPUS"))
        NUM_PROCESSES=$((${#gpu_list[@]} > 0 ? ${#gpu_list[@]} : 1))
    fi
    log_folder="$(mktemp -d)" # else torchrun makes one and leaves it
    trap 'rm -rf "$log_folder"' EXIT
    torchrun=(--log-dir "$log_folder" --nproc-per-node "$NUM_PROCESSES" $TORCHRUN_ARGUMENTS) # unquoted: they are words
    case " $TORCHRUN_ARGUMENTS " in
        *" --local-addr"* | *" --local_addr"*) ;;
        *" --standalone "*) torchrun+=(--local-addr 127.0.0.1) ;; # a machine may not know its own name
    esac
    "$PYTHON" -m torch.distributed.run "${torchrun[@]}" "$ROOT/code/train.py" "${arguments[@]}" ||
        fail "the training ended; the first message above says why. If it is of a rendezvous, start the same command on all machines at once, and check that they reach the host and port of --rdzv-endpoint"
fi
