# After training on the built-in scenes: segment some and score the test part. Called by `make demo` with the interpreter.
set -e
python=$1
scenes=data/demo/rooftops
run=$(ls -dt runs/rooftops/demo-* | head -n 1)
$python rooftops/infer.py $scenes/images/images/scene_00[0-3].tif --checkpoint $run/best_iou.pt --output-dir outputs/demo/rooftops
$python rooftops/evaluate.py --checkpoint $run/best_iou.pt --data-root $scenes
echo "look at: $run/report.html, $run/predictions.png, outputs/demo/rooftops/scene_000_overlay.png"
