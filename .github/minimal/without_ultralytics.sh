#!/usr/bin/env bash
# The whole job with torchvision detectors: teacher, distilled student, COCO numbers, ONNX file. ultralytics is not there.
# Usage: without_ultralytics.sh BIN, the folder of `python` and `kd-vision`.
set -euo pipefail
bin=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

if "$bin/python" -c 'import ultralytics' 2>/dev/null; then
  echo "ultralytics is installed: this proves nothing" >&2
  exit 1
fi

"$bin/kd-vision" data synth --out scenes --train 8 --val 4 --test 4 --unlabelled 0 --image-size 128
cat >teacher.yaml <<'YAML'
data: scenes/data.yaml
image_size: 128
student: {family: torchvision, model: retinanet_mobilenet_v2_fpn}
train: {epochs: 1, batch_size: 4, workers: 0, warmup_epochs: 0}
YAML
cat >student.yaml <<'YAML'
data: scenes/data.yaml
image_size: 128
teacher: {family: torchvision, weights: teacher/student.pt}
student: {family: torchvision, model: fcos_mobilenet_v3_small_fpn}
distill: [{loss: feature_pkd}]
allow_weak_teacher: true
train: {epochs: 1, batch_size: 4, workers: 0, warmup_epochs: 0}
YAML
"$bin/kd-vision" train teacher.yaml --out teacher
"$bin/kd-vision" train student.yaml --out student
"$bin/kd-vision" evaluate student --data scenes/data.yaml --split test
"$bin/kd-vision" export student --out student.onnx --data scenes/data.yaml

# What needs the package says so in one line, exit status 2.
echo 'student: {family: ultralytics, model: yolov8n}' | cat - <(grep -v '^student' teacher.yaml) >yolo.yaml
status=0
"$bin/kd-vision" check yolo.yaml >refusal.txt 2>&1 || status=$?
cat refusal.txt
test "$status" = 2
grep -q 'pip install kd-vision\[ultralytics\]' refusal.txt
