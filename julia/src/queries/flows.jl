# What flows say: of a data set (expected counts, the flows of units and edges), and of a sample (posterior marginals).

"""
    FlowJob(plan, X, head_of; weights = ones)

Adds up the flows of the samples of `X`, each from head `head_of[n]` and multiplied by `weights[n]`. A sample of probability
0 has no flow. `X` is kept, not copied. [`advance!`](@ref) does the work, piece by piece; then `counts` are the
[`ExpectedCounts`](@ref), `total` the weighted sum of the log-likelihoods, and [`unit_flows`](@ref) gives the flows of all
units and edges.
"""
mutable struct FlowJob{D<:Data}
    plan::Plan
    X::D
    sources::Sources
    order::Vector{Int32}
    workspaces::Vector{Workspace}
    statistics::Vector{Statistics}
    counts::ExpectedCounts
    source::Vector{Float64}  # of each head: the weight of its samples, which is the flow that enters there
    total::Float64
    position::Int            # finished samples
end

function FlowJob(plan::Plan, X::Data, head_of; weights=ones(Float32, num_samples(X)))
    N, c = num_samples(X), plan.circuit
    N >= 1 || throw(ArgumentError("X has no samples"))
    sources = Sources(c, head_of, weights, N)
    plan.soft == (X isa SoftEvidence) || throw(ArgumentError("soft = $(plan.soft): no plan for $(typeof(X))"))
    check_data(X, plan.limits)
    threads = Threads.nthreads()
    return FlowJob(plan, X, sources, Int32.(1:N), [Workspace(plan; flows=true) for _ in 1:threads],
                   [Statistics(c) for _ in 1:threads], ExpectedCounts(c), zeros(num_heads(c)), 0.0, 0)
end

"""
Tiles for each thread between looks at the clock, when single-precision sums go to double precision: fewer of a large circuit, but
always the same for one circuit, because sums depend on it in their last digits.
"""
tiles_at_once(c::Circuit) = clamp(2^22 ÷ max(num_edges(c), 1), 1, 16)

function advance!(job::FlowJob, seconds::Real=Inf)
    started, N = time(), num_samples(job.X)
    piece = tiles_at_once(job.plan.circuit) * TILE * length(job.statistics)
    while job.position < N
        first, last = job.position + 1, min(job.position + piece, N)
        total = accumulate!(job.counts, job.statistics, job.workspaces, job.plan, job.X, job.sources, job.order, first, last)
        add_sources!(job, first, last, isfinite(total))
        job.total += total
        job.position = last
        time() - started > seconds && break
    end
    return job.position
end

"Where a sample is impossible, so that it has no flow, the samples are looked through one by one."
function add_sources!(job::FlowJob, first::Int, last::Int, possible::Bool)
    c, sources = job.plan.circuit, job.sources
    for n in first:last
        head = sources.head_of[n]
        if possible || isfinite(log_values(c, job.X, n)[c.heads[head]])
            job.source[head] += sources.weight_of[n]
        end
    end
end

"""
    unit_flows(job::FlowJob) -> (units, edges)

The flows of all units and of all edges, Float64, in the circuit's order. The flow of a product's edge is the product's own.
"""
function unit_flows(job::FlowJob)
    c = job.plan.circuit
    units, edge_flows = zeros(num_units(c)), copy(job.counts.weight)
    for (h, u) in enumerate(c.heads)
        units[u] += job.source[h]
    end
    for u in reverse(1:num_units(c)), e in edges(c, u)
        c.kind[u] == PRODUCT && (edge_flows[e] = units[u])
        units[child(c, u, e)] += edge_flows[e]
    end
    return units, edge_flows
end

"""
    flows(circuit, X, head_of; weights = ones) -> (units, edges)

The flows of a data set: see [`FlowJob`](@ref) and [`unit_flows`](@ref).
"""
function flows(c::Circuit, X::Data, head_of; kwargs...)
    job = FlowJob(Plan(c; soft=X isa SoftEvidence), X, head_of; kwargs...)
    advance!(job)
    return unit_flows(job)
