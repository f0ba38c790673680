# Learning by expectation maximisation: flows are the expected counts (E), their shares the new parameters (M).

"""
    apply!(plan, stats, step, pseudocount)

One EM step of size `step` (DESIGN 4): for a sum with edge flows F_e: E_e = F_e + pseudocount / #children and
theta <- (1 - step) theta + step E / sum(E); for a categorical input over C values the same with pseudocount / C. A unit with
neither flow nor pseudocount keeps its parameters. `stats`, one for each thread, are added up in order and cleared.
"""
function apply!(plan::Plan, stats::Vector{Statistics}, step::Real, pseudocount::Real)
    s, a = Float32(step), Float32(pseudocount)
    threads = Threads.nthreads()
    Threads.@threads for t in 1:threads
        for gi in eachindex(plan.groups)
            g = plan.groups[gi]
            if g.kind == CATEGORICAL
                gi % threads == t - 1 && apply_categoricals!(plan.circuit, g, stats, s, a)
            elseif isinput(g.kind)
                gi % threads == t - 1 && apply_others!(plan.circuit, g, stats, s, a)
            elseif g.kind == SUM
                for k in t:threads:width(g)
                    apply_sum!(plan.circuit, edges(plan.circuit, g.units[k]), stats, s, a)
                end
            end
        end
    end
end

function apply_sum!(c::Circuit, edges::UnitRange, stats, step::Float32, pseudocount::Float32)
    merge_statistics!(s -> s.weight, stats, edges)
    flow, theta = stats[1].weight, c.weight
    total = 0f0
    @inbounds @simd for e in edges
        flow[e] *= theta[e]
        total += flow[e]
    end
    total += pseudocount
    if total > 0
        keep, take, prior = 1 - step, step / total, pseudocount / length(edges)
        @inbounds @simd for e in edges
            theta[e] = keep * theta[e] + take * (flow[e] + prior)
        end
    end
    fill!(view(flow, edges), 0f0)
end

function apply_categoricals!(c::Circuit, g::Group, stats, step::Float32, pseudocount::Float32)
    units, C = width(g), g.categories
    flow, theta = stats[1].leaf, c.leaf
    total = fill(pseudocount, units)
    for category in 0:C - 1
        first = g.param_start + category * g.param_stride
        merge_statistics!(s -> s.leaf, stats, first:first + units - 1)
        @inbounds @simd for k in 1:units
            total[k] += flow[first + k - 1]
        end
    end
    keep = [t > 0 ? 1 - step : 1f0 for t in total]
    take = [t > 0 ? step / t : 0f0 for t in total]
    prior = pseudocount / C
    for category in 0:C - 1
        first = g.param_start + category * g.param_stride - 1
        @inbounds @simd for k in 1:units
            theta[first + k] = keep[k] * theta[first + k] + take[k] * (flow[first + k] + prior)
            flow[first + k] = 0f0
        end
    end
end

"Binomials: p <- (1 - s) p + s (sum F x + pseudocount N / 2) / (N (sum F + pseudocount)). Indicators have nothing to learn."
function apply_others!(c::Circuit, g::Group, stats, step::Float32, pseudocount::Float32)
    N = g.categories - 1
    for (k, u) in enumerate(g.units)
        range = g.param_start + k - 1:g.param_stride:g.param_start + k - 1 + N * g.param_stride
        merge_statistics!(s -> s.leaf, stats, range)
        flow, successes = pseudocount, pseudocount * N / 2
        for (x, e) in enumerate(range)
            flow += stats[1].leaf[e]
            successes += stats[1].leaf[e] * (x - 1)
            stats[1].leaf[e] = 0f0
        end
        if g.kind == BINOMIAL && N > 0 && flow > 0
            c.success[u] = (1 - step) * c.success[u] + step * successes / (N * flow)
            c.leaf[range] = binomial_table(N, c.success[u])
        end
    end
end

"Adds the other threads' share of `range` to the first thread's, and clears it there."
@inline function merge_statistics!(field, stats, range)
    target = field(stats[1])
    for t in 2:length(stats)
        source = field(stats[t])
        @inbounds @simd for e in range
            target[e] += source[e]
            source[e] = 0f0
        end
    end
end

