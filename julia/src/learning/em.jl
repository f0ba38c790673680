# Learning by expectation maximisation: flows are the expected counts (E), their shares the new parameters (M).

"""
Adds the flows of samples `order[first:last]` to the threads' statistics and returns their weighted log-likelihood. Each thread
has its own tiles, the same for the same number of threads.
"""
function accumulate!(stats::Vector{Statistics}, workspaces::Vector{Workspace}, plan::Plan, X::Data, sources::Starts, order,
                     first::Int, last::Int)
    threads, tiles = length(stats), cld(last - first + 1, TILE)
    totals = zeros(threads)
    Threads.@threads for t in 1:threads
        ws, stat = workspaces[t], stats[t]
        GC.@preserve ws stat plan X for tile in t:threads:tiles
            count = load_samples!(ws, order, first + (tile - 1) * TILE, last)
            forward!(ws, plan, X)
            totals[t] += flows!(stat, ws, plan, X, sources, count, (tile - 1) * TILE)
        end
    end
    return sum(totals)
end

"As above, into Float64: the threads' statistics are added to `counts` and cleared every few thousand samples."
function accumulate!(counts::ExpectedCounts, stats::Vector{Statistics}, workspaces::Vector{Workspace}, plan::Plan, X::Data,
                     sources::Starts, order, first::Int, last::Int)
    total, theta = 0.0, plan.circuit.weight
    while first <= last
        piece = min(first + SINGLE_PRECISION_SAMPLES - 1, last)
        total += accumulate!(stats, workspaces, plan, X, sources, order, first, piece)
        for stat in stats
            @inbounds @simd for e in eachindex(theta)
                counts.weight[e] += Float64(theta[e]) * stat.weight[e]
            end
            @inbounds @simd for e in eachindex(counts.leaf)
                counts.leaf[e] += stat.leaf[e]
            end
            fill!(stat.weight, 0f0)
            fill!(stat.leaf, 0f0)
        end
        first = piece + 1
    end
    return total
end

"One EM step from expected counts; `stats` is room to work in."
function apply!(plan::Plan, counts::ExpectedCounts, stats::Vector{Statistics}, step::Real, pseudocount::Real)
    copyto!(stats[1].weight, counts.weight)
    copyto!(stats[1].leaf, counts.leaf)
    apply!(plan, stats, step, pseudocount; counts=true)
end

"""
    apply!(plan, stats, step, pseudocount)

One EM step of size `step`: for a sum with edge flows F_e: E_e = F_e + pseudocount / #children and
theta <- (1 - step) theta + step E / sum(E); for a categorical input over C values the same with pseudocount / C. A unit with
neither flow nor pseudocount keeps its parameters. `stats`, one for each thread, are added up in order and cleared; with
`counts`, their weights are edge flows as they are, not yet to be multiplied by theta.
"""
apply!(plan::Plan, stats::Vector{Statistics}, step::Real, pseudocount::Real; counts::Bool=false) =
    apply!(plan, stats, Float32(step), Float32(pseudocount), counts) do gi, t, shares, s, a
        g = plan.groups[gi]
        g.kind == CATEGORICAL ? apply_categoricals!(plan.circuit, g, stats, shares, s, a) :
                                apply_others!(plan.circuit, g, stats, s, a)
    end

"`apply_inputs!(group, thread, room to work in, step, pseudocount)` does the step of a group of inputs."
function apply!(apply_inputs!::F, plan::Plan, stats::Vector{Statistics}, s::Float32, a::Float32, counts::Bool) where {F}
    threads = Threads.nthreads()
    Threads.@threads for t in 1:threads
        shares = Matrix{Float32}(undef, plan.widest + LANES - 1, 3)
        for gi in eachindex(plan.groups)
            g = plan.groups[gi]
            if isinput(g.kind)
                gi % threads == t - 1 && apply_inputs!(gi, t, shares, s, a)
            elseif g.kind == SUM
                for k in t:threads:width(g)
                    apply_sum!(plan.circuit, edges(plan.circuit, g.units[k]), stats, s, a, counts)
                end
            end
        end
    end
end

