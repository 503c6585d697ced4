# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# The machinery of tests/run: selecting, building, running, counting.
# Uses $top, $quick, $jobs and $patterns of tests/run.
# shellcheck disable=SC2154

timeout_default=300
builds_ok=" none "
plans=()       # what runs beside others: "name|build|timeout|command"
plans_alone=() # what runs by itself

begin_results()
{
    logs=$top/$1
    results=$logs/results
    rm -rf "$logs"
    mkdir -p "$logs" || exit 1
    : >"$results"
    started=$SECONDS
    trap end_children INT TERM
}

# Ends what we started, and only that; each test then cleans up after itself.
end_children()
{
    local pid
    trap - INT TERM
    for pid in $(jobs -p); do
        kill -s TERM "$pid" 2>/dev/null
    done
    wait
    echo "tests/run: interrupted" >&2
    exit 130
}

# Runs COMMAND for at most SECONDS, so that ending this shell ends COMMAND as well.
run_limited()
{
    local child
    timeout --kill-after=30 "$1" bash -c "$2" &
    child=$!
    trap 'kill -s TERM "$child"' TERM
    wait "$child"
}

# --- selection ---

# Does the command line ask for NAME? With no names it asks for all.
is_wanted()
{
    local pattern
    [ ${#patterns[@]} -gt 0 ] || return 0
    for pattern in "${patterns[@]}"; do
        # shellcheck disable=SC2053 # the right side is a pattern
        if [[ $1 == $pattern || $1 == $pattern/* || $1 == $pattern.asan ||
            $1 == $pattern.valgrind ]]; then
            return 0
        fi
    done
    return 1
}

# Everything but the style tests needs a build.
wants_builds()
{
    local pattern
    [ ${#patterns[@]} -gt 0 ] || return 0
    for pattern in "${patterns[@]}"; do
        [[ $pattern == style || $pattern == style/* ]] || return 0
    done
    return 1
}

# The value of a comment `# KEY: VALUE` in SCRIPT, or DEFAULT.
setting()
{
    local value
    value=$(sed -n "s/^# $2: *//p" "$1" 2>/dev/null | head -n 1)
    echo "${value:-$3}"
}

# plan NAME BUILD SCRIPT COMMAND: run it later, if it is wanted.
plan()
{
    local name=$1 build=$2 script=$3 command=$4 seconds
    is_wanted "$name" || return 0
    if [ "$quick" = yes ] && [ "$(setting "$script" slow no)" = yes ]; then
        return 0
    fi
    seconds=$(setting "$script" timeout "$timeout_default")
    if [ "$(setting "$script" alone no)" = yes ]; then
        plans_alone+=("$name|$build|$seconds|$command")
    else
        plans+=("$name|$build|$seconds|$command")
    fi
}

# Every script of tests/KIND, with each build it asks for. Sanitizers take their time.
plan_scripts()
{
    local kind=$1 script build name suffix
    for script in tests/"$kind"/*.sh; do
        name=${script##*/}
        name=${name%.sh}
        if [ ! -e "$script" ] || [ "$name" = lib ]; then
            continue
        fi
        for build in $(setting "$script" builds release); do
            suffix=
            [ "$build" = release ] || suffix=.$build
            plan "$kind/$name$suffix" "$build" "$script" "$(printf '%q' "$script")"
        done
    done
}

# plan_unit_tests BUILD KIND SUFFIX: the tests that meson knows in build/BUILD.
plan_unit_tests()
{
    local build=$1 kind=$2 suffix=$3 name seconds command
    [[ $builds_ok == *" $build "* ]] || return 0
    while IFS='|' read -r name seconds command; do
        is_wanted "$kind/$name$suffix" &&
            plans+=("$kind/$name$suffix|$build|$seconds|$command")
    done < <(tests/list-unit-tests "build/$build" "$suffix")
}

# --- running ---

# run_build NAME COMPILER [OPTION...]: build/NAME. A failure is counted, and what needs
# this build does not run.
run_build()
{
    local name=$1 compiler=$2 log=$logs/build-$1.log begun=$SECONDS
    shift 2
    if build_in "build/$name" "$compiler" "$@" >"$log" 2>&1; then
        builds_ok+="$name "
        report passed "ok build/$name ($((SECONDS - begun)) s)"
    else
        report_failed "build/$name" "$log"
    fi
}

build_in()
{
    local dir=$1 compiler=$2
    shift 2
    local options=(-Dwerror=true -Dtests=true "$@")
    command -v "$compiler" >/dev/null || {
        echo "$compiler is not installed"
        return 1
    }
    # meson cannot change the compiler of a folder that is already set up.
    if [ -e "$dir/build.ninja" ] && [ "$(cat "$dir/compiler" 2>/dev/null)" = "$compiler" ]
    then
        meson configure "$dir" "${options[@]}" || return 1
    else
        rm -rf "$dir"
        CC=$compiler meson setup "$dir" "${options[@]}" || return 1
        echo "$compiler" >"$dir/compiler"
    fi
    ninja -C "$dir"
}

# report OUTCOME TEXT: prints TEXT, whole lines of one test at a time, and notes it.
report()
{
    {
        flock 9
        echo "$1 ${2%%$'\n'*}" >&9
        printf '%s\n' "$2"
    } 9>>"$results"
}

report_failed()
{
    local name=$1 log=$2
    report failed "FAILED $name
$(tail -n 40 "$log" | sed 's/^/    /')
    (all of it: ${log#"$top/"})"
}

# What a sanitizer of a detached daemon has to say lands in files beside the log.
run_one()
{
    local name build seconds command status begun=$SECONDS log reason
    IFS='|' read -r name build seconds command <<<"$1"
    if [[ $builds_ok != *" $build "* ]]; then
        report skipped "skipped $name: there is no build/$build"
        return
    fi
    log=$logs/${name//\//-}.log
    local sanitizer="log_path=$log.sanitizer:print_stacktrace=1:halt_on_error=1"
    local symbolizer=/usr/lib/llvm-14/bin/llvm-symbolizer
    PARALLAX_SOURCE=$top PARALLAX_BUILD=$top/build/$build \
        ASAN_OPTIONS=$sanitizer:detect_leaks=1:external_symbolizer_path=$symbolizer \
        UBSAN_OPTIONS=$sanitizer MALLOC_PERTURB_=165 \
        run_limited "$seconds" "$command" >"$log" 2>&1 </dev/null
    status=$?
    if compgen -G "$log.sanitizer.*" >/dev/null; then
        cat "$log".sanitizer.* >>"$log"
        [ "$status" -ne 0 ] && [ "$status" -ne 77 ] || status=1
    fi
    case $status in
    0) report passed "ok $name ($((SECONDS - begun)) s)" ;;
    77)
        reason=$(tail -n 1 "$log")
        report skipped "skipped $name: ${reason:-no reason given}"
        ;;
    124 | 137)
        echo "not done after $seconds s" >>"$log"
        report_failed "$name" "$log"
        ;;
    *)
        echo "exit code $status" >>"$log"
        report_failed "$name" "$log"
        ;;
    esac
}

run_planned()
{
    local entry
    [ $((${#plans[@]} + ${#plans_alone[@]})) -gt 0 ] ||
        echo "tests/run: no test to run: ${patterns[*]}" >&2
    for entry in "${plans[@]}"; do
        while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do
            wait -n
        done
        run_one "$entry" &
    done
    wait
    for entry in "${plans_alone[@]}"; do
        run_one "$entry" &
        wait
    done
}

print_results()
{
    local passed failed skipped
    passed=$(grep -c '^passed' "$results")
    failed=$(grep -c '^failed' "$results")
    skipped=$(grep -c '^skipped' "$results")
    echo "tests/run: $((SECONDS - started)) s; logs are in ${logs#"$top/"}/"
    echo "$passed passed, $failed failed, $skipped skipped"
    # To have built something proves nothing.
    [ "$failed" -eq 0 ] && grep '^passed' "$results" | grep -qv '^passed ok build/'
}
