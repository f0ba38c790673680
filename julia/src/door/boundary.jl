"""
The C boundary of LVDJuice: one C function, `invoke`, through which another language (Python) calls any function of the
package by name. Arrays cross by pointer, in both directions, without a copy; what is neither a number, a string nor an
array stays here and crosses as a handle.

An argument array is borrowed: its memory belongs to the caller, who promises it until the call returns, and on as long as an
object lives that the call returned as a handle and that [`borrows`](@ref) it; what else is kept must be copied. Which
arguments a function writes to, [`writes`](@ref) says: others may lie in memory that is read-only. A result stays in
`REGISTRY` until the caller releases it.
"""
module Boundary

using LinearAlgebra: BLAS

const MAX_DIMS = 6

"One argument or result, tagged by `kind`. `_Value` in pyjuice_lvd/julia/values.py has the same layout."
struct Value
    kind::Int32
    eltype::Int32                   # arrays: index into ELTYPES. ERROR: 1 if the caller's input is to blame. HANDLE: 1 if it borrows
    ndims::Int32
    payload::UInt64                 # the bits of a number, or an address
    dims::NTuple{MAX_DIMS,Int64}    # of an array, in Julia's order; of a string: (bytes, 0, ...)
    owner::Int64                    # a key of REGISTRY, 0 if none
end

const NOTHING = Int32(0)
const BOOL = Int32(1)
const INT = Int32(2)
const FLOAT = Int32(3)
const STRING = Int32(4)
const ARRAY = Int32(5)
const HANDLE = Int32(6)
const ERROR = Int32(7)
const ARGUMENT = Int32(8)           # the result is the argument number `payload` itself
const READ_ONLY = Int32(9)          # an argument: an array that must not be written to

const ELTYPES = (Bool, UInt8, Int8, UInt16, Int16, UInt32, Int32, UInt64, Int64, Float32, Float64)
const NO_DIMS = ntuple(_ -> Int64(0), MAX_DIMS)

const REGISTRY = Dict{Int64,Any}()
const LAST_KEY = Ref{Int64}(0)
const STRINGS = String[]            # those that the last call's results point into

function register(x)
    LAST_KEY[] += 1
    REGISTRY[LAST_KEY[]] = x
    return LAST_KEY[]
end

"Forget results. Keys are never used twice, so that releasing one again does no harm."
function release(keys::Vector{Int64})
    foreach(key -> delete!(REGISTRY, key), keys)
    return nothing
end

"How many results the caller still holds."
registered() = length(REGISTRY)

"""
The numbers of the arguments that `f` writes to, or makes something of that does. By Julia's convention a function whose name
ends in `!` changes its first argument; others have methods here.
"""
writes(f) = ()
writes(f::Function) = endswith(string(nameof(f)), '!') ? (1,) : ()

"Whether `x`, the result of a call with these arguments, may use their arrays as long as it lives. No is for what copies them."
borrows(x, arguments) = true

function decode(v::Value)
    v.kind == NOTHING && return nothing
    v.kind == BOOL && return v.payload != 0
    v.kind == INT && return reinterpret(Int64, v.payload)
    v.kind == FLOAT && return reinterpret(Float64, v.payload)
    v.kind == STRING && return unsafe_string(Ptr{UInt8}(UInt(v.payload)), v.dims[1])
    v.kind == HANDLE && return REGISTRY[v.owner]
    v.kind == ARRAY || v.kind == READ_ONLY || throw(ArgumentError("the boundary knows no argument of kind $(v.kind)"))
    dims = ntuple(i -> Int(v.dims[i]), Int(v.ndims))
    0 in dims && return Array{ELTYPES[v.eltype]}(undef, dims)   # its address is none
    return unsafe_wrap(Array, Ptr{ELTYPES[v.eltype]}(UInt(v.payload)), dims)
end

scalar(kind, bits) = Value(kind, 0, 0, bits, NO_DIMS, 0)

function text(kind, s::String; eltype = 0, owner = 0)
    push!(STRINGS, s)
    dims = ntuple(i -> i == 1 ? Int64(sizeof(s)) : Int64(0), MAX_DIMS)
    return Value(kind, eltype, 0, UInt64(UInt(pointer(s))), dims, owner)
