# What flows say of a sample: posterior marginals of its hidden variables.

"""
    MarginalsJob(plan, X, head_of, out)

Posterior marginals p(x_i = k | what is known of sample n, head_of[n]) for the hidden variables of `X`, [`Masked`](@ref) or
[`SoftEvidence`](@ref): `out`, Float64 `(categories, variables, samples)`, all zeros, receives them. An observed variable
has a 1 at its category. Variables over numbers, which have no categories, keep their zeros.

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
    numbers::Vector{Bool}           # of each variable: whether it has numbers, not categories
    position::Int                   # finished samples
end

function MarginalsJob(plan::Plan, X::Query, head_of, out::Array{Float64,3})
    check_query(plan, X, head_of, size(out, 3))
    C, N, threads = maximum(plan.circuit.categories), num_samples(X), Threads.nthreads()
    size(out, 1) >= C || throw(ArgumentError("out has room for $(size(out, 1)) categories, the circuit has $C"))
    make(f) = map(_ -> (pause(); f()), 1:threads)
    return MarginalsJob(plan, X, Sources(head_of), out, make(() -> Workspace(plan; flows=true)), make(() -> Statistics(plan.circuit)),
                        make(() -> zeros(Float32, TILE * C)), number_variables(plan.circuit), 0)
end

function advance!(job::MarginalsJob, seconds::Real=Inf)
    started, threads, N = time(), length(job.workspaces), num_samples(job.X)
    at_once, large = threads * TILE, num_edges(job.plan.circuit) > LARGE
    while job.position < N
        began, skip, last = time(), job.position, min(job.position + at_once, N)
        vanished = [Int[] for _ in 1:threads]
        firsts(t) = skip + (t - 1) * TILE + 1:threads * TILE:last
        if large  # the way up, and the way down in parts
            Threads.@threads for t in 1:threads
                foreach(first -> evaluate_tile!(vanished[t], job.workspaces[t], job.plan, job.X, job.sources.head_of, first, last), firsts(t))
            end
            pause()
            for groups in reverse(parts_of(job.plan))
                Threads.@threads for t in 1:threads
                    foreach(first -> tile_marginals!(vanished[t], job, t, job.X, min(TILE, last - first + 1), groups), firsts(t))
                end
                pause()
            end
        else
            Threads.@threads for t in 1:threads
                for first in firsts(t)
                    evaluate_tile!(vanished[t], job.workspaces[t], job.plan, job.X, job.sources.head_of, first, last)
                    tile_marginals!(vanished[t], job, t, job.X, min(TILE, last - first + 1), eachindex(job.plan.groups))
                end
            end
        end
        for n in sort!(reduce(vcat, vanished))
            exact_marginals!(job, job.X, n)
            pause()
        end
        job.position = last
        large || time() - began < SHARE && (at_once *= 2)  # there is room for the values of one tile in each thread
        time() - started > seconds && break
    end
    return job.position
end

"Ranges of the plan's groups, first to last, each of about `LARGE` edges or entries of tables."
function parts_of(plan::Plan)
    parts, first, size = UnitRange{Int}[], 1, 0
    for (gi, g) in enumerate(plan.groups)
        size += isinput(g.kind) ? width(g) * g.categories : sum(u -> length(edges(plan.circuit, u)), g.units)
        if size >= LARGE || gi == length(plan.groups)
            push!(parts, first:gi)
            first, size = gi + 1, 0
        end
    end
    return parts
end

"Of the `count` samples whose values thread `t` has: the way down through these groups."
function tile_marginals!(vanished, job::MarginalsJob, t::Int, X::Query, count::Int, groups)
    plan, ws, stat, product, out = job.plan, job.workspaces[t], job.statistics[t], job.products[t], job.out
    GC.@preserve ws stat plan X product begin
        if last(groups) == length(plan.groups)
            for s in 1:TILE
                ws.live[s] = s <= count && !(ws.samples[s] in vanished)
            end
            start_flows!(ws, plan, job.sources, count)
        end
        backward!(stat, ws, plan, groups) do gi
            has_table(plan.groups[gi].kind) && any_hidden(X, plan.groups[gi].variable, ws.samples, count) || return
            add_marginals!(out, ws, plan, gi, X, input_derivatives!(ws, plan, gi, X), product, count)
        end
    end
    first(groups) == 1 || return
    for s in 1:count
        ws.live[s] && finish_marginals!(out, plan.circuit, X, ws.samples[s], job.sources.head_of, job.numbers)
    end
end

"Adds a group of inputs' share of its variable's marginals, which its derivatives, in columns, say, to the tile's samples."
function add_marginals!(out::Array{<:AbstractFloat,3}, ws::Workspace, plan::Plan, gi::Int, X::Query, derivatives::Ptr{Float32},
                        product::Vector{Float32}, count::Int)
    g = plan.groups[gi]
    C, flows = g.categories, matrix(derivatives, TILE, width(g))
    if g.kind == BINOMIAL  # a table in single precision has lost the tails
        tails = [probability(plan.circuit, u, k) for k in 0:C - 1, u in g.units]
        add_products!(out, tails * Float64.(transpose(flows)), g, X, ws.samples, count)
    else
        products = matrix(pointer(product), C, TILE)
        selects(plan.circuit, g) ? transpose!(products, flows) : gemm!('T', 'T', 1f0, table(plan.circuit, g), flows, 0f0, products)
        add_products!(out, matrix(pointer(product), C, TILE), g, X, ws.samples, count)
    end
end

function add_products!(out, product::Matrix, g::Group, X::Query, samples, count::Int)
    for s in 1:count
        n = samples[s]
        is_hidden(X, g.variable, n) || continue
        @inbounds @simd for k in 1:g.categories
            out[k, g.variable, n] += product[k, s] * likelihood(X, g.variable, k - 1, n)
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
input_derivatives!(ws, plan, gi, X::Masked) = flow_columns(ws, plan, gi)

function input_derivatives!(ws, plan, gi, X::SoftEvidence)
    evidence_values!(ws, plan, gi, X)
    value, flow = value_columns(ws, plan, gi), flow_columns(ws, plan, gi)
    for k in 0:width(plan.groups[gi]) - 1, v in 0:VECTORS - 1
        p = column(value, k) + 64 * v
        store_lanes(p, ratio(load_lanes(column(flow, k) + 64 * v), load_lanes(p)))
    end
    return value
end

"Of each variable: whether it has numbers."
function number_variables(c::Circuit)
    found = fill(false, c.num_vars)
    for u in 1:num_units(c)
        isinput(c.kind[u]) && !has_table(c.kind[u]) && (found[c.variable[u]] = true)
        pause(2)
    end
    return found
end

"Scales each hidden variable's marginal to 1, which rounding misses by little, and writes the observed ones; of `numbers`, neither."
function finish_marginals!(out, c::Circuit, X, n, head_of, numbers=())
    for i in 1:c.num_vars
        !isempty(numbers) && numbers[i] && continue
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
            k = Int(observed(X, i, n)) + 1
            k <= size(out, 1) && (out[k, i, n] = 1)  # a variable that the circuit does not cover may have any value
        end
    end
end

function exact_marginals!(job::MarginalsJob, X::Query, n::Int)
    exact_marginals!(job.out, job.plan.circuit, X, job.sources.head_of, n, job.numbers) || no_evidence(n, job.sources.head_of[n])
end

"Returns whether there are any: none follow from evidence of probability 0."
function exact_marginals!(out::Array{<:AbstractFloat,3}, c::Circuit, X::Query, head_of, n::Int, numbers=())
    head, log_value = head_of[n], log_values(c, X, n)
    isfinite(log_value[c.heads[head]]) || return false
    flow = exact_unit_flows(c, log_value, head)
    for u in 1:num_units(c)
        has_table(c.kind[u]) && flow[u] > 0 && is_hidden(X, c.variable[u], n) || continue
        for k in 0:c.categories[u] - 1
            out[k + 1, c.variable[u], n] += flow[u] * share(c, u, X, k, n, log_value[u])
        end
    end
    finish_marginals!(out, c, X, n, head_of, numbers)
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
