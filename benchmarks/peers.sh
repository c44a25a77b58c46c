#!/bin/sh
# Makes the environment that benchmarks/speed.py runs in: the peers at pinned versions over what .venv holds.
# usage: benchmarks/peers.sh PYTHON FOLDER
set -eu
folder=$2
"$(dirname "$0")/over.sh" "$1" "$folder"
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# --no-deps: no peer may bring another torch. What they import beside it stands here by name.
install="$folder/bin/python -m pip install --quiet --disable-pip-version-check --no-deps"
$install "cython==0.29.37" "setuptools==65.5.0" "wheel==0.48.0"
$install "higher==0.2.1" "torchopt==0.7.3" "optree==0.20.0"
$install "easyfsl==1.5.0" "loguru==0.7.3" "pandas==3.1.1" "pytz==2026.6" "six==1.17.0" "torchvision==0.28.0"
$install "gym==0.22.0" "gym_notices==0.1.0" "qpth==0.0.18" "graphviz==0.21"
# learn2learn's archive holds C that an older Cython wrote and Python 3.11 does not compile: it is written anew.
"$folder/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --no-binary learn2learn --dest "$folder" "learn2learn==0.2.0"
tar --extract --file "$folder/learn2learn-0.2.0.tar.gz" --directory "$folder"
rm "$folder"/learn2learn-0.2.0/learn2learn/data/*.c
(cd "$folder/learn2learn-0.2.0" && ../bin/python -W ignore setup.py --quiet build_ext --inplace > build.log 2>&1)
echo "$folder/learn2learn-0.2.0" | sed "s|^|$(pwd)/|; s|^.*//|/|" > "$site/learn2learn.pth"
"$folder/bin/python" -W ignore -c "import higher, torchopt, easyfsl, gym; print('peers are installed')"
