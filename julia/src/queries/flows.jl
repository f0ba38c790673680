# What flows say of a data set: expected counts, and the flows of units and edges.

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
