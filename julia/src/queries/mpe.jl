# Most probable completions: walks (sample.jl) that decide for the best.

const BEST_LANES = 16  # samples evaluated together

"""
    CompletionJob(plan, X, head_of, out)

The most probable completion of each sample n of `X`, [`Masked`](@ref) or [`SoftEvidence`](@ref), under head `head_of[n]`:
`out`, numbers `(variables, samples)`, receives whole rows. Max-product with traceback: a sum counts as its best weighted
child. That is exact where no more than one child of each sum is possible at a time (deterministic circuits), and the usual
approximation elsewhere. Of equals, the first child or category is taken.

`X`, `head_of` and `out` are kept, not copied. [`advance!`](@ref) does the work, piece by piece.
"""
mutable struct CompletionJob{D<:Query,T<:Real}
    plan::Plan
    X::D
    head_of::Vector{Int32}
    out::Matrix{T}
    places::Places
    walks::Vector{Walk}
    values::Vector{Matrix{Float64}}  # of each thread: log max-product values, (BEST_LANES, units)
    log_weight::Vector{Float64}
    mode::Vector{Float64}            # of each input: its most probable value
    position::Int                    # finished samples
end

function CompletionJob(plan::Plan, X::Query, head_of, out::Matrix{<:Real})
    check_query(plan, X, head_of, size(out, 2))
    c = plan.circuit
    threads, mode, log_weight = Threads.nthreads(), zeros(num_units(c)), zeros(num_edges(c))
    for u in 1:num_units(c)
        isinput(c.kind[u]) && (mode[u] = has_table(c.kind[u]) ? best_category(c, u, nothing, 0) : mode_of_number(c, u))
        pause(10 + 5 * Int(c.categories[u]))
    end
    in_pieces(range -> (view(log_weight, range) .= log.(Float64.(view(c.weight, range)))), eachindex(log_weight); steps=10)
    return CompletionJob(plan, X, Vector{Int32}(head_of), out, Places(plan), [Walk(plan) for _ in 1:threads],
                         [zeros(BEST_LANES, num_units(c)) for _ in 1:threads], log_weight, mode, 0)
end

"The category of input `u` that has the largest probability times likelihood."
function best_category(c::Circuit, u, X, n)
    best, top, scale = 0, -1.0, log_scale(c, u, X, n)
    @inbounds for k in 0:c.categories[u] - 1
        p = share(c, u, X, k, n, scale)
        p > top && ((best, top) = (k, p))
    end
    return Int32(best)
end

"Decides for the best, by the log max-product values in one lane."
struct Best{D}
    circuit::Circuit
    values::Matrix{Float64}
    log_weight::Vector{Float64}
    mode::Vector{Float64}
    X::D
    n::Int
    lane::Int
end

function decide_edge(b::Best, u)
    range = edges(b.circuit, u)
    best, top = first(range), -Inf
    for e in range
        value = b.log_weight[e] + b.values[b.lane, child(b.circuit, u, e)]
        value > top && ((best, top) = (e, value))
    end
    return best
end

decide_value(b::Best, u) = best_value_for(b.X, b, u)
best_value_for(::Masked, b, u) = b.mode[u]
best_value_for(X::SoftEvidence, b, u) = Float64(best_category(b.circuit, u, X, b.n))

function advance!(job::CompletionJob, seconds::Real=Inf)
    started, threads, N, c = time(), length(job.walks), num_samples(job.X), job.plan.circuit
    at_once, large = threads * BEST_LANES, num_edges(c) > LARGE
    while job.position < N
        began, skip, last = time(), job.position, min(job.position + at_once, N)
        firsts(t) = skip + (t - 1) * BEST_LANES + 1:threads * BEST_LANES:last
        large && in_pieces(1:num_units(c); steps=BEST_LANES * cld(num_edges(c), num_units(c))) do units
            Threads.@threads for t in 1:threads
                for first in firsts(t)
                    best_values!(job.values[t], job, job.X, units, first, min(first + BEST_LANES - 1, last))
                end
            end
        end
        impossible = zeros(Int, threads)
        Threads.@threads for t in 1:threads
            for first in firsts(t)
                impossible[t] > 0 && break
                stop = min(first + BEST_LANES - 1, last)
                large || best_values!(job.values[t], job, job.X, 1:num_units(c), first, stop)
                impossible[t] = complete!(job, job.walks[t], job.values[t], job.X, first, stop)
            end
        end
        any(>(0), impossible) && (n = minimum(filter(>(0), impossible)); no_evidence(n, job.head_of[n]))
        job.position = last
        large || time() - began < SHARE && (at_once *= 2)  # there is room for the values of one block in each thread
        time() - started > seconds && break
    end
    return job.position
end

"Completes samples `first` to `last`, of whose values the circuit is full; returns the first that is impossible, or 0."
function complete!(job::CompletionJob, walk::Walk, values::Matrix{Float64}, X::Query, first::Int, last::Int)
    c = job.plan.circuit
    for n in first:last
        lane, head = n - first + 1, Int(job.head_of[n])
        values[lane, c.heads[head]] > -Inf || return n
        start!(walk, job.plan, X, n)
        descend!(walk, job.plan, job.places, head, Best(c, values, job.log_weight, job.mode, X, n, lane))
        finish_row!(job.out, n, walk, head)
    end
    return 0
end

"The log max-product values of `units`, in lane s for sample `first + s - 1`; lanes beyond `last` repeat it."
function best_values!(values::Matrix{Float64}, job::CompletionJob, X::Query, units, first::Int, last::Int)
    c = job.plan.circuit
    @inbounds for u in units
        if isinput(c.kind[u])
            for s in 1:BEST_LANES
                values[s, u] = best_input(job, c, u, X, min(first + s - 1, last))
            end
        elseif c.kind[u] == PRODUCT
            for s in 1:BEST_LANES
                values[s, u] = 0.0
            end
            for e in edges(c, u)
                v = child(c, u, e)
                @simd for s in 1:BEST_LANES
                    values[s, u] += values[s, v]
                end
            end
        else
            for s in 1:BEST_LANES
                values[s, u] = -Inf
            end
            for e in edges(c, u)
                v, weight = child(c, u, e), job.log_weight[e]
                @simd for s in 1:BEST_LANES
                    values[s, u] = ifelse(weight + values[s, v] > values[s, u], weight + values[s, v], values[s, u])
                end
            end
        end
    end
end

@inline function best_input(job, c, u, X::Masked, n)
    k = X.mask[c.variable[u], n] ? job.mode[u] : X.values[c.variable[u], n]
    return log_probability(c, u, k)
end

best_input(job, c, u, X::SoftEvidence, n) = log_term(c, u, X, best_category(c, u, X, n), n)

"""
    mpe(circuit, X; head_of = ones) -> Matrix{Int32}

`(variables, samples)`: the most probable completion of each sample, see [`CompletionJob`](@ref); Float64 where a variable has real values.
"""
function mpe(c::Circuit, X::Query; head_of=ones(Int32, num_samples(X)))
    job = CompletionJob(Plan(c; soft=X isa SoftEvidence), X, head_of, zeros(value_type(c), c.num_vars, num_samples(X)))
    advance!(job)
    return job.out
end
