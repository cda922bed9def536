# After training on the built-in scenes: map a sheet and a part of it, and score. Called by `make demo` with the interpreter.
set -e
python=$1
scenes=data/demo/permeability
run=$(ls -dt runs/permeability/demo-* | head -n 1)
$python permeability/infer.py $scenes/INSUMOS/ORTOFOTOS/PNOA_0587.tif --checkpoint $run/best_iou.pt --output-dir outputs/demo/permeability --vector shp --min-area 4
$python permeability/infer.py $scenes/INSUMOS/ORTOFOTOS/PNOA_0587.tif --checkpoint $run/best_iou.pt --output-dir outputs/demo/permeability --window 60 40 192 160
$python permeability/evaluate.py --checkpoint $run/best_iou.pt --data-root $scenes --split test
echo "look at: $run/report.html, $run/predictions.png, outputs/demo/permeability/*_figure.png, outputs/demo/permeability/PNOA_0587.shp"
