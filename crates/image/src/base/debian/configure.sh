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
    # pip of its own, below /usr/local, where `pip install --upgrade pip` can replace it. The wheels are
    # unpacked by hand: running pip out of its wheel compiles all of it for one use.
    packages=/usr/local/lib/python$EVOKE_PYTHON
    mkdir -p "$packages/dist-packages"
    set -- /usr/share/python-wheels/pip-*.whl
    if python3 -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then
        for wheel in /usr/share/python-wheels/setuptools-*.whl; do
            [ ! -e "$wheel" ] || set -- "$@" "$wheel"
        done
    fi
    python3 -I - "$packages/dist-packages" "$@" <<'END'
import pathlib, sys, zipfile
target = pathlib.Path(sys.argv[1])
for wheel in sys.argv[2:]:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
        info = target / next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA")).split("/")[0]
    (info / "INSTALLER").write_text("pip\n")
    record = (info / "RECORD").read_text()
    record += f"{info.name}/INSTALLER,,\n"
    if info.name.startswith("pip-"):
        major, minor = sys.version_info[:2]
        for name in ("pip", "pip3", f"pip{major}.{minor}"):
            script = pathlib.Path("/usr/local/bin") / name
            script.write_text(
                f"#!/usr/local/bin/python\nimport sys\nfrom pip._internal.cli.main import main\n"
                "sys.exit(main())\n"
            )
            script.chmod(0o755)
            record += f"../../../bin/{name},,\n"
    (info / "RECORD").write_text(record)
END
    # Programs that look for packages where other builds of Python have them find them.
    [ -e "$packages/site-packages" ] || ln -s dist-packages "$packages/site-packages"
fi

rm -rf /var/lib/evoke-configure /var/cache/apt/* /var/lib/apt/lists/* /var/cache/debconf/*-old \
    /var/lib/dpkg/*-old /var/log/* /tmp/* /etc/machine-id
mkdir -p /var/cache/apt/archives/partial /var/lib/apt/lists/partial
: > /etc/machine-id
