# What flows say of a data set: expected counts, and the flows of units and edges.

"""
    FlowJob(engine, X, head_of; weights = ones)

Adds up the flows of the samples of `X`, each from head `head_of[n]` and multiplied by `weights[n]`. A sample of probability
0 has no flow. `X` is kept, not copied. [`advance!`](@ref) does the work, piece by piece; then `counts` are the
[`ExpectedCounts`](@ref), `total` the weighted sum of the log-likelihoods, and [`unit_flows`](@ref) gives the flows of all
units and edges.
"""
mutable struct FlowJob{D<:Data,E<:Engine}
    engine::E
    X::D
    sources::Sources
    order::Vector{Int32}
    counts::ExpectedCounts
    source::Vector{Float64}  # of each head: the weight of its samples, which is the flow that enters there
    total::Float64
    position::Int            # finished samples
end

function FlowJob(e::Engine, X::Data, head_of; weights=ones(Float32, num_samples(X)))
    N, c = num_samples(X), circuit(e)
    N >= 1 || throw(ArgumentError("X has no samples"))
    sources = Sources(c, head_of, weights, N)
    is_soft(e) == (X isa SoftEvidence) || throw(ArgumentError("soft = $(is_soft(e)): no engine for $(typeof(X))"))
    check_data(X, schedule(e).limits)
    return FlowJob(e, X, sources, Int32.(1:N), ExpectedCounts(c), zeros(num_heads(c)), 0.0, 0)
end

FlowJob(plan::Plan, X::Data, head_of; kwargs...) = FlowJob(CPUEngine(plan), X, head_of; kwargs...)

function advance!(job::FlowJob, seconds::Real=Inf)
    started, N, sources = time(), num_samples(job.X), job.sources
    while job.position < N
        range = job.position + 1:min(job.position + samples_at_once(job.engine), N)
        total, impossible = expect!(job.engine, job.X, sources, job.order, range)
        pause()
        counts!(job.counts, job.engine, sources.scale)
        job.total += sources.scale * total
        for n in range
            job.source[sources.head_of[n]] += sources.scale * sources.weight_of[n]
        end
        for n in impossible
            job.source[sources.head_of[n]] -= sources.scale * sources.weight_of[n]
        end
        job.position = last(range)
        time() - started > seconds && break
    end
    return job.position
end

"""
    unit_flows(job::FlowJob) -> (units, edges)

The flows of all units and of all edges, Float64, in the circuit's order. The flow of a product's edge is the product's own.
"""
function unit_flows(job::FlowJob)
    c = circuit(job.engine)
    units, edge_flows = zeros(num_units(c)), copy(job.counts.weight)
    for (h, u) in enumerate(c.heads)
        units[u] += job.source[h]
    end
    for u in reverse(1:num_units(c))
        for e in edges(c, u)
            c.kind[u] == PRODUCT && (edge_flows[e] = units[u])
            units[child(c, u, e)] += edge_flows[e]
        end
        pause(10 + 2 * length(edges(c, u)))
    end
    return units, edge_flows
end

"""
    flows(circuit, X, head_of; weights = ones) -> (units, edges)

The flows of a data set: see [`FlowJob`](@ref) and [`unit_flows`](@ref).
"""
function flows(c::Circuit, X::Data, head_of; kwargs...)
    job = FlowJob(engine(c; soft=X isa SoftEvidence), X, head_of; kwargs...)
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
            flow[v] += c.kind[u] == PRODUCT ? flow[u] : weighted(c, e, log_value[v] - log_value[u]) * flow[u]
        end
    end
    return flow
end
