#!/usr/bin/env bash
# Build the site: docs/build.sh FOLDER. The notebooks run once, top to bottom, in a copy of this folder; the pages show
# what they gave. Needs `pip install -e ".[docs]"` and no network. A warning is an error.
set -euo pipefail
site=$(realpath -m "${1:?give the folder for the site: docs/build.sh site}")
source=$(dirname "$(realpath "${BASH_SOURCE[0]}")")

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # the notebooks' models are tiny: threads would wait for each other
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$source" "$copy/docs"
python -m pytest --nbmake --overwrite --nbmake-timeout=300 --rootdir "$copy" -p no:cacheprovider "$copy/docs/notebooks"
python -m sphinx -W --keep-going -q -b html -d "$copy/doctrees" "$copy/docs" "$site"
echo "site: $site/index.html"
