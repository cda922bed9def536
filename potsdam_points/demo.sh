# After training on the built-in scenes: segment some of them and score all. Called by `make demo` with the interpreter.
set -e
python=$1
scenes=data/demo/potsdam_points
run=$(ls -dt runs/potsdam_points/demo-* | head -n 1)
$python potsdam_points/infer.py $scenes/Images/Image_6[0-3].tif --checkpoint $run/best_iou.pt --output-dir outputs/demo/potsdam_points
$python potsdam_points/evaluate.py --checkpoint $run/best_iou.pt --data-root $scenes --split val
echo "look at: $run/report.html, $run/predictions.png, outputs/demo/potsdam_points/Image_60_overlay.png"
