#!/usr/bin/env bash
# See to it that a browser and PostgreSQL are on this machine, where that takes no password: the server's tests use them,
# and are left out where they are not there.
set -euo pipefail

wanted=()
command -v chromium >/dev/null || command -v google-chrome >/dev/null || wanted+=(chromium)
compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || command -v initdb >/dev/null || wanted+=(postgresql)
[ ${#wanted[@]} = 0 ] && exit
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
	echo "Installing ${wanted[*]}"
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${wanted[@]}" >/dev/null
else
	echo "Tests that need ${wanted[*]} will be left out; on Debian or Ubuntu: sudo apt install ${wanted[*]}"
fi