end

"Encode one result; `arguments` are those of the call, whose memory is the caller's own."
function encode(x, arguments)
    if x isa Array && eltype(x) in ELTYPES && ndims(x) <= MAX_DIMS
        position = findfirst(a -> a === x, arguments)
        position === nothing || return scalar(ARGUMENT, UInt64(position))
        dims = ntuple(i -> i <= ndims(x) ? Int64(size(x, i)) : Int64(0), MAX_DIMS)
        code = findfirst(T -> T === eltype(x), ELTYPES)
        return Value(ARRAY, code, ndims(x), UInt64(UInt(pointer(x))), dims, register(x))
    elseif x === nothing
        return scalar(NOTHING, UInt64(0))
    elseif x isa Bool
        return scalar(BOOL, UInt64(x))
    elseif x isa Integer && typemin(Int64) <= x <= typemax(Int64)
        return scalar(INT, reinterpret(UInt64, Int64(x)))
    elseif x isa Union{Float16,Float32,Float64}
        return scalar(FLOAT, reinterpret(UInt64, Float64(x)))
    elseif x isa AbstractString
        return text(STRING, String(x))
    end
    return text(HANDLE, string(typeof(x)); eltype = borrows(x, arguments) ? 1 : 0, owner = register(x))
end

"The exception that a task, a composite or `include_string` wrapped."
function root_cause(e)
    e isa TaskFailedException && return root_cause(e.task.exception)
    e isa CompositeException && !isempty(e.exceptions) && return root_cause(first(e.exceptions))
    e isa LoadError && return root_cause(e.error)
    return e
end

is_input_error(e) = e isa Union{ArgumentError,DimensionMismatch,DomainError}

function message(e)
    e isa Union{ArgumentError,DimensionMismatch} && return string(e.msg)
    e isa DomainError && return isdefined(e, :msg) ? "$(e.msg): found $(e.val)" : "$(e.val) is outside the domain"
    return sprint(showerror, e)
end

function encode_error(e)
    cause = root_cause(e)
    line = try
        message(cause)
    catch
        string(typeof(cause))       # an exception whose own `showerror` fails
    end
    return text(ERROR, line; eltype = is_input_error(cause) ? 1 : 0)
end

"`name` in LVDJuice; a dotted name goes through submodules, or begins with a package that is loaded."
function lookup(name)
    path, home = Symbol.(split(name, '.')), parentmodule(@__MODULE__)
    if length(path) > 1 && !isdefined(home, path[1])
        for package in values(Base.loaded_modules)
            nameof(package) == path[1] && return foldl(getfield, path[2:end]; init = package)
        end
    end
    return foldl(getfield, path; init = home)
end

"Evaluate `code` in Main; the value of its last expression."
evaluate(code::String) = include_string(Main, code, "evaluate")

# A long call is cut into pieces, because Python wants to be back twice a second, to hear Ctrl-C: it runs as a task of its own,
# which at a `pause` goes back to the caller when its time is up, and on from there when it is asked to.

"Seconds that a piece of a call lasts, to the next `pause`: what cannot pause may then take most of half a second."
const PIECE = Ref(0.1)

"A call of `f`: [`go_on!`](@ref) runs it until it pauses or ends; then it has `ended`, and `f`'s value is its `outcome`."
mutable struct Call
    task::Task
    caller::Task
    until::Float64
    ended::Bool
    outcome::Any

    function Call(f)
        call = new()
        call.ended = false
        call.task = Task() do
            call.outcome = f()
            call.ended = true
            schedule(call.caller)
        end
        return call
    end
end

const UNDER_WAY = Ref{Union{Nothing,Call}}(nothing)

"Returns whether `call` has ended, with what it returned in `call.outcome`. `f` must not throw."
function go_on!(call::Call)
    call.caller, call.until, UNDER_WAY[] = current_task(), time() + PIECE[], call
    schedule(call.task)
    wait()
    UNDER_WAY[] = nothing
    return call.ended
end

"Steps of a nanosecond or so between two looks at the clock."
const STEPS = 2^16
const STEPS_DONE = Ref(0)

