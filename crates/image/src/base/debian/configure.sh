#!/bin/sh
# Configures unpacked packages in a fresh image. Runs once, as root of a container without a network.
set -e
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true LC_ALL=C.UTF-8
cd /var/lib/dpkg/info

# dpkg ran no preinst scripts, since it did not unpack the packages.
for script in *.preinst; do
    [ -x "$script" ] || continue
    package=${script%.preinst}
    DPKG_MAINTSCRIPT_NAME=preinst DPKG_MAINTSCRIPT_PACKAGE=${package%%:*} \
    DPKG_MAINTSCRIPT_ARCH=$(dpkg --print-architecture) DPKG_RUNNING_VERSION=1.20 DPKG_ADMINDIR=/var/lib/dpkg \
        "./$script" install || { echo "preinst of $package failed" >&2; exit 1; }
done

dpkg --force-unsafe-io --configure -a

if [ -n "$EVOKE_PYTHON" ]; then
    for name in python python3 "python$EVOKE_PYTHON"; do
        ln -sf "/usr/bin/python$EVOKE_PYTHON" "/usr/local/bin/$name"
    done
    # pip of its own, below /usr/local, where `pip install --upgrade pip` can replace it.
    pip=$(ls /usr/share/python-wheels/pip-*.whl)
    tools=pip
    if ls /usr/share/python-wheels/setuptools-*.whl >/dev/null 2>&1 && \
        python3 -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then
        tools="pip setuptools"
    fi
    PIP_ROOT_USER_ACTION=ignore python3 "$pip/pip" install --quiet --no-cache-dir --no-index \
        --find-links /usr/share/python-wheels --ignore-installed $tools
    # Programs that look for packages where other builds of Python have them find them.
    packages=/usr/local/lib/python$EVOKE_PYTHON
    [ -e "$packages/site-packages" ] || ln -s dist-packages "$packages/site-packages"
fi

rm -rf /var/lib/evoke-configure /var/cache/apt/* /var/lib/apt/lists/* /var/cache/debconf/*-old \
    /var/lib/dpkg/*-old /var/log/* /tmp/* /etc/machine-id
mkdir -p /var/cache/apt/archives/partial /var/lib/apt/lists/partial
: > /etc/machine-id
