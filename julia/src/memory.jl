# Whether there is memory for what is asked for, before anything is allocated.

# What a circuit takes for each unit, each edge and each entry of the inputs' tables, in bytes.
const UNIT_BYTES, EDGE_BYTES, ENTRY_BYTES = 50, 12, 4

"""
Throws an `ArgumentError` that begins with `what`, the parameters to blame, unless this machine has memory for a circuit of so many
units, edges and entries of tables, and for as much again: less is of no use to learning.
"""
function check_room(what::String, units::Real, edges::Real, entries::Real)
    check_memory(what, "a circuit", 2 * (UNIT_BYTES * Float64(units) + EDGE_BYTES * Float64(edges) + ENTRY_BYTES * Float64(entries)))
    units <= typemax(Int32) || throw(ArgumentError("$what: a circuit of this size has $units units, wanted at most $(typemax(Int32))"))
end

function check_memory(what::String, thing::String, bytes::Real)
    most = machine_memory()
    bytes <= most ||
        throw(ArgumentError("$what: $thing of this size takes $(in_words(bytes)) of memory, wanted at most the $(in_words(most)) of this machine"))
end

"Bytes of memory that this process may have: the machine's, or what a container or `ulimit -v` leaves of it."
function machine_memory()
    limits = [Float64(Sys.total_memory())]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
        isfile(path) && push!(limits, something(tryparse(Float64, strip(read(path, String))), Inf))
    end
    if isfile("/proc/self/limits")
        line = filter(startswith("Max address space"), readlines("/proc/self/limits"))
        append!(limits, [something(tryparse(Float64, split(text)[4]), Inf) for text in line])
    end
    return minimum(limits)
end

"A number of bytes: `5.8 GB`."
function in_words(bytes::Real)
    size, units = Float64(bytes), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while size >= 1000 && length(units) > 1
        size /= 1000
        popfirst!(units)
    end
    return "$(round(size; sigdigits=3)) $(units[1])"
end

"Throws an `ArgumentError` unless all of these sizes are at least 1."
function check_positive(; sizes...)
    for (name, value) in sizes
        value >= 1 || throw(ArgumentError("$name = $value: want at least 1"))
    end
end

"Parameters as an error names them."
named(; parameters...) = join(("$name = $value" for (name, value) in parameters), ", ")
