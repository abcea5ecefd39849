"""Texts of the files beside an ONNX that `trtexec` compiles; `trtexec.py` fills them in and names the sources."""

BUILD_SH = r"""#!/usr/bin/env bash
# Compiles this folder's network for this machine with its own TensorRT, and measures it. Written by
# `engine-build trtexec-script`; README.txt beside it says what goes in and what comes out.
#
#   ./build.sh              compile, then measure
#   TRTEXEC=/path/trtexec   use this one instead of the one in PATH or /usr/src/tensorrt/bin
#   TF32=1                  let float32 layers multiply with ten bits of mantissa (Ampere and later): faster
#   WORKSPACE_MIB=512       most GPU memory to compile with
#   MEASURE=0               only compile
#   DRY_RUN=1               print the commands, run none
set -euo pipefail
cd "$(dirname "$0")"

engine=@ENGINE@
name=@NAME@
precision=@PRECISION@
input=@INPUT@
size=@SIZE@
opt=@OPT@
max=@MAX@
workspace=${WORKSPACE_MIB:-@WORKSPACE@}
without_old=@WITHOUT@

fail() {
  printf 'build.sh: %s\n' "$1" >&2
  exit 1
}

run() {
  printf '+ %s\n' "$*"
  [ "${DRY_RUN:-0}" = 1 ] || "$@"
}

find_trtexec() {
  if [ -n "${TRTEXEC:-}" ]; then
    trtexec=$TRTEXEC
  elif ! trtexec=$(command -v trtexec); then
    trtexec=/usr/src/tensorrt/bin/trtexec
  fi
  [ -x "$trtexec" ] || fail "there is no trtexec at $trtexec or in PATH; it comes with NVIDIA's TensorRT package \
(apt, JetPack, or the container nvcr.io/nvidia/tensorrt), not with pip: set TRTEXEC to where it is"
}

# The first line of any call ends in [TensorRT v8201] (8.2.1), [TensorRT v100300] (10.3.0): four digits before 10.
find_version() {
  local said number
  said=$("$trtexec" --help 2>&1 || true)
  [[ $said =~ \[TensorRT\ v([0-9]+)\] ]] || fail "$trtexec does not say which TensorRT it is of; it said: ${said:0:200}"
  number=${BASH_REMATCH[1]}
  if [ "$number" -lt 10000 ]; then
    major=$((number / 1000)) minor=$((number / 100 % 10)) patch=$((number % 100))
  else
    major=$((number / 10000)) minor=$((number / 100 % 100)) patch=$((number % 100))
  fi
}

# Sets onnx, and appends to arguments.
choose() {
  case $major in
    8)
      [ "$minor" -ge 2 ] || fail "TensorRT 8.$minor is too old; this network needs 8.2 or later"
      [ -z "$without_old" ] || fail "TensorRT 8 knows ONNX up to opset 17 at most, and this network cannot be said in \
what all of its releases know: $without_old"
      choose_8
      ;;
    10)
      # Without it 10 would choose types by itself, and compile an fp16 file in fp32.
      onnx=model.onnx arguments+=(--stronglyTyped --skipInference)
      limit_workspace
      ;;
    11)
      # Types are always obeyed; there are no precision options any more.
      onnx=model.onnx arguments+=(--skipInference)
      limit_workspace
      ;;
    *)
      fail "this script knows TensorRT 8.2 to 8.6, 10 and 11, not $major.$minor; for a later one look for its options \
in the case for 11 and add it there, for 9 install another"
      ;;
  esac
}

choose_8() {
  if [ "$minor" -ge 6 ]; then
    onnx=model-trt8.onnx arguments+=(--skipInference)
  else
    onnx=model-trt8-float-input.onnx arguments+=(--buildOnly)
    printf 'TensorRT 8.%s takes no uint8 pictures: %s wants the same numbers, 0..255, as float32\n' "$minor" "$onnx"
  fi
  if [ "$minor" -ge 4 ]; then
    limit_workspace
  else
    arguments+=("--workspace=${workspace:-1024}") # 16 MiB by default, too little for most kernels
  fi
  case $precision in
    fp16) arguments+=(--fp16) ;;
    int8)
      if [[ $(tr -d '\0' <"${DEVICE_TREE:-/proc/device-tree}/model" 2>/dev/null || true) == *"Jetson Nano"* ]]; then
        fail "a Jetson Nano has no int8 hardware; use the fp16 engine of this model"
      fi
      arguments+=(--int8 --fp16) # ranges are in the file, so no calibration
      ;;
  esac
}

limit_workspace() {
  [ -z "$workspace" ] || arguments+=("--memPoolSize=workspace:$workspace")
}

compile() {
  arguments=("--minShapes=$input:1x$size" "--optShapes=$input:${opt}x$size" "--maxShapes=$input:${max}x$size")
  choose
  [ "${TF32:-0}" = 1 ] || arguments+=(--noTF32)
  plan=$name-trt$major.$minor.$patch.plan
  run "$trtexec" "--onnx=$onnx" "${arguments[@]}" "--saveEngine=$plan.part" ||
    { rm -f "$plan.part" && fail "TensorRT did not compile $onnx; its reason is above"; }
  run mv "$plan.part" "$plan"
}

# One batch size; the rest are trtexec's options. Prints the lines of its summary only.
measure() {
  local batch=$1 said
  shift
  if [ "${DRY_RUN:-0}" = 1 ]; then
    run "$trtexec" "--loadEngine=$plan" "--shapes=$input:${batch}x$size" "$@"
    return
  fi
  said=$("$trtexec" "--loadEngine=$plan" "--shapes=$input:${batch}x$size" --warmUp=500 --duration=3 "$@" 2>&1) ||
    fail "the plan does not run: $(printf '%s\n' "$said" | tail -n 5)"
  printf '%s\n' "$said" | sed -n -E 's/^.*\] ((Throughput|Latency|GPU Compute Time|H2D Latency): [0-9m].*)$/  \1/p'
}

measure_all() {
  local batch run_only=(--useCudaGraph --useSpinWait --noDataTransfers) with_copies=(--useCudaGraph --useSpinWait)
  if [ "$major" -ge 11 ]; then # graphs and spinning are the default there, and copies are left out unless asked for
    run_only=() with_copies=(--includeDataTransfers)
  fi
  for batch in $(printf '%s\n' 1 "$opt" "$max" | sort -nu); do
    printf 'batch %s, run only (throughput is batches a second):\n' "$batch"
    measure "$batch" ${run_only[@]+"${run_only[@]}"}
    printf 'batch %s, pictures copied in and answers out:\n' "$batch"
    measure "$batch" "${with_copies[@]}"
  done
}

find_trtexec
find_version
printf '%s with %s of TensorRT %s.%s.%s\n' "$engine" "$trtexec" "$major" "$minor" "$patch"
compile
[ "${MEASURE:-1}" = 0 ] || measure_all
printf '%s is made. It runs on this kind of GPU and this TensorRT only; its answers were not checked: README.txt\n' \
  "$plan"
"""

