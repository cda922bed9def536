# After training on the built-in scenes: find buildings in some of them as masks and polygons, and score all. Called by
# `make demo` with the interpreter.
set -e
python=$1
scenes=data/demo/footprints
run=$(ls -dt runs/footprints/demo-* | head -n 1)
$python footprints/infer.py $scenes/test/images --checkpoint $run/best_iou.pt --output-dir outputs/demo/footprints --vector gpkg --regularize --min-area 4
$python footprints/evaluate.py --checkpoint $run/best_iou.pt --data-root $scenes --split test
echo "look at: $run/report.html, $run/predictions.png, $run/roc.png, outputs/demo/footprints/*_overlay.png"