function apply_sum!(c::Circuit, edges::UnitRange, stats, step::Float32, pseudocount::Float32, counts::Bool)
    length(stats) > 1 && merge_statistics!(s -> s.weight, stats, edges)
    flow, theta = stats[1].weight, c.weight
    if counts
        apply_shares!(theta, flow, edges, step, pseudocount)
    else
        GC.@preserve flow theta apply_ratios!(pointer(theta, first(edges)), pointer(flow, first(edges)), length(edges), step, pseudocount)
    end
end

"As `apply_shares!`, where an edge's flow is theta times what `flow` holds. (Most sums are short: nothing is set up for long ones.)"
function apply_ratios!(theta::Ptr{Float32}, flow::Ptr{Float32}, count::Int, step::Float32, pseudocount::Float32)
    whole, total = count - count % LANES, pseudocount
    if whole > 0
        totals = splat(0f0)
        for e in 0:LANES:whole - 1
            totals = muladd_lanes(load_lanes(flow + 4e), load_lanes(theta + 4e), totals)
        end
        total += horizontal_sum(totals)
    end
    for e in whole + 1:count
        total += unsafe_load(flow, e) * unsafe_load(theta, e)
    end
    keep, take = total > 0 ? (1 - step, step / total) : (1f0, 0f0)
    prior = take * (pseudocount / count)
    for e in 0:LANES:whole - 1
        x = load_lanes(theta + 4e)
        # (keep + take flow) theta: the flow leaves out the factor theta.
        store_lanes(theta + 4e, muladd_lanes(muladd_lanes(splat(take), load_lanes(flow + 4e), splat(keep)), x, splat(prior)))
        store_lanes(flow + 4e, splat(0f0))
    end
    for e in whole + 1:count
        unsafe_store!(theta, muladd(muladd(take, unsafe_load(flow, e), keep), unsafe_load(theta, e), prior), e)
        unsafe_store!(flow, 0f0, e)
    end
end

"theta <- (1 - step) theta + step * shares of flow over `range`; clears the flow."
@inline function apply_shares!(theta, flow, range, step::Float32, pseudocount::Float32)
    total = pseudocount
    @inbounds @simd for e in range
        total += flow[e]
    end
    if total > 0
        keep, take, prior = 1 - step, step / total, pseudocount / length(range)
        @inbounds @simd for e in range
            theta[e] = keep * theta[e] + take * (flow[e] + prior)
        end
    end
    @inbounds for e in range
        flow[e] = 0f0
    end
end

function apply_categoricals!(c::Circuit, g::Group, stats, shares::Matrix{Float32}, step::Float32, pseudocount::Float32)
    if g.param_stride == width(g)
        apply_table!(c.leaf, map(s -> s.leaf, stats), g.param_start, width(g), g.categories, shares, step, pseudocount)
        return
    end
    for k in 0:width(g) - 1  # units of a larger table, whose others are another group's
        range = g.param_start + k:g.param_stride:g.param_start + k + (g.categories - 1) * g.param_stride
        merge_statistics!(s -> s.leaf, stats, range)
        apply_shares!(c.leaf, stats[1].leaf, range, step, pseudocount)
    end
end

