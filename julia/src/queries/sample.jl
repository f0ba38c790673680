# Queries that walk a circuit from a head down, one sample at a time: samples, also conditional, here; completions in mpe.jl.
#
# A sum decides for one of its children, a product goes on with all of them, an input decides for a value. What differs is
# how they decide, by chance or for the best, and what is known of the units' values from the evidence.

"Where the value of each unit lies in a tile: its group, and its column of the value buffer; and the column that this is to be multiplied by,
of products whose values are not kept, else -1."
struct Places
    group::Vector{Int32}
    exponent::Vector{Int32}
    column::Vector{Int}
    times::Vector{Int}
end

function Places(plan::Plan)
    n = num_units(plan.circuit)
    places = Places(zeros(Int32, n), zeros(Int32, n), zeros(Int, n), fill(-1, n))
    for (gi, g) in enumerate(plan.groups), (k, u) in enumerate(g.units)
        places.group[u] = gi
        places.exponent[u] = plan.columns[gi].exponent
        if g.pairs === nothing
            places.column[u] = plan.columns[gi].value + k - 1
        else
            i, j = divrem(k - 1, length(g.pairs.fast))
            places.column[u] = plan.columns[g.pairs.slow_group].value + g.pairs.slow[i + 1] - 1
            places.times[u] = plan.columns[g.pairs.fast_group].value + g.pairs.fast[j + 1] - 1
        end
        pause(5)
    end
    return places
end

"One thread's room for walks. `hidden`: for each group, whether a variable in its scope is to be found."
struct Walk
    stack::Vector{Int32}
    hidden::Vector{Bool}
    cumulative::Vector{Float64}
    row::Vector{Float64}        # NaN where there is no value
end

const APART = 64  # unused entries behind what a thread writes to: no two threads then write to one cache line

function Walk(plan::Plan)
    c, most = plan.circuit, maximum(plan.circuit.categories)
    for u in 1:num_units(c)
        most = max(most, length(edges(c, u)))
        pause(2)
    end
    # Units that wait on the stack have disjoint scopes: there are no more of them than variables.
    return Walk(zeros(Int32, c.num_vars + APART), fill(true, length(plan.groups)), zeros(most + APART),
                zeros(c.num_vars + APART))
end

const Query = Union{Masked,SoftEvidence}  # what is known of each sample: some categories, or something of every one

@inline is_hidden(X::Masked, i, n) = X.mask[i, n]
@inline is_hidden(::SoftEvidence, i, n) = true

@inline observed(X::Masked, i, n) = X.mask[i, n] ? NaN : Float64(X.values[i, n])
@inline observed(::SoftEvidence, i, n) = NaN

"Puts what is known of sample `n` into the walk's row, and marks the groups that have something to find."
function start!(walk::Walk, plan::Plan, X::Query, n::Int)
    for i in 1:plan.circuit.num_vars
        walk.row[i] = observed(X, i, n)
    end
    for (gi, g) in enumerate(plan.groups)
        found = false
        if isinput(g.kind)
            found = is_hidden(X, g.variable, n)
        elseif g.kind == PRODUCT
            for f in g.factors
                found |= walk.hidden[f.child]
            end
        else
            found = walk.hidden[g.blocks[1].child]
        end
        walk.hidden[gi] = found
    end
end

"Fills the hidden variables of the walk's row, from head `head` down, as `guide` decides."
function descend!(walk::Walk, plan::Plan, places::Places, head::Int, guide)
    c, stack, waiting = plan.circuit, walk.stack, 0
    @inbounds if walk.hidden[places.group[c.heads[head]]]
        stack[waiting += 1] = c.heads[head]
    end
    @inbounds while waiting > 0
        u = stack[waiting]
        if c.kind[u] == SUM
            stack[waiting] = child(c, u, decide_edge(guide, u))
            continue
        end
        waiting -= 1
        if c.kind[u] == PRODUCT
            for e in edges(c, u)
                v = child(c, u, e)
                walk.hidden[places.group[v]] && (stack[waiting += 1] = v)
            end
        else
            walk.row[c.variable[u]] = decide_value(guide, u)
        end
    end
end

"Copies the walk's row to column `column` of `out`; a hidden variable that the walk never met has no distribution."
function finish_row!(out::Array, column::Int, walk::Walk, head::Int)
    V = size(out, 1)
    for i in 1:V
        x = walk.row[i]
        isnan(x) && uncovered(head, i)
        out[(column - 1) * V + i] = x
    end
