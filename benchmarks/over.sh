#!/bin/sh
# Makes an environment over what .venv holds, which it reads and never changes. usage: benchmarks/over.sh PYTHON FOLDER
set -eu
python=$1
folder=$2
rm -rf "$folder"
"$python" -m venv "$folder"
# By addsitedir, so that the .pth files of .venv count too: metaopt itself is installed by one.
"$python" -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
    > "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/metaopt.pth"
