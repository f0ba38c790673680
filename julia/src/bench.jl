"""
What `lvd-juice bench` needs beside the engine: its independent evaluation in Float64, and timings of several pieces of work
taken in turn, so that their ratios mean something on a machine that others use too.
"""
module Bench

using ..LVDJuice: Circuit, CPUEngine, Engine, EMJob, PRODUCT, SUM, CATEGORICAL, TILE
using ..LVDJuice: child, edges, expect!, isinput, kept_width, certain_log_likelihood!, log_values, maximise!, num_samples, num_units, settle!, weighted

"log p of every sample under head 1, in nats, evaluated unit by unit in the log domain."
reference_log_likelihood(c::Circuit, X) = [log_values(c, X, n)[c.heads[1]] for n in 1:num_samples(X)]

"""
The parameters (weights, leaf) after one whole EM step (step size 1) on `X` under head 1, from the log-domain values,
for a circuit whose inputs are categorical.
"""
function reference_step(c::Circuit, X, pseudocount)
    weight, leaf = zeros(length(c.weight)), zeros(length(c.leaf))
    for n in 1:num_samples(X)
        value, flow = log_values(c, X, n), zeros(num_units(c))
        flow[c.heads[1]] = 1
        for u in reverse(1:num_units(c))
            if isinput(c.kind[u])
                leaf[c.param_start[u] + X[c.variable[u], n] * c.param_stride[u]] += flow[u]
            else
                for e in edges(c, u)
                    v = child(c, u, e)
                    share = c.kind[u] == PRODUCT ? flow[u] : weighted(c, e, value[v] - value[u]) * flow[u]
                    weight[e] += share
                    flow[v] += share
                end
            end
        end
    end
    for u in 1:num_units(c)
        if c.kind[u] == SUM
            to_shares!(view(weight, edges(c, u)), pseudocount)
        elseif c.kind[u] == PRODUCT
            weight[edges(c, u)] .= 1
        elseif c.kind[u] == CATEGORICAL
            to_shares!(view(leaf, range(c.param_start[u], step=c.param_stride[u], length=c.categories[u])), pseudocount)
        end
    end
    return weight, leaf
end

to_shares!(flow, pseudocount) = flow .= (flow .+ pseudocount / length(flow)) ./ (sum(flow) + pseudocount)

"""
Seconds of each EM step, and of each evaluation of all likelihoods, on the job's backend: two vectors. Each has its turn of `share` seconds,
after a first run that is not counted. An EM step is one batch.
"""
function timings(job::EMJob, X, share)
    out = zeros(1, num_samples(X))
    works = (() -> step!(job), () -> certain_log_likelihood!(out, evaluator(job.engine), X, 1:1))
    seconds = (Float64[], Float64[])
    for (work, times) in zip(works, seconds)
        work()
        last = began = time_ns()
        while last - began < 1e9 * share
            work()
            now = time_ns()
            push!(times, 1e-9 * (now - last))
            last = now
        end
        settle!(job.engine)
    end
    return seconds
end

"What likelihoods are timed on, with the parameters of now: on the CPU without what a job keeps of its inputs between steps."
evaluator(e::CPUEngine) = CPUEngine(e.plan)
evaluator(e::Engine) = e

"The first batch of an epoch, again and again."
function step!(job::EMJob)
    job.position = 0
    expect!(job)
    maximise!(job)
end

"""
Bytes: the arrays of an EM job, without its data; what one of its steps allocates; the parameters; one thread's tile: 64
values and flows of each unit, but of those that take a product's place in the tile only the product's. (Flows take less room
than that: their columns are used again.)
"""
function memory(c::Circuit, X)
    job = EMJob(c, X, ones(Int32, num_samples(X)); batch_size=num_samples(X))
    step!(job)  # compiles
    allocated = @allocated step!(job)
    plan = job.engine.plan
    tile = 4 * TILE * sum(Int[kept_width(g) * (!at.shares_value + !at.shares_flow) for (g, at) in zip(plan.groups, plan.columns)])
    return array_bytes(job) - sizeof(X), allocated, sizeof(c.weight) + sizeof(c.leaf), tile
end

"Bytes of the arrays that are reached from `x`, each once. (`Base.summarysize` of Julia 1.5 does not look into arrays of structs.)"
function array_bytes(x, seen=Base.IdSet{Any}())
    x isa Array || return sum(Int[array_bytes(getfield(x, i), seen) for i in 1:nfields(x)])
    x in seen && return 0
    push!(seen, x)
    return sizeof(x) + (isbitstype(eltype(x)) ? 0 : sum(Int[array_bytes(y, seen) for y in x]))
end

end