end

"Flows of all units for one sample, exactly, from the log values of all units."
function exact_unit_flows(c::Circuit, log_value::Vector{Float64}, head::Integer)
    flow = zeros(num_units(c))
    flow[c.heads[head]] = 1
    for u in reverse(1:num_units(c))
        flow[u] > 0 || continue
        for e in edges(c, u)
            v = child(c, u, e)
            flow[v] += c.kind[u] == PRODUCT ? flow[u] : c.weight[e] * exp(log_value[v] - log_value[u]) * flow[u]
        end
    end
    return flow
end

"""
    MarginalsJob(plan, X, head_of, out)

Posterior marginals p(x_i = k | what is known of sample n, head_of[n]) for the hidden variables of `X`, [`Masked`](@ref) or
[`SoftEvidence`](@ref): `out`, Float64 `(categories, variables, samples)`, all zeros, receives them. An observed variable
has a 1 at its category.

The derivative of log p(evidence) with respect to the logarithm of an input's value is the input's flow (Darwiche 2003): one
pass up and one down give all variables' marginals. `X`, `head_of` and `out` are kept, not copied. [`advance!`](@ref) does
the work.
"""
mutable struct MarginalsJob{D<:Query}
    plan::Plan
    X::D
    sources::Sources
    out::Array{Float64,3}
    workspaces::Vector{Workspace}
    statistics::Vector{Statistics}  # what the way down leaves behind, not used
    products::Vector{Vector{Float32}}
    position::Int                   # finished samples
end

function MarginalsJob(plan::Plan, X::Query, head_of, out::Array{Float64,3})
    check_query(plan, X, head_of, size(out, 3))
    C, N, threads = maximum(plan.circuit.categories), num_samples(X), Threads.nthreads()
    size(out, 1) >= C || throw(ArgumentError("out has room for $(size(out, 1)) categories, the circuit has $C"))
    return MarginalsJob(plan, X, Sources(head_of, ones(Float32, N)), out, [Workspace(plan; flows=true) for _ in 1:threads],
                        [Statistics(plan.circuit) for _ in 1:threads], [zeros(Float32, TILE * C) for _ in 1:threads], 0)
end

function advance!(job::MarginalsJob, seconds::Real=Inf)
    started, threads, N = time(), length(job.workspaces), num_samples(job.X)
    at_once = threads * TILE
    while job.position < N
        began, skip, last = time(), job.position, min(job.position + at_once, N)
        vanished = [Int[] for _ in 1:threads]
        Threads.@threads for t in 1:threads
            for first in skip + (t - 1) * TILE + 1:threads * TILE:last
                tile_marginals!(vanished[t], job, t, job.X, first, last)
            end
        end
        for n in sort!(reduce(vcat, vanished))
            exact_marginals!(job, job.X, n)
        end
        job.position = last
        time() - began < SHARE && (at_once *= 2)
        time() - started > seconds && break
    end
    return job.position
end

function tile_marginals!(vanished, job::MarginalsJob, t::Int, X::Query, first::Int, last::Int)
    plan, ws, stat, product, out = job.plan, job.workspaces[t], job.statistics[t], job.products[t], job.out
    count = evaluate_tile!(vanished, ws, plan, X, job.sources.head_of, first, last)
    GC.@preserve ws stat plan X product begin
        for s in 1:TILE
            ws.live[s] = s <= count && !(ws.samples[s] in vanished)
        end
        start_flows!(ws, plan, job.sources, count)
        backward!(stat, ws, plan) do gi
            g = plan.groups[gi]
            any_hidden(X, g.variable, ws.samples, count) || return
            add_marginals!(out, ws, plan, g, X, input_derivatives!(ws, plan, g, X), product, count)
        end
    end
    for s in 1:count
        ws.live[s] && finish_marginals!(out, plan.circuit, X, ws.samples[s], job.sources.head_of)
    end
