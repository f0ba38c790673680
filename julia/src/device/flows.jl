# The way down: flows of all units, level by level, and statistics of the parameters.

accumulate!(e::DeviceEngine, X::Data, sources::Starts, order, range::UnitRange) =
    accumulate!((pass, certain) -> nothing, e, X, sources, order, range)

"As above; `after(pass, certain)` is called with the places in `order` of each pass when its flows are there, and which rows have any."
function accumulate!(after::F, e::DeviceEngine, X::Data, sources::Starts, order, range::UnitRange) where {F}
    prepare!(e)
    begin_accumulating!(e, length(range))
    total, uncertain = 0.0, Int[]
    make_room!(e, length(range))
    for pass in pieces(range, e.rows)
        load_pass!(e, X, order, pass)
        forward!(e)
        own, started, certain = begin_flows(e, X, sources, order, pass)
        total += own
        append!(uncertain, pass[.!certain])
        backward!(e, started)
        after(pass, certain)
    end
    return total, uncertain
end

"""
The weighted log-likelihood of a pass; what its flows start with, `(rows, units that are heads)`; and for which of its samples the arithmetic
held: the others have no flow.
"""
function begin_flows(e::DeviceEngine, X::Data, sources::Starts, order, pass)
    value, exponent = head_values(e)
    started, found = zeros(Float32, size(value)), zeros(length(pass))
    Threads.@threads for row in eachindex(found)
        n = Int(order[pass[row]])
        for (head, weight) in starts(sources, n)
            h = e.head_place[head]
            weight > 0 && (found[row] += weight * (log_value(value[row, h], exponent[row, h]) + offset(X, n)))
            started[row, h] += weight
        end
        isfinite(found[row]) || (started[row, :] .= 0f0)
    end
    return sum(Iterators.filter(isfinite, found)), started, isfinite.(found)
end

function backward!(e::DeviceEngine, started::Matrix{Float32})
    fill!(e.flows, 0f0)
    over!(start_flow!, e, size(started, 2), e.flows, e.rows, place(e, started), e.heads[1])
    for level in reverse(e.levels)
        over!(gather_flow!, e, count_of(level.gather), e.flows, e.rows, level.gather...)
        for batch in level.batches
            batch_flows!(e, batch)
        end
    end
    e.soft ? evidence_flows!(e) : launch!(input_flow!, e.values, count_of(e.inputs), e.leaf_flow, e.flows, e.rows, e.x, e.inputs...)
end

"Adds the flows of all categories, less their parameters, to the inputs' statistics; the inputs' values make place for flow / value."
function evidence_flows!(e::DeviceEngine)
    for batch in e.evidence_batches
        over!(input_ratio!, e, count_of(batch.units), e.values, e.flows, e.rows, batch.units...)
        batch.learns || continue
        matrix_products!(e.values, table_matrices(e, e.leaf_flow, batch), unit_matrices(e, batch), evidence_matrices(e, e.evidence, batch), 1f0, true)
    end
end

"p(x_i = k | evidence) of the samples of a pass, up to a factor for each, from what [`evidence_flows!`](@ref) leaves: on the host."
function evidence_posterior(e::DeviceEngine)
    posterior = zeros_at(e, Float32, size(e.evidence)...)
    for batch in e.evidence_batches
        matrix_products!(e.values, evidence_matrices(e, posterior, batch), unit_matrices(e, batch), table_matrices(e, e.leaf, batch),
                         batch.again ? 1f0 : 0f0)
    end
    launch!(multiply_by!, posterior, length(posterior), posterior, e.evidence)
    return Array(posterior)
end

"[`accumulate_posterior!`](@ref)"
function accumulate_posterior!(posterior::Array{Float32,3}, e::DeviceEngine, X::SoftEvidence, head_of::Vector{Int32})
    N, sources = num_samples(X), Sources(head_of)
    total, uncertain = accumulate!(e, X, sources, 1:N, 1:N) do pass, certain
        found = evidence_posterior(e)
        for (row, n) in enumerate(pass)
            certain[row] || continue
            for i in axes(posterior, 2), k in axes(posterior, 1)
                posterior[k, i, n] = found[row, k, i]
            end
            finish_marginals!(posterior, circuit(e), X, n, head_of)
        end
    end
    isempty(uncertain) && return total
    settle!(e)
    return total + exact_posterior!(posterior, e, X, head_of, uncertain)
end

"What the sums of a batch, flow / value, send down: to scratch."
function batch_ratios!(e::DeviceEngine, batch)
    over!(flow_ratio!, e, sums_of(batch), e.scratch[1], e.flows, e.values, e.exponents, e.rows, batch.sums...)
end

function batch_flows!(e::DeviceEngine, batch::DenseBatch)
    batch_ratios!(e, batch)
    ratios, parts = scratch_parts(e, 1, batch, batch.width), scratch_parts(e, 2, batch, batch.inputs)
    matrix_products!(e.values, block_matrices(e, e.weight_flow, batch), batch_inputs(e, batch), ratios, 1f0, true)
    matrix_products!(e.values, parts, ratios, block_matrices(e, e.weight, batch), 0f0, false, true)
    if batch.pairs === nothing
        over!(send_flow!, e, children_of(batch), e.flows, e.values, e.scratch[2], e.rows, batch.children...)
    else
        (slow, fast), (m, n), blocks = batch.children, batch.pairs, length(batch.members)
        over!(send_pair_flow!, e, blocks * m, e.flows, e.values, e.scratch[2], e.rows, m, n, n, 1, slow, fast)
        over!(send_pair_flow!, e, blocks * n, e.flows, e.values, e.scratch[2], e.rows, n, 1, m, n, fast, slow)
    end
end

function batch_flows!(e::DeviceEngine, batch::SparseBatch)
    batch_ratios!(e, batch)
    children = children_of(batch)
    launch!(sparse_edges!, e.values, children, e.weight_flow, e.values, e.scratch[1], e.rows, batch.of_children...)
    over!(sparse_flow!, e, children, e.flows, e.values, e.scratch[1], e.weight, e.rows, batch.of_children...)
end

function add_exact!(e::DeviceEngine, X::Data, sources::Starts, order, range::UnitRange, uncertain::Vector{Int})
    settle!(e)
    e.exact === nothing && (e.exact = Statistics(circuit(e)))
    ws, sum_of, impossible = WideWorkspace(e.schedule; flows=true), 0.0, Int[]
    for places in pieces(1:length(uncertain), LANES)
        own = uncertain[places]
        total, possible = add_flows!(e.exact, ws, e.schedule, X, sources, order[own], own .- first(range))
        sum_of += total
        append!(impossible, own[.!possible])
    end
    return sum_of, impossible
end