"""
    pause(steps)

A place where a long call may be interrupted, for a while or for good: there, nothing that outlives the call is half changed.
`steps`: about how many steps it took since the last `pause`; without, the clock is looked at. Not for threads that share work.
"""
@inline function pause(steps::Int=STEPS)
    STEPS_DONE[] += steps
    STEPS_DONE[] >= STEPS && look_at_clock()
    return
end

@noinline function look_at_clock()
    STEPS_DONE[], call = 0, UNDER_WAY[]
    call === nothing && return
    current_task() === call.task && time() >= call.until || return
    schedule(call.caller)
    wait()
    return
end

"""
    in_pieces(f, range; steps = 1, threads = 1)

`f` of parts of the range, one after another, with a `pause` after each. An index takes about so many `steps`; `f` shares a part among
so many threads.
"""
function in_pieces(f, range::AbstractUnitRange; steps::Int=1, threads::Int=1)
    for part in Iterators.partition(range, threads * max(1, 64 * STEPS ÷ max(steps, 1)))
        f(part)
        pause()
    end
end

struct Failure
    exception::Any
end

"The call that `invoke` returned from before its end, and its arguments."
const PAUSED = Ref{Any}(nothing)

"""
Call a function by name. Returns the length of the tuple written to `results`, or -1 for a single result or error, or -2 where the
call is not yet at its end: it goes on when `invoke` is called with an empty name, and is given up when with another.
"""
function invoke(name::Cstring, nargs::Int32, args::Ptr{Value}, results::Ptr{Value}, capacity::Int32)::Int32
    try
        asked = unsafe_string(name)
        if !isempty(asked)
            empty!(STRINGS)
            values = Value[unsafe_load(args, i) for i in 1:nargs]
            arguments = Any[decode(v) for v in values]
            read_only = findall(v -> v.kind == READ_ONLY, values)
            PAUSED[] = (Call(() -> outcome(asked, arguments, read_only)), arguments)
        end
        call, arguments = PAUSED[]
        ended = go_on!(call)
        write_out()
        ended || return -2
        PAUSED[] = nothing
        return store(call.outcome, arguments, results, capacity)
    catch e
        unsafe_store!(results, Base.invokelatest(encode_error, e), 1)
        return -1
    end
end

"Write out what Julia has printed to a file: it would else keep that until it ends, behind all that Python says meanwhile."
function write_out()
    for stream in (stdout, stderr)
        stream isa IOStream || continue  # to a terminal or a pipe it is written at once
        try
            flush(stream)
        catch                            # a full disk is no reason to lose the result
        end
    end
end

function outcome(name, arguments, read_only)
    try
        # The function may be younger than this code: look it up and call it in the newest world.
        return Base.invokelatest() do
            f = lookup(name)
            for i in writes(f)
                i in read_only &&
                    throw(ArgumentError("$name: argument $i: found a read-only array, want one that can be written to"))
            end
            return f(arguments...)
        end
    catch e
        return Failure(e)
    end
end

function store(result, arguments, results, capacity)
    if result isa Failure
        unsafe_store!(results, Base.invokelatest(encode_error, result.exception), 1)
        return -1
    elseif result isa Tuple
        length(result) <= capacity || error("$(length(result)) results, the boundary carries $capacity")
        for (i, x) in enumerate(result)
            unsafe_store!(results, encode(x, arguments), i)
        end
        return length(result)
    end
    unsafe_store!(results, encode(result, arguments), 1)
    return -1
end

"The address of `invoke` as a C function. BLAS gets one thread, because the package's own threads share out the samples."
function open_door()
    write_out()  # which packages were precompiled
    BLAS.set_num_threads(1)
    return UInt(@cfunction(invoke, Int32, (Cstring, Int32, Ptr{Value}, Ptr{Value}, Int32)))
end

"(Julia's version, threads, CPU target, CPU name, folder of the executable, system image, depot)."
function describe()
    options = Base.JLOptions()
    target, image = unsafe_string(options.cpu_target), unsafe_string(options.image_file)
    return string(VERSION), Threads.nthreads(), target, Sys.CPU_NAME, Sys.BINDIR, image, first(DEPOT_PATH)
end

end
