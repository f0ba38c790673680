# Which edges carry any flow at all, exactly. Flows are sums of single-precision numbers, where one of 1e-50 is 0; what is
# possible is a question of Booleans, 64 samples to a word.

"""
    SupportJob(plan, X, head_of; weights = ones)

Finds the sum edges with a positive flow, however small: those of positive weight through which a sample of positive weight can
pass. `X` is kept, not copied. [`advance!`](@ref) does the work, piece by piece; then [`supported`](@ref) tells.
"""
mutable struct SupportJob{D<:Data}
    plan::Plan
    X::D
    sources::Sources
    everywhere::Vector{Bool}        # inputs without a zero: they allow all values
    possible::Vector{Vector{UInt64}}  # of each thread: the samples in which a unit's value is positive
    passes::Vector{Vector{UInt64}}    # and those of which it has flow
    carries::Vector{Vector{Bool}}     # of each thread: whether it met flow on an edge
    position::Int                   # finished samples
end

function SupportJob(plan::Plan, X::Data, head_of; weights=ones(Float32, num_samples(X)))
    c, threads = plan.circuit, Threads.nthreads()
    check_data(X, plan.schedule.limits)
    everywhere = fill(false, num_units(c))
    for u in 1:num_units(c)
        everywhere[u] = isinput(c.kind[u]) && all(k -> log_probability(c, u, k) > -Inf, 0:c.categories[u] - 1)
        pause(10 + 5 * Int(c.categories[u]))
    end
    return SupportJob(plan, X, Sources(c, head_of, weights, num_samples(X)), everywhere,
                      [zeros(UInt64, num_units(c)) for _ in 1:threads], [zeros(UInt64, num_units(c)) for _ in 1:threads],
                      [fill(false, num_edges(c)) for _ in 1:threads], 0)
end

const WORD = 64

function advance!(job::SupportJob, seconds::Real=Inf)
    started, N, threads = time(), num_samples(job.X), length(job.carries)
    at_once = threads * WORD
    while job.position < N
        began, skip, last = time(), job.position, min(job.position + at_once, N)
        Threads.@threads for t in 1:threads
            for first in skip + (t - 1) * WORD + 1:threads * WORD:last
                support!(job, t, first:min(first + WORD - 1, last))
            end
        end
        job.position = last
        time() - began < SHARE && (at_once *= 2)
        time() - started > seconds && break
    end
    return job.position
end

"Whether each edge is one of a sum that has flow."
function supported(job::SupportJob)
    found = fill(false, length(job.carries[1]))
    for own in job.carries
        in_pieces(range -> (view(found, range) .|= view(own, range)), eachindex(found))
    end
    return found
end

"Up and down the circuit for one word of samples."
function support!(job::SupportJob, t::Int, samples::UnitRange)
    c, possible, passes, carries = job.plan.circuit, job.possible[t], job.passes[t], job.carries[t]
    for u in 1:num_units(c)
        word = c.kind[u] == SUM ? UInt64(0) : typemax(UInt64)
        if isinput(c.kind[u])
            job.everywhere[u] && !(job.X isa SoftEvidence) || (word = possible_samples(c, u, job.X, samples))
        elseif c.kind[u] == PRODUCT
            for e in edges(c, u)
                word &= possible[child(c, u, e)]
            end
        else
            for e in edges(c, u)
                c.weight[e] > 0 && (word |= possible[child(c, u, e)])
            end
        end
        possible[u] = word
    end
    fill!(passes, 0)
    for (s, n) in enumerate(samples)
        job.sources.weight_of[n] > 0 && (passes[c.heads[job.sources.head_of[n]]] |= UInt64(1) << (s - 1))
    end
    for h in unique(c.heads)
        passes[h] &= possible[h]
    end
    for u in reverse(1:num_units(c))
        passes[u] == 0 && continue
        for e in edges(c, u)
            v = child(c, u, e)
            flow = c.kind[u] == PRODUCT ? passes[u] : c.weight[e] > 0 ? passes[u] & possible[v] : UInt64(0)
            passes[v] |= flow
            flow == 0 || c.kind[u] == PRODUCT || (carries[e] = true)
        end
    end
end

"The samples, one a bit, to which input `u` gives a positive value."
function possible_samples(c::Circuit, u::Int, X::Data, samples)
    word = UInt64(0)
    for (s, n) in enumerate(samples)
        isfinite(log_input(c, u, X, n)) && (word |= UInt64(1) << (s - 1))
    end
    return word
end