end

"Adds a group of inputs' share of its variable's marginals, which its derivatives, in columns, say, to the tile's samples."
function add_marginals!(out::Array{<:AbstractFloat,3}, ws::Workspace, plan::Plan, g::Group, X::Query, derivatives::Ptr{Float32},
                        product::Vector{Float32}, count::Int)
    C = g.categories
    gemm!('T', 'T', 1f0, table(plan, g), matrix(derivatives, TILE, width(g)), 0f0, matrix(pointer(product), C, TILE))
    for s in 1:count
        n = ws.samples[s]
        is_hidden(X, g.variable, n) || continue
        @inbounds @simd for k in 1:C
            out[k, g.variable, n] += product[k + (s - 1) * C] * likelihood(X, g.variable, k - 1, n)
        end
    end
end

function any_hidden(X, i, samples, count)
    for s in 1:count
        is_hidden(X, i, samples[s]) && return true
    end
    return false
end

"""
The derivatives of log p(evidence) with respect to a group of hidden inputs, in columns: flow / value, where the value of a
marginalised input is 1.
"""
input_derivatives!(ws, plan, g, X::Masked) = flow_columns(ws, g)

function input_derivatives!(ws, plan, g, X::SoftEvidence)
    evidence_values!(ws, plan, g, X)
    value, flow = value_columns(ws, g), flow_columns(ws, g)
    for k in 0:width(g) - 1, v in 0:VECTORS - 1
        p = column(value, k) + 64 * v
        store_lanes(p, ratio(load_lanes(column(flow, k) + 64 * v), load_lanes(p)))
    end
    return value
end

"Scales each hidden variable's marginal to 1, which rounding misses by little, and writes the observed ones."
function finish_marginals!(out, c::Circuit, X, n, head_of)
    for i in 1:c.num_vars
        if is_hidden(X, i, n)
            total = 0.0
            for k in axes(out, 1)
                total += out[k, i, n]
            end
            total > 0 || uncovered(head_of[n], i)
            for k in axes(out, 1)
                out[k, i, n] /= total
            end
        else
            k = observed(X, i, n) + 1
            k <= size(out, 1) && (out[k, i, n] = 1)  # a variable that the circuit does not cover may have any value
        end
    end
end

function exact_marginals!(job::MarginalsJob, X::Query, n::Int)
    exact_marginals!(job.out, job.plan.circuit, X, job.sources.head_of, n) || no_evidence(n, job.sources.head_of[n])
end

"Returns whether there are any: none follow from evidence of probability 0."
function exact_marginals!(out::Array{<:AbstractFloat,3}, c::Circuit, X::Query, head_of, n::Int)
    head, log_value = head_of[n], log_values(c, X, n)
    isfinite(log_value[c.heads[head]]) || return false
    flow = exact_unit_flows(c, log_value, head)
    for u in 1:num_units(c)
        isinput(c.kind[u]) && flow[u] > 0 && is_hidden(X, c.variable[u], n) || continue
        for k in 0:c.categories[u] - 1
            p = c.leaf[c.param_start[u] + k * c.param_stride[u]] * likelihood(X, c.variable[u], k, n)
            out[k + 1, c.variable[u], n] += flow[u] * p / exp(log_value[u])
        end
    end
    finish_marginals!(out, c, X, n, head_of)
    return true
end

"""
    posterior_marginals(circuit, X; head_of = ones) -> Array{Float64,3}

`(categories, variables, samples)`: see [`MarginalsJob`](@ref).
"""
function posterior_marginals(c::Circuit, X::Query; head_of=ones(Int32, num_samples(X)))
    plan = Plan(c; soft=X isa SoftEvidence)
    job = MarginalsJob(plan, X, head_of, zeros(maximum(c.categories), c.num_vars, num_samples(X)))
    advance!(job)
    return job.out
end
