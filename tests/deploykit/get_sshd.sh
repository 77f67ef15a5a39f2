#!/bin/sh
# Finds an SSH server for the tests of devices: the machine's own, else Debian's. Where nothing works those tests are skipped,
# and say so. A server is never left running: the tests start their own, on a free port of the loopback.
set -u
unpacked=build/sshd

for found in "$(command -v sshd)" /usr/sbin/sshd /usr/local/sbin/sshd $unpacked/usr/sbin/sshd; do
    if [ -n "$found" ] && [ -x "$found" ]; then
        exit 0
    fi
done
if ! command -v apt-get >/dev/null; then
    echo "no sshd here, and no apt-get to bring one: the tests of devices are skipped"
    exit 0
fi
# Where systemd runs, installing the package would start a server for everybody.
if [ "$(id -u)" = 0 ] && [ ! -d /run/systemd/system ]; then
    echo "installing Debian's openssh-server, which plays the device in tests (no server is started but theirs)"
    apt-get update -qq >/dev/null 2>&1
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends openssh-server >/dev/null 2>&1 && exit 0
    echo "openssh-server could not be installed: the tests of devices are skipped"
    exit 0
fi
mkdir -p $unpacked/packages && cd $unpacked/packages || exit 0
apt-get download -qq openssh-server libwrap0 >/dev/null 2>&1
for package in *.deb; do
    [ -e "$package" ] && dpkg -x "$package" ..
done
[ -x ../usr/sbin/sshd ] || echo "openssh-server could not be unpacked: the tests of devices are skipped"
exit 0
