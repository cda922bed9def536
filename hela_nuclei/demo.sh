# After training on the built-in scenes: segment one sequence, score all, make a video. Called by `make demo` with the interpreter.
set -e
python=$1
scenes=data/demo/hela_nuclei
run=$(ls -dt runs/hela_nuclei/demo-* | head -n 1)
$python hela_nuclei/infer.py $scenes/01 --checkpoint $run/best_iou.pt --output-dir outputs/demo/hela_nuclei
$python hela_nuclei/evaluate.py --checkpoint $run/best_iou.pt --data-root $scenes
$python hela_nuclei/make_video.py $scenes/01 --checkpoint $run/best_iou.pt --style contours --out outputs/demo/hela_nuclei/01.mp4
echo "look at: $run/report.html, $run/predictions.png, outputs/demo/hela_nuclei/t000_overlay.png, outputs/demo/hela_nuclei/01.mp4"