end

uncovered(head, i) =
    throw(ArgumentError("head $(head - 1) does not cover variable $(i - 1): it has no distribution to take a value from"))

no_evidence(n, head) =
    throw(ArgumentError("X: row $(n - 1): the evidence has probability 0 under head $(head - 1): nothing follows from it"))

# Sampling.

"Decides by chance, in proportion to what each choice makes of the evidence: `values` of the units and, at inputs, `X`."
struct Sampler{V,D}
    circuit::Circuit
    categories::Vector{Float64}  # cumulative probabilities of each input's categories, or empty
    category_start::Vector{Int64}
    cumulative::Vector{Float64}
    rng::SplitMix
    values::V
    X::D
    n::Int
end

"A unit's values in lane `lane` of a tile."
struct TileLane
    workspace::Workspace
    places::Places
    lane::Int
end

function decide_edge(s::Sampler, u)
    range = edges(s.circuit, u)
    cumulative_weights!(s.cumulative, s.circuit, u, s.values)
    return first(range) + draw(s.rng, s.cumulative, 1, length(range)) - 1
end

"Without evidence, a sum's edges count as they are."
function cumulative_weights!(out, c::Circuit, u, ::Nothing)
    total = 0.0
    @inbounds for (k, e) in enumerate(edges(c, u))
        out[k] = total += c.weight[e]
    end
end

function cumulative_weights!(out, c::Circuit, u, tile::TileLane)
    ws, places, s = tile.workspace, tile.places, tile.lane
    @inbounds begin
        group, top, scales = zero(Int32), typemin(Int32), 0
        for (k, e) in enumerate(edges(c, u))
            v = child(c, u, e)
            out[k] = ws.values[TILE * places.column[v] + s]
            places.times[v] < 0 || (out[k] *= ws.values[TILE * places.times[v] + s])
            if places.group[v] != group && out[k] > 0
                group = places.group[v]
                top = max(top, ws.exponents[TILE * places.exponent[v] + s])
                scales += 1
            end
        end
        total = 0.0
        for (k, e) in enumerate(edges(c, u))  # children in several groups have several scales
            scales > 1 && out[k] > 0 &&
                (out[k] *= power_of_two(ws.exponents[TILE * places.exponent[child(c, u, e)] + s] - Int(top)))
            out[k] = total += c.weight[e] * out[k]
        end
    end
end

"2^k for k <= 0; 0 where that is too small for a normal number."
@inline power_of_two(k::Int) = reinterpret(Float64, max(k + 1023, 0) << 52)

"From the exact evaluation's logarithms."
function cumulative_weights!(out, c::Circuit, u, log_value::Vector{Float64})
    total, top = 0.0, -Inf
    for e in edges(c, u)
        c.weight[e] > 0 && (top = max(top, log_value[child(c, u, e)]))
    end
    for (k, e) in enumerate(edges(c, u))
        out[k] = total += c.weight[e] > 0 ? c.weight[e] * exp(log_value[child(c, u, e)] - top) : 0.0
    end
end

function decide_value(s::Sampler, u)
    @inbounds has_table(s.circuit.kind[u]) || return draw_number(s.rng, s.circuit, u)
    @inbounds C = s.circuit.categories[u]
    if isempty(s.categories)
        cumulative_categories!(s.cumulative, 1, s.circuit, u, s.X, s.n)
        return Float64(draw(s.rng, s.cumulative, 1, Int(C)) - 1)
    end
    @inbounds start = s.category_start[u]
    return Float64(draw(s.rng, s.categories, start, start + C - 1) - start)
end

function cumulative_categories!(out, start, c::Circuit, u, X, n)
    total, scale = 0.0, log_scale(c, u, X, n)
    @inbounds for k in 0:c.categories[u] - 1
        out[start + k] = total += share(c, u, X, k, n, scale)
    end
end

"A random index of `first:last`, in proportion to the increments of `cumulative`."
@inline function draw(rng::SplitMix, cumulative::Vector{Float64}, first::Int, last::Int)
    @inbounds target = uniform!(rng) * cumulative[last]
    count = last - first
    while count > 0  # the first that exceeds the target: never one of probability zero; without a branch to mispredict
        half = (count + 1) >> 1
        @inbounds first = ifelse(cumulative[first + half - 1] > target, first, first + half)
        count -= half
    end
    return first
end