"""
The categorical inputs of a table: `units` of them, whose parameters for one category lie side by side. The table is gone through
16 numbers at a time, wherever the categories end. `shares`, (units + 15, 3) or longer, is room for what each unit's parameters
take of the flow, keep, and get of the pseudocount; beyond the last unit it begins again.
"""
function apply_table!(leaf, flows, first::Int, units::Int, C::Int, shares::Matrix{Float32}, step::Float32, pseudocount::Float32)
    entries = units * C
    whole = entries - entries % LANES
    flow, theta = flows[1], pointer(leaf, first)
    range = first:first + entries - 1
    for t in 2:length(flows)
        other = flows[t]
        @inbounds @simd for e in range
            flow[e] += other[e]
            other[e] = 0f0
        end
    end
    GC.@preserve flow shares for k in 0:LANES:units - 1
        total, e = splat(pseudocount), k
        while e + LANES <= entries  # the lanes beyond the last unit are added up in vain
            total = add(total, load_lanes(pointer(flow, first + e)))
            e += units
        end
        store_lanes(pointer(shares, 1 + k), total)
        while e < entries  # the last categories: a vector would reach beyond the table
            for i in k:min(k + LANES, units) - 1
                shares[1 + i] += flow[first + e + i - k]
            end
            e += units
        end
    end
    @inbounds for k in 1:units
        none = shares[k, 1] < SMALLEST_DIVISOR  # neither flow nor pseudocount: as it was
        take = none ? 0f0 : step / shares[k, 1]
        shares[k, 1], shares[k, 2], shares[k, 3] = take, none ? 1f0 : 1 - step, take * (pseudocount / C)
    end
    @inbounds for j in 1:3, k in units + 1:units + LANES - 1
        shares[k, j] = shares[k - units, j]
    end
    k = 0  # the unit of the first of the 16 numbers
    GC.@preserve leaf flow shares begin
        rows, source = size(shares, 1), pointer(flow, first)
        take, keep, prior = pointer(shares), pointer(shares, 1 + rows), pointer(shares, 1 + 2 * rows)
        for e in 0:LANES:whole - 1
            new = muladd_lanes(load_lanes(keep + 4k), load_lanes(theta + 4e),
                               muladd_lanes(load_lanes(take + 4k), load_lanes(source + 4e), load_lanes(prior + 4k)))
            store_lanes(theta + 4e, new)
            store_lanes(source + 4e, splat(0f0))
            k += LANES
            while k >= units
                k -= units
            end
        end
    end
    @inbounds for e in whole:entries - 1
        k = e % units + 1
        leaf[first + e] = shares[k, 2] * leaf[first + e] + shares[k, 1] * flow[first + e] + shares[k, 3]
        flow[first + e] = 0f0
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
    EMJob(circuit, X, head_of; weights = ones, epochs = 50, batch_size = 256, step_size = (0.1, 0.01), pseudocount = 0.1,
          shuffle = true, seed = 0)

Mini-batch EM on the sum over samples of weights[n] log p(x_n | head_of[n]); changes the circuit's parameters in place. The step goes
linearly from `step_size[1]` in the first epoch to `step_size[2]` in the last; the last short batch of an epoch is used.
`X` is kept, not copied. [`advance!`](@ref) does the work, piece by piece.
"""
mutable struct EMJob{D<:Data}
    plan::Plan
    X::D
    sources::Sources
    epochs::Int
    batch_size::Int
    step_size::Tuple{Float64,Float64}
    pseudocount::Float64
    shuffle::Bool
    seed::Int
    order::Vector{Int32}
    workspaces::Vector{Workspace}
    statistics::Vector{Statistics}
    inputs::Union{Nothing,BatchInputs}
    counts::ExpectedCounts      # of a batch too large for single-precision sums
    epoch::Int                  # finished epochs
    position::Int               # finished samples of the epoch under way
    total::Float64              # weighted log-likelihood of those samples, each before its batch's step
    weight::Float64             # their weight
end

function EMJob(c::Circuit, X::Data, head_of::AbstractVector{<:Integer}; weights=ones(Float32, num_samples(X)), epochs::Integer=50, batch_size::Integer=256,
               step_size=(0.1, 0.01), pseudocount::Real=0.1, shuffle::Bool=true, seed::Integer=0)
    N = num_samples(X)
    N >= 1 || throw(ArgumentError("X has no samples"))
    sources = Sources(c, head_of, weights, N)
    epochs >= 0 || throw(ArgumentError("epochs = $epochs: want 0 or more"))
    batch_size >= 1 || throw(ArgumentError("batch_size = $batch_size: want at least 1"))
    all(s -> 0 < s <= 1, step_size) || throw(ArgumentError("step_size = $step_size: want numbers in (0, 1]"))
    check_pseudocount(pseudocount)
    plan = Plan(c; soft=X isa SoftEvidence)
    check_data(X, plan.limits)
    threads, batch_size = Threads.nthreads(), Int(min(batch_size, N))
    inputs = suit_batch(plan, X, batch_size) ? BatchInputs(plan, batch_size) : nothing
    return EMJob(plan, X, sources, Int(epochs), batch_size, Float64.(step_size),
                 Float64(pseudocount), shuffle, Int(seed), Int32.(1:N),
                 [Workspace(plan; flows=true, inputs=inputs) for _ in 1:threads],
                 [Statistics(c; leaf=inputs === nothing) for _ in 1:threads], inputs,
                 batch_size > SINGLE_PRECISION_SAMPLES ? ExpectedCounts(c) : ExpectedCounts(Float64[], Float64[]), 0, 0, 0.0,
                 0.0)
end

"Throws an `ArgumentError` unless single precision can divide by the pseudocount, and multiply it (pyjuice_lvd/checks.py)."
check_pseudocount(value::Real, name="pseudocount") =
    value == 0 || 1e-30 <= value <= 1e20 || throw(ArgumentError("$name = $value: want 0, or 1e-30 to 1e20"))

step_of(job::EMJob) = linear_step(job.step_size, job.epoch, job.epochs)

"From the first step size, in epoch 0, to the second, in the last."
linear_step(sizes, epoch, epochs) = sizes[1] + (sizes[2] - sizes[1]) * (epochs == 1 ? 0.0 : epoch / (epochs - 1))

"""
    advance!(job, seconds = Inf) -> (epochs finished, samples finished in the epoch under way, mean log-likelihood)

