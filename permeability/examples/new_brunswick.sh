# From land-cover polygons to a shapefile of permeable ground: masks, training, scores, map.
#
#   sh permeability/examples/new_brunswick.sh DATA OUT [MINUTES] [PYTHON]
#
# DATA     folder with orthophotos (*.tif) and BakerLake_2017_clipped.gpkg, whose field Quatreclasses says what the ground is
# OUT      new folder: masks/, run/ (the training), maps/ (the shapefiles)
# MINUTES  time budget of the training (default 10)
# PYTHON   interpreter (default .venv/bin/python)
#
# For data of your own change the vector file, the field and the map: one line per value of the field.
set -e
cd "$(dirname "$0")/../.."
data=$1
out=$2
minutes=${3:-10}
python=${4:-.venv/bin/python}

echo "1. polygons to masks: validation and test are the two ends of each sheet"
$python permeability/make_masks.py "$data/BakerLake_2017_clipped.gpkg" --ortho "$data" --out "$out/masks" \
  --field Quatreclasses --map permeability/examples/new_brunswick_map.yaml \
  --split block --val-fraction 0.15 --test-fraction 0.15

echo "2. training; orthophotos and masks are joined by where they lie"
$python permeability/train.py --images "$data" --labels "$out/masks" --config permeability/best.yaml \
  --max-minutes "$minutes" --output-dir "$out/run"

echo "3. scores on the test part"
$python permeability/evaluate.py --checkpoint "$out/run/best_iou.pt" --images "$data" --labels "$out/masks" --split test

echo "4. the map of every sheet, as raster and as shapefile"
$python permeability/infer.py "$data" --checkpoint "$out/run/best_iou.pt" --vector shp --min-area 20 --output-dir "$out/maps"

echo "5. what the shapefiles are"
for file in "$out"/maps/*.shp; do
  $python -c "import sys, pyogrio; i = pyogrio.read_info(sys.argv[1]); print(sys.argv[1], i['crs'], i['features'], 'polygons,', *i['fields'])" "$file"
  if command -v ogrinfo > /dev/null; then ogrinfo -so -al "$file"; fi
done