"""
    SampleJob(plan, X, head_of, out; seed = 0)

`size(out, 2)` samples for each sample n of `X`, [`Masked`](@ref) or [`SoftEvidence`](@ref), from head `head_of[n]`, given
what is known: `out`, numbers `(variables, draws, samples)`, receives whole rows, the known values included. With `X = nothing`,
samples from the circuit itself, for each entry of `head_of`.

Exact ancestral sampling. Draw j of sample n has random numbers of its own (seed, n, j): the same for any number of threads.
`X`, `head_of` and `out` are kept, not copied. [`advance!`](@ref) does the work, piece by piece.
"""
mutable struct SampleJob{D,T<:Real}
    plan::Plan
    X::D
    head_of::Vector{Int32}
    out::Array{T,3}
    seed::Int
    places::Places
    walks::Vector{Walk}
    categories::Vector{Float64}
    category_start::Vector{Int64}
    workspaces::Vector{Workspace}
    exact::Dict{Int,Vector{Float64}}  # log values of those samples at work that underflow in the tiles
    position::Int                     # finished draws, in the order of `out`
end

function SampleJob(plan::Plan, X::Union{Nothing,Query}, head_of, out::Array{<:Real,3}; seed::Integer=0)
    c = plan.circuit
    check_query(plan, X, head_of, size(out, 3))
    size(out, 1) == c.num_vars || throw(ArgumentError("out has $(size(out, 1)) variables, the circuit $(c.num_vars)"))
    # Reading an input's categories takes as long as adding them all up, once for all draws.
    inputs = count(isinput, c.kind)
    often = !(X isa SoftEvidence) && c.num_vars * size(out, 2) * size(out, 3) > inputs
    categories, category_start = often ? category_table(c) : (Float64[], Int64[])
    threads = Threads.nthreads()
    return SampleJob(plan, X, Vector{Int32}(head_of), out, Int(seed), Places(plan), [Walk(plan) for _ in 1:threads], categories,
                     category_start, [Workspace(plan; flows=false) for _ in 1:(X === nothing ? 0 : threads)],
                     Dict{Int,Vector{Float64}}(), 0)
end

function check_query(plan::Plan, X, head_of, N)
    if X !== nothing
        check_data(X, plan.schedule.limits)
        plan.soft == (X isa SoftEvidence) || throw(ArgumentError("soft = $(plan.soft): no plan for $(typeof(X))"))
        num_samples(X) == N || throw(ArgumentError("out has room for $N samples, X has $(num_samples(X))"))
    end
    N == 0 || Sources(plan.circuit, head_of, ones(Float32, N), N)  # checks the heads
end

function category_table(c::Circuit)
    starts, total = zeros(Int64, num_units(c)), 1
    for u in 1:num_units(c)
        starts[u] = total
        total += c.categories[u]
        pause(2)
    end
    table = Vector{Float64}(undef, total - 1)
    for u in 1:num_units(c)
        isinput(c.kind[u]) && cumulative_categories!(table, starts[u], c, u, nothing, 0)
        pause(10 + 5 * Int(c.categories[u]))
    end
    return table, starts
end

# Threads meet after shares of work that take at least this long, in seconds, because meeting takes time; then the clock is read.
const SHARE = 0.01
const FIRST_SHARE = 2^22  # edges, times the draws of each thread
const LARGE = 2^20        # edges of a circuit whose threads meet more often

"""
    advance!(job, seconds = Inf) -> finished units of work

Goes on for about `seconds`. The work of a `SampleJob` are its draws, that of other jobs the samples of its data.
"""
function advance!(job::SampleJob, seconds::Real=Inf)
    started, draws, total = time(), size(job.out, 2), size(job.out, 2) * size(job.out, 3)
    at_once = clamp(FIRST_SHARE ÷ max(num_edges(job.plan.circuit), 1), 1, 64) * length(job.walks)
    while job.position < total
        began = time()
        batch = job.X === nothing ? total : draws * TILE * length(job.workspaces)
        if job.position % batch == 0
            evaluate_evidence!(job, job.X, job.position ÷ draws)
        end
        last = min(job.position + at_once, (job.position ÷ batch + 1) * batch, total)
        draw_samples!(job, job.position, last)
        job.position = last
        time() - began < SHARE && at_once < batch && (at_once *= 2)
        time() - started > seconds && break
    end
    return job.position
end

evaluate_evidence!(job::SampleJob, ::Nothing, skip::Int) = nothing