Goes on for about `seconds`, at most to the end of an epoch, and leaves the circuit up to date. The mean is over the samples of the epoch under way, or, where
it has just ended, of the whole epoch; in nats, each sample before its batch's step.
"""
function advance!(job::EMJob, seconds::Real=Inf)
    job.epoch >= job.epochs && return job.epoch, 0, NaN
    N, started = num_samples(job.X), time()
    if job.position == 0
        job.total = job.weight = 0.0
        if job.shuffle
            copyto!(job.order, 1:N)
            shuffle!(SplitMix(job.seed, job.epoch), job.order)
        end
    end
    at_once = job.batch_size * batches_at_once(job)
    try
        while job.position < N
            last = min(job.position + job.batch_size, N)
            em_step!(job, job.position + 1, last)
            job.position = last
            last % at_once == 0 || last == N || continue
            settle!(job)
            time() - started > seconds && break
        end
    catch
        settle!(job)
        rethrow()
    end
    mean = job.total / job.weight
    if job.position == N
        job.epoch += 1
        job.position = 0
    end
    return job.epoch, job.position, mean
end

"""
Batches between looks at the clock, when the circuit is brought up to date: fewer of a large circuit, but always the same for one
job, because parameters depend on it in their last digits.
"""
function batches_at_once(job::EMJob)
    job.inputs === nothing && return 1
    c = job.plan.circuit
    return clamp(2^29 ÷ (job.batch_size * num_edges(c) + 8 * length(c.leaf)), 1, 64)
end

"One batch: samples `order[first:last]`. Afterwards the circuit's parameters must be settled before others look at them."
function em_step!(job::EMJob, first::Int, last::Int)
    plan, step = job.plan, step_of(job)
    for n in first:last
        job.weight += job.sources.weight_of[job.order[n]]
    end
    if last - first < SINGLE_PRECISION_SAMPLES
        job.total += accumulate!(job.statistics, job.workspaces, plan, job.X, job.sources, job.order, first, last)
        apply_batch!(job, job.inputs, first, last)
    else
        job.total += accumulate!(job.counts, job.statistics, job.workspaces, plan, job.X, job.sources, job.order, first, last)
        apply!(plan, job.counts, job.statistics, step, job.pseudocount)
        clear!(job.counts)
    end
end

apply_batch!(job::EMJob, ::Nothing, first::Int, last::Int) = apply!(job.plan, job.statistics, step_of(job), job.pseudocount)

function apply_batch!(job::EMJob, inputs::BatchInputs, first::Int, last::Int)
    plan, X, samples = job.plan, job.X, view(job.order, first:last)
    apply!(plan, job.statistics, Float32(step_of(job)), Float32(job.pseudocount), false) do gi, t, shares, s, a
        plan.groups[gi].kind == CATEGORICAL && apply_batch!(inputs, plan, gi, X, samples, t, shares, s, a)
    end
end

"Brings the circuit's parameters up to date."
settle!(job::EMJob) = job.inputs === nothing || settle!(job.inputs, job.plan)

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
