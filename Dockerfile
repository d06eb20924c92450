# The mirror as an image: docker build --tag mirror .
#
# BASE is any image with a Python >= 3.11 that can make environments. For a build that can be repeated, name it with its
# digest: --build-arg BASE=docker.io/library/python:3.13-slim-trixie@sha256:...
# PINS is the file of requirements/ that is installed: runtime is smaller, without `mirror node-config verify`.
# An index of packages other than the usual one is named by a file that the image does not get:
# --secret id=pip.conf,src=$HOME/.config/pip/pip.conf, and --secret id=pip.crt,src=ca.pem for what that file calls
# /etc/pip.crt.
ARG BASE=docker.io/library/python:3.13-slim-trixie

FROM ${BASE} AS builder
ARG PINS=nodes
WORKDIR /build
COPY requirements requirements
# The environment has no pip of its own: one beside it fills it.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=pip.crt,target=/etc/pip.crt \
    python3 -m venv tools && python3 -m venv --without-pip /opt/mirror \
    && tools/bin/pip --no-cache-dir install --quiet --require-hashes --no-compile --requirement requirements/build.txt \
    && tools/bin/pip --no-cache-dir --python /opt/mirror/bin/python3 install --quiet --require-hashes \
        --requirement "requirements/$PINS.txt"
COPY pyproject.toml README.md LICENSE ./
COPY mirror mirror
RUN tools/bin/pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir dist . \
    && tools/bin/pip --python /opt/mirror/bin/python3 install --quiet --no-index --no-deps dist/*.whl \
    && rm -f /opt/mirror/bin/[Aa]ctivate* /opt/mirror/.gitignore

# What is removed here is in no layer of the image, since the last stage takes the files that are left.
FROM ${BASE} AS root
RUN <<'TRIM'
set -eu
library=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
cd "$library"
rm -rf ensurepip idlelib lib2to3 pydoc_data test tkinter turtledemo config-* site-packages dist-packages \
    /usr/lib/python3/dist-packages
rm -rf /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/bin/pydoc* /usr/local/include
rm -rf /usr/share/doc-base /usr/share/info /usr/share/locale /usr/share/man /usr/lib/*-linux-gnu/gconv
find /usr/share/doc -type f ! -name copyright -delete # what licences ask for stays, and what scanners read in /var/lib/dpkg
# Nothing is installed into a finished image. What goes by dpkg is gone for scanners, too.
dpkg --purge --force-depends --force-remove-essential --force-remove-protected \
    $(dpkg-query --show --showformat='${Package} ' apt 'libapt-pkg*' sqv gpgv perl-base 'python3-*-whl' 2>/dev/null)
rm -rf /etc/apt /var/lib/apt /var/cache/* /var/log/* /root/.cache
find / -xdev -type f -perm /6000 -exec chmod ug-s {} +
# The root is read-only when it runs: what is not compiled now is compiled anew at each start.
find . -name '*.py[co]' -delete
python3 -m compileall -q -j 0 .
echo 'mirror:x:65532:65532::/var/lib/mirror:/usr/sbin/nologin' >>/etc/passwd
echo 'mirror:x:65532:' >>/etc/group
mkdir -p /var/lib/mirror
chown 65532:65532 /var/lib/mirror
chmod 700 /var/lib/mirror
TRIM
COPY deploy/mirror.yaml /etc/mirror/mirror.yaml

FROM scratch
COPY --from=root / /
COPY --from=builder /opt/mirror /opt/mirror
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="mirror" \
    org.opencontainers.image.description="A caching pull-through proxy for container registries" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.created="${CREATED}" \
    org.opencontainers.image.source="${SOURCE}"
# HEALTH is for those who move the admin port.
ENV PATH=/opt/mirror/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    HEALTH=http://127.0.0.1:5001/livez
USER 65532:65532
VOLUME /var/lib/mirror
EXPOSE 5000 5001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(os.environ['HEALTH'], timeout=4)"]
ENTRYPOINT ["mirror"]
CMD ["serve", "--config", "/etc/mirror/mirror.yaml"]
