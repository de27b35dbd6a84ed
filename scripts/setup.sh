#!/usr/bin/env bash
# Prepares a checkout for `cargo build`: system packages, Rust, and libtorch in .libtorch/.
#
#   scripts/setup.sh         libtorch for CPUs (a download of about 600 MB, 1.2 GB on disk)
#   scripts/setup.sh --gpu   libtorch with everything CUDA needs (several GB)
#   scripts/setup.sh --test  also what only the tests need: cargo-nextest, Slurm, shellcheck, ip, and Python packages (an S3 server,
#                            writers of Parquet files, NCCL)
#
# For Debian and Ubuntu on x86_64, as root or with sudo; on other systems it works where the tools are there already.
# What is present is left alone, so running it again is quick and needs no network. libtorch and the Python packages are
# kept once per user in ${XDG_CACHE_HOME:-~/.cache}/ilm and linked from the checkout as .libtorch and .python-tests; a
# complete directory in the place of a link is kept.
set -euo pipefail

readonly TORCH=2.13.0
# libtorch does not depend on Python, but its wheels are named after one: a fixed one suits every local python3.
readonly WHEEL_PYTHON=3.12
readonly OLDEST_GLIBC=2.28
readonly OLDEST_RUST=1.95
# What the tests of the data pipeline talk to (moto plays S3) and read the files of; their servers and writers run as
# `.python-tests/bin/python -m MODULE`. NCCL, in the version that libtorch comes with, is tested as far as it goes without a GPU.
# Newer releases of the writers leave out Python 3.10, which Ubuntu 22.04 has; these have wheels for 3.10 to 3.13.
readonly TEST_PACKAGES=(moto==5.2.5 pyarrow==25.0.1 duckdb==1.5.6 polars==2.0.0 nvidia-nccl-cu13==2.29.7)

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
set_name=cpu
for_tests=false
missing_libraries=

main() {
    parse_arguments "$@"
    check_machine
    install_packages
    install_rust
    install_libtorch
    check_libraries "$root/.libtorch" || fail "libraries that libtorch needs are missing: $missing_libraries"
    if $for_tests; then
        install_nextest
        install_python_tests
    fi
    say "ready: build with cargo build --release"
}

say() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# at_least VERSION OLDEST
at_least() { [[ $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

parse_arguments() {
    local argument
    for argument in "$@"; do
        case $argument in
            --gpu) set_name=gpu ;;
            --test) for_tests=true ;;
            -h | --help)
                sed -n '2,/^set/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
                exit 0
                ;;
            *)
                printf 'setup: unknown argument %s; see --help\n' "$argument" >&2
                exit 2
                ;;
        esac
    done
}

check_machine() {
    local machine glibc
    machine=$(uname -m)
    [[ $(uname -s) == Linux && $machine == x86_64 ]] ||
        fail "this machine is $(uname -s) on $machine, but libtorch is set up for Linux on x86_64 only"
    glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null) ||
        fail "this system has no glibc, which libtorch $TORCH needs in version $OLDEST_GLIBC or newer"
    at_least "${glibc#glibc }" "$OLDEST_GLIBC" ||
        fail "this system has $glibc, but libtorch $TORCH needs $OLDEST_GLIBC or newer"
}

# Names the packages of which nothing suitable is found, whoever installed it.
missing_packages() {
    has g++ && has make || echo build-essential
    has pkg-config || echo pkg-config
    # Another MPI's programs are called the same.
    says_open_mpi "${MPICC:-mpicc}" --showme:version || echo libopenmpi-dev
    says_open_mpi mpirun --version || echo openmpi-bin
    has clang || echo clang
    has_libclang || echo libclang-dev
    has python3 || echo python3
    python_with_pip >/dev/null || echo python3-pip
    has curl || echo curl
    [[ -e /etc/ssl/certs/ca-certificates.crt || -e /etc/pki/tls/certs/ca-bundle.crt ]] || echo ca-certificates
    has git || echo git
    if $for_tests; then
        has shellcheck || echo shellcheck
        # Some are in sbin, which is not in everybody's PATH.
        PATH=$PATH:/usr/sbin:/sbin
        { has ip && has bridge; } || echo iproute2
        { has munged && has slurmctld && has slurmd && has srun; } ||
            printf '%s\n' munge slurmctld slurmd slurm-client slurm-wlm-basic-plugins
        python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    fi
}

