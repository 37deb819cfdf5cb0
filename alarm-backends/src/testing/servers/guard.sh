# Holds one server process. $1 is its directory, the rest its command line.
# Reads orders from standard input, one a line, and answers each with one line. At the end of the input, which comes with the
# end of the process that started this, however it ended: kills the server and removes the directory.
dir=$1
shift
pid=
# An interrupt from the keyboard reaches the whole foreground group; the tests get it too, and their end is the sign.
trap '' INT TERM HUP QUIT

# A Postgres backend leaves its parent's process group, so signals go to the children too. The parent stands still meanwhile,
# so that it starts no more of them.
signal() {
    [ -n "$pid" ] || return 0
    kill -STOP "$pid" 2>/dev/null || return 0
    children=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null)
    [ -z "$children" ] || kill "-$1" $children 2>/dev/null
    kill "-$1" "$pid" 2>/dev/null
    [ "$1" = STOP ] || [ "$1" = KILL ] || kill -CONT "$pid" 2>/dev/null
    if [ "$1" = KILL ]; then
        wait "$pid" 2>/dev/null
        pid=
    fi
    return 0
}

while read -r order; do
    case $order in
    start)
        if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then
            echo "already running"
            continue
        fi
        "$@" >>"$dir/log" 2>&1 </dev/null &
        pid=$!
        echo "$pid"
        ;;
    alive)
        if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then echo yes; else echo no; fi
        ;;
    *)
        signal "$order"
        echo done
        ;;
    esac
done
signal KILL
# Children of a killed server may take a moment to go.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf "$dir" 2>/dev/null && break
    sleep 0.1
done