"""
    EMJob(circuit, X, head_of; epochs = 50, batch_size = 256, step_size = (0.1, 0.01), pseudocount = 0.1, shuffle = true,
          seed = 0)

Mini-batch EM on sum over samples of log p(x_n | head_of[n]); changes the circuit's parameters in place. The step goes
linearly from `step_size[1]` in the first epoch to `step_size[2]` in the last; the last short batch of an epoch is used.
`X` is kept, not copied. [`advance!`](@ref) does the work, piece by piece.
"""
mutable struct EMJob{D<:Data}
    plan::Plan
    X::D
    head_of::Vector{Int32}
    epochs::Int
    batch_size::Int
    step_size::Tuple{Float64,Float64}
    pseudocount::Float64
    shuffle::Bool
    seed::Int
    order::Vector{Int32}
    workspaces::Vector{Workspace}
    statistics::Vector{Statistics}
    epoch::Int                  # finished epochs
    position::Int               # finished samples of the epoch under way
    total::Vector{Float64}      # of each thread: sum of the log-likelihoods of those samples, each before its batch's step
end

function EMJob(c::Circuit, X::Data, head_of::AbstractVector{<:Integer}; epochs::Integer=50, batch_size::Integer=256,
               step_size=(0.1, 0.01), pseudocount::Real=0.1, shuffle::Bool=true, seed::Integer=0)
    N = num_samples(X)
    N >= 1 || throw(ArgumentError("X has no samples"))
    length(head_of) == N || throw(ArgumentError("heads has $(length(head_of)) entries for $N samples"))
    all(h -> 1 <= h <= num_heads(c), head_of) ||
        throw(ArgumentError("heads: found $(extrema(head_of) .- 1), the circuit has heads 0..$(num_heads(c) - 1)"))
    epochs >= 0 || throw(ArgumentError("epochs = $epochs: want 0 or more"))
    batch_size >= 1 || throw(ArgumentError("batch_size = $batch_size: want at least 1"))
    all(s -> 0 < s <= 1, step_size) || throw(ArgumentError("step_size = $step_size: want numbers in (0, 1]"))
    pseudocount >= 0 || throw(ArgumentError("pseudocount = $pseudocount: want 0 or more"))
    plan = Plan(c; soft=X isa SoftEvidence)
    check_data(X, plan.limits)
    threads = Threads.nthreads()
    return EMJob(plan, X, Vector{Int32}(head_of), Int(epochs), Int(min(batch_size, N)), Float64.(step_size),
                 Float64(pseudocount), shuffle, Int(seed), Int32.(1:N), [Workspace(plan; flows=true) for _ in 1:threads],
                 [Statistics(c) for _ in 1:threads], 0, 0, zeros(threads))
end

step_of(job::EMJob) =
    job.step_size[1] + (job.step_size[2] - job.step_size[1]) * (job.epochs == 1 ? 0.0 : job.epoch / (job.epochs - 1))

"""
    advance!(job, seconds = Inf) -> (epochs finished, samples finished in the epoch under way, mean log-likelihood)

Goes on for about `seconds`, at most to the end of an epoch. The mean is over the samples of the epoch under way, or, where
it has just ended, of the whole epoch; in nats, each sample before its batch's step.
"""
function advance!(job::EMJob, seconds::Real=Inf)
    job.epoch >= job.epochs && return job.epoch, 0, NaN
    N, started = num_samples(job.X), time()
    if job.position == 0
        fill!(job.total, 0.0)
        if job.shuffle
            copyto!(job.order, 1:N)
            shuffle!(SplitMix(job.seed, job.epoch), job.order)
        end
    end
    while job.position < N
        last = min(job.position + job.batch_size, N)
        accumulate!(job, job.position + 1, last)
        apply!(job.plan, job.statistics, step_of(job), job.pseudocount)
        job.position = last
        time() - started > seconds && break
    end
    mean = sum(job.total) / job.position
    if job.position == N
        job.epoch += 1
        job.position = 0
    end
    return job.epoch, job.position, mean
end

"Flows and log-likelihoods of samples `order[first:last]`, each thread's tiles into its own statistics."
function accumulate!(job::EMJob, first::Int, last::Int)
    plan, threads = job.plan, Threads.nthreads()
    tiles = cld(last - first + 1, TILE)
    Threads.@threads for t in 1:threads
        ws, stat = job.workspaces[t], job.statistics[t]
        GC.@preserve ws stat plan for tile in t:threads:tiles
            count = load_samples!(ws, job.order, first + (tile - 1) * TILE, last)
            forward!(ws, plan, job.X)
            for s in 1:count
                job.total[t] += head_log_value(ws, plan, job.X, Int(job.head_of[ws.samples[s]]), s)
            end
            backward!(stat, ws, plan, job.X, job.head_of, count)
        end
    end
end

"Runs a job to its end and returns the mean log-likelihood of the last epoch."
function finish!(job::EMJob)
    mean = NaN
    while job.epoch < job.epochs
        mean = advance!(job)[3]
    end
    return mean
end

"Runs a job to its end and returns the mutual information."
function finish!(job::MutualInformationJob)
    advance!(job)
    return job.mi
end