says_open_mpi() { "$@" 2>/dev/null | grep -q 'Open MPI'; }

# The first Python that has pip, which a virtual environment that is active may lack.
python_with_pip() {
    local python
    for python in python3 /usr/bin/python3; do
        "$python" -m pip --version >/dev/null 2>&1 && echo "$python" && return
    done
    return 1
}

has_libclang() {
    # A glob that matches nothing stays as it is, and no such file exists.
    local file
    for file in ${LIBCLANG_PATH:+"$LIBCLANG_PATH"/libclang*.so*} /usr/lib/llvm-*/lib/libclang*.so* \
        /usr/lib/*/libclang*.so* /usr/lib64/libclang*.so* /usr/local/lib/libclang*.so*; do
        [[ -e $file ]] && return 0
    done
    return 1
}

install_packages() {
    local packages as_root=()
    mapfile -t packages < <(missing_packages)
    ((${#packages[@]})) || return 0
    has apt-get || fail "these Debian packages, or what this system calls them, are needed first: ${packages[*]}"
    if ((EUID != 0)); then
        has sudo || fail "without root or sudo these packages cannot be installed: ${packages[*]}"
        as_root=(sudo)
    fi
    say "installing ${packages[*]}"
    "${as_root[@]}" apt-get update -qq || fail "the package lists cannot be fetched, so these are missing: ${packages[*]}"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" \
        >/dev/null || fail "apt-get could not install ${packages[*]}"
    [[ $(missing_packages) != *openmpi* ]] ||
        fail "Open MPI is installed, but mpicc or mpirun is another MPI's: let Open MPI's folder come first in PATH"
}

rust_version() { cargo --version 2>/dev/null | cut -d ' ' -f 2; }

install_rust() {
    # Before the system's own, which may be too old; and a shell opened before rustup was installed does not have it in its PATH.
    export PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    if ! has cargo || { ! at_least "$(rust_version)" "$OLDEST_RUST" && ! has rustup; }; then
        say "installing Rust"
        local installer
        installer=$(curl --proto '=https' --tlsv1.2 -fsSL https://sh.rustup.rs) ||
            fail "cargo is missing or too old and https://sh.rustup.rs cannot be reached; install Rust $OLDEST_RUST or newer"
        # It refuses to stand beside a cargo that the system has unless it is told that this is meant.
        RUSTUP_INIT_SKIP_PATH_CHECK=yes sh -s -- -y --quiet --profile minimal --component clippy --component rustfmt \
            <<<"$installer" || fail "rustup could not install Rust"
        hash -r
        say "new shells find cargo; in this one run: . ${CARGO_HOME:-$HOME/.cargo}/env"
    elif ! at_least "$(rust_version)" "$OLDEST_RUST"; then
        say "updating Rust"
        rustup update --no-self-update stable || fail "rustup could not update Rust to $OLDEST_RUST or newer"
    fi
    at_least "$(rust_version)" "$OLDEST_RUST" ||
        fail "cargo is version $(rust_version), but $OLDEST_RUST or newer is needed; choose one by: rustup default stable"
}

install_nextest() {
    has cargo-nextest && return
    say "installing cargo-nextest"
    cargo install --quiet --locked cargo-nextest || fail "cargo could not install cargo-nextest, which runs the tests"
}

# is_complete FOLDER: whether it holds the right version, with what the chosen set needs.
is_complete() {
    grep -qsE "^__version__ = '$TORCH(\+|')" "$1/torch/version.py" && check_libraries "$1"
}

# check_libraries FOLDER: sets missing_libraries to those that the loader cannot find for libtorch in FOLDER.
check_libraries() {
    local library found
    missing_libraries=
    for library in libtorch_cpu $([[ $set_name == gpu ]] && echo libtorch_cuda); do
        found=$(ldd "$1/torch/lib/$library.so" 2>/dev/null) || { missing_libraries+=" $library.so"; continue; }
        # libcuda comes with the driver of a machine that has a GPU, which the one that builds need not have.
        missing_libraries+=$(awk '/not found/ && $1 != "libcuda.so.1" { printf " %s", $1 }' <<<"$found")
    done
    [[ -z $missing_libraries ]]
}

install_libtorch() {
    is_complete "$root/.libtorch" && return
    if [[ -d $root/.libtorch && ! -L $root/.libtorch ]]; then
        fail "$root/.libtorch is not a complete libtorch $TORCH for $set_name; move it away and run this again"
    fi
    link_from_cache "libtorch-$TORCH-$set_name" .libtorch is_complete download
}

# has_test_packages FOLDER: whether it is a virtual environment with the right versions.
has_test_packages() {
    "$1/bin/python" -c 'if True:
        import importlib.metadata, sys
        wanted = (package.split("==") for package in sys.argv[1:])
        sys.exit(any(importlib.metadata.version(name) != version for name, version in wanted))
    ' "${TEST_PACKAGES[@]}" 2>/dev/null
}

install_python_tests() {
    has_test_packages "$root/.python-tests" && return
    if [[ -d $root/.python-tests && ! -L $root/.python-tests ]]; then
        fail "$root/.python-tests lacks some of ${TEST_PACKAGES[*]}; move it away and run this again"
    fi
    local versions=${TEST_PACKAGES[*]//==/-}
    link_from_cache "python-tests-${versions// /-}" .python-tests has_test_packages make_test_environment
}

# make_test_environment FOLDER: a virtual environment may be moved as long as its scripts are run as modules.
make_test_environment() {
    say "installing ${TEST_PACKAGES[*]} for the tests"
    { python3 -m venv "$1" &&
        "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --only-binary=:all: \
            "${TEST_PACKAGES[@]/moto==/moto[server]==}"; } ||
        fail "pip could not install ${TEST_PACKAGES[*]}; is PyPI within reach, and is there space in ${1%/*}?"
}

# link_from_cache NAME LINK CHECK MAKE: links LINK of the checkout to the folder NAME of the user's cache, which MAKE
# fills if CHECK fails for it; both are given the folder.
link_from_cache() {
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/ilm link=$root/$2
    mkdir -p "$cache"
    fill_cache "$cache" "$cache/$1" "$3" "$4"
    # Renamed into place, so that a build at this moment finds either the old link or the new one.
    ln -s "$cache/$1" "$link.$$"
    mv -T "$link.$$" "$link"
}

# fill_cache CACHE FOLDER CHECK MAKE: a second run waits for the first.
fill_cache() {
    local cache=$1 folder=$2 check=$3 make=$4 lock new
    exec {lock}>"$cache/lock"
    flock "$lock"
    if ! "$check" "$folder"; then
        # Only one run is here at a time, so what lies around is left from one that was killed.
        rm -rf "$folder" "$cache"/new.*
        new=$(mktemp -d "$cache/new.XXXXXX")
        # Expanded now, because the variable is local.
        # shellcheck disable=SC2064
        trap "rm -rf $(printf %q "$new")" EXIT
        "$make" "$new"
        "$check" "$new" || fail "what was installed into $new is not complete:$missing_libraries"
        mv -T "$new" "$folder"
        trap - EXIT
    fi
    exec {lock}>&-
}

# download FOLDER: fills it with the wheels of the chosen set.
download() {
    say "installing libtorch $TORCH ($set_name)"
    local packages=("torch==$TORCH") options=() platform python
    python=$(python_with_pip) || fail "no Python here has pip, by which libtorch is installed"
    if [[ $set_name == cpu ]]; then
        # The default wheel is one for CUDA; these two are all that its CPU part loads of that.
        packages+=('nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*')
        options+=(--no-deps)
    fi
    # pip takes the names of platforms literally: an older one does not stand for those before it.
    for platform in manylinux_2_{28..17} manylinux2014; do
        options+=(--platform "${platform}_x86_64")
    done
    export PIP_ROOT_USER_ACTION=ignore
    "$python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile --target "$1" \
        --only-binary=:all: --implementation cp --python-version "$WHEEL_PYTHON" "${options[@]}" "${packages[@]}" ||
        fail "pip could not install torch $TORCH; is PyPI within reach, and is there space in ${1%/*}?"
}

main "$@"