README_TXT = """\
{engine}

This folder was made for a machine with NVIDIA TensorRT and its trtexec, and without this project's Python package.

Compile and measure, on the machine that will run it:   ./build.sh
It leaves {plan}, for that kind of GPU and that TensorRT only.

Which file is compiled
  model.onnx                    TensorRT 10 and 11: types are in the graph; opset 20, which 8 does not know
  model-trt8.onnx               TensorRT 8.6: float32 in opset 13, the builder may use fp16 or int8
  model-trt8-float-input.onnx   TensorRT 8.2 to 8.5, which take no uint8: pictures as float32 with the same 0..255
  If the last two are missing, this network cannot be compiled by TensorRT 8; build.sh says why.

Jetson (as of TensorRT 11.4)
  Jetson Nano: JetPack 4.6, TensorRT 8.2, Python 3.6, no int8 hardware: use fp16.
  Orin with JetPack 5: TensorRT 8.5. With JetPack 6: TensorRT 10.3. With JetPack 7.2: 10.16.
  Orin and Thor with JetPack 7.2.2 or later can have TensorRT 11.4.1, and then this project's package itself.

What goes in
  {input}: (n, {shape}) uint8 (float32 in the file for TensorRT 8.2 to 8.5), NHWC, RGB, values 0..255.
  Resize the picture so that its shorter side is {resize} ({interpolation}, antialiased), cut {height} x {width} out of
  the middle. Nothing else: mean ({mean}) and std ({std}) of pixels in 0..1 are inside the network already.

What comes out
  {output}: (n, {classes}) float32 logits. Softmax makes probabilities of them; labels.txt has a line for each class.

Run it once, on raw pictures of that layout, and see the logits:
  trtexec --loadEngine=PLAN --shapes={input}:1x{shape} --loadInputs={input}:picture.bin --exportOutput=answer.json

Check its answers before you rely on them: golden.npz has pictures, and the logits that this network gives on a CPU.
In Python with numpy:
  golden = numpy.load("golden.npz")
  golden["pictures"][:1].tofile("picture.bin")   # .astype("float32") first for the file with float32 input
  print(golden["logits"][0])
fp16 differs from them by about a hundredth of the largest logit, int8 by a few hundredths.

In C++ or Python load PLAN with TensorRT's own runtime: deserialize, set the input's shape, bind both tensors, enqueue.
manifest.json has all of the above for programs.
"""