"Values of all units for the next samples, one tile for each thread."
function evaluate_evidence!(job::SampleJob, X::Query, skip::Int)
    N, tiles = num_samples(X), length(job.workspaces)
    empty!(job.exact)
    vanished = [Int[] for _ in 1:tiles]
    Threads.@threads for t in 1:tiles
        evaluate_tile!(vanished[t], job.workspaces[t], job.plan, X, job.head_of, skip + (t - 1) * TILE + 1, N)
    end
    for n in reduce(vcat, vanished)
        values = log_values(job.plan.circuit, X, n)
        isfinite(values[job.plan.circuit.heads[job.head_of[n]]]) || no_evidence(n, job.head_of[n])
        job.exact[n] = values
        pause()
    end
end

"Values of all units for samples `first` up to `last`, at most a tile; those whose head vanishes go to `vanished`."
function evaluate_tile!(vanished, ws::Workspace, plan::Plan, X::Query, head_of, first::Int, last::Int)
    first > last && return 0
    GC.@preserve ws plan X begin
        count = load_samples!(ws, 1:last, first, last)
        forward!(ws, plan, X)
    end
    for s in 1:count
        isfinite(head_log_value(ws, plan, X, Int(head_of[ws.samples[s]]), s)) || push!(vanished, ws.samples[s])
    end
    return count
end

"Draws `first + 1` to `last` of the job, each thread a share."
function draw_samples!(job::SampleJob, first::Int, last::Int)
    threads = length(job.walks)
    Threads.@threads for t in 1:threads
        share = cld(last - first, threads)
        draw_share!(job, job.walks[t], job.X, first + (t - 1) * share + 1, min(first + t * share, last))
    end
end

function draw_share!(job::SampleJob, walk::Walk, ::Nothing, first::Int, last::Int)
    sampler = Sampler(job.plan.circuit, job.categories, job.category_start, walk.cumulative, SplitMix(0), nothing, nothing, 0)
    for i in first:last
        fill!(walk.row, NaN)
        draw_one!(job, walk, sampler, i)
    end
end

function draw_share!(job::SampleJob, walk::Walk, X::Query, first::Int, last::Int)
    draws, tiles = size(job.out, 2), length(job.workspaces)
    for i in first:last
        n = (i - 1) ÷ draws + 1
        (i == first || (i - 1) % draws == 0) && start!(walk, job.plan, X, n)  # each draw of a sample hides the same variables
        if haskey(job.exact, n)
            draw_given!(job, walk, job.exact[n], X, n, i)
        else
            tile, lane = divrem((n - 1) % (TILE * tiles), TILE)
            draw_given!(job, walk, TileLane(job.workspaces[tile + 1], job.places, lane + 1), X, n, i)
        end
    end
end

function draw_given!(job, walk, values, X, n, i)
    rng = SplitMix(0)
    sampler = Sampler(job.plan.circuit, job.categories, job.category_start, walk.cumulative, rng, values, X, n)
    draw_one!(job, walk, sampler, i)
end

function draw_one!(job::SampleJob, walk::Walk, sampler::Sampler, i::Int)
    n, j = divrem(i - 1, size(job.out, 2))
    head = Int(job.head_of[n + 1])
    sampler.rng.state = SplitMix(job.seed, n, j).state
    descend!(walk, job.plan, job.places, head, sampler)
    finish_row!(job.out, i, walk, head)
end

value_type(c::Circuit) = GAUSSIAN in c.kind ? Float64 : Int32

"""
    sample(circuit, n; head = 1, seed = 0) -> Matrix{Int32}
    sample(circuit, X, draws; head_of = ones, seed = 0) -> Array{Int32,3}

`n` samples from a head, `(variables, n)`; or samples given what is known, `(variables, draws, samples)`: see [`SampleJob`](@ref). They are
Float64 where a variable has real values.
"""
function sample(c::Circuit, n::Integer; head::Integer=1, seed::Integer=0)
    job = SampleJob(Plan(c), nothing, [head], zeros(value_type(c), c.num_vars, n, 1); seed=seed)
    advance!(job)
    return job.out[:, :, 1]
end

function sample(c::Circuit, X::Query, draws::Integer; head_of=ones(Int32, num_samples(X)), seed::Integer=0)
    job = SampleJob(Plan(c; soft=X isa SoftEvidence), X, head_of, zeros(value_type(c), c.num_vars, draws, num_samples(X)); seed=seed)
    advance!(job)
    return job.out
end
