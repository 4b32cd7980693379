#!/usr/bin/env bash
# See to it that WordNet, which gives synonyms, is on this machine: the tests of augmentation need it.
set -euo pipefail
PYTHON=${PYTHON:-python3}

there() { "$PYTHON" -c 'from palate.satisfaction.wordnet import wordnet; wordnet()' 2>/dev/null; }

there && exit
echo "Installing WordNet"
if command -v apt-get >/dev/null; then
	sudo=$([ "$(id -u)" = 0 ] || echo sudo)
	$sudo apt-get update -qq
	DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq wordnet-base wordnet-sense-index >/dev/null
else
	"$PYTHON" -m nltk.downloader -q wordnet
fi
there || { echo "WordNet is still not found; see src/palate/satisfaction/wordnet.py" >&2; exit 1; }
