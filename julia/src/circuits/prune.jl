# Pruning: the edges with little flow go, and with them the units that nothing reaches any more.

"""
    prune(circuit, X, head_of; min_flow = 1e-4, keep = nothing, weights = ones) -> Circuit

A new circuit without the sum edges whose data-set flow is at most `min_flow` times the samples' weight; or, with `keep`, a number
in (0, 1], with that fraction of the sum edges, those with the largest flows (the first of equals). A sum that would lose all its
edges keeps the one with the largest flow (of equals, the largest weight). What is left of a sum's weights is scaled to 1, and units that no head
reaches are dropped. Edges of weight 0 are always dropped, and count for nothing.

`min_flow = 0` drops the edges without any flow, however small ([`SupportJob`](@ref)): no sample becomes less likely.
"""
function prune(c::Circuit, X::Data, head_of; min_flow::Real=1e-4, keep::Union{Nothing,Real}=nothing,
               weights=ones(Float32, num_samples(X)))
    check_pruning(min_flow, keep)
    plan = Plan(c; soft=X isa SoftEvidence)
    job = FlowJob(plan, X, head_of; weights=weights)
    advance!(job)
    keep === nothing || return prune_to_fraction(job, keep)
    has_silent_edges(job, min_flow) || return prune_by_flow(job, min_flow)
    support = SupportJob(plan, X, head_of; weights=weights)
    advance!(support)
    return prune_unsupported(job, support)
end

function check_pruning(min_flow, keep)
    0 <= min_flow < Inf || throw(ArgumentError("min_flow = $min_flow: want a number, 0 or more"))
    keep === nothing || 0 < keep <= 1 || throw(ArgumentError("keep = $keep: want a number in (0, 1]"))
end

"Whether edges may have been left without flow by rounding alone, which matters where any flow counts."
function has_silent_edges(job::FlowJob, min_flow)
    min_flow == 0 || return false
    c, flow = circuit(job.engine), job.counts.weight
    for u in 1:num_units(c)
        c.kind[u] == SUM && any(e -> flow[e] == 0 && c.weight[e] > 0, edges(c, u)) && return true
        pause(10 + length(edges(c, u)))
    end
    return false
end

"By the flows that a finished job has found."
function prune_by_flow(job::FlowJob, min_flow::Real)
    flow, least = job.counts.weight, min_flow * total_weight(job.sources)
    return keep_edges(circuit(job.engine), flow, flow .> least)
end

prune_unsupported(job::FlowJob, support::SupportJob) =
    keep_edges(circuit(job.engine), job.counts.weight, supported(support))

function prune_to_fraction(job::FlowJob, keep::Real)
    c, flow = circuit(job.engine), job.counts.weight
    candidate, kept = fill(false, num_edges(c)), fill(false, num_edges(c))
    for u in 1:num_units(c)
        c.kind[u] == SUM && (view(candidate, edges(c, u)) .= view(c.weight, edges(c, u)) .> 0)
        pause(10 + length(edges(c, u)))
    end
    wanted = round(Int, keep * count(candidate))
    if wanted > 0
        least, equals = nth_largest(flow, candidate, wanted)
        for e in eachindex(flow)
            pause(1)
            candidate[e] && flow[e] >= least || continue
            flow[e] > least || (equals -= 1) >= 0 || continue
            kept[e] = true
        end
    end
    return keep_edges(c, flow, kept)
end

"""
The `n`th largest of the `candidate` numbers, none negative, and how many of those equal to it are among the `n` largest: the order of
such numbers is that of their bits, which are found 16 at a time.
"""
function nth_largest(numbers::Vector{Float64}, candidate::Vector{Bool}, n::Int)
    prefix, counts = UInt64(0), zeros(Int, 2^16)
    for shift in (48, 32, 16, 0)
        count_digits!(fill!(counts, 0), numbers, candidate, prefix, shift)
        digit = 2^16
        while counts[digit] < n
            n -= counts[digit]
            digit -= 1
        end
        prefix = prefix << 16 | UInt64(digit - 1)
    end
    return reinterpret(Float64, prefix), n
end

"Counts the 16 bits above bit `shift` of those candidates whose higher bits are `prefix`."
function count_digits!(counts, numbers, candidate, prefix, shift)
    in_pieces(eachindex(numbers)) do range
        @inbounds for e in range
            bits = reinterpret(UInt64, numbers[e] + 0.0) >> shift  # no -0.0
            candidate[e] && bits >> 16 == prefix && (counts[bits & 0xffff + 1] += 1)
        end
    end
end

"The circuit with those edges of its sums that are `kept`, and at least one of each sum."
function keep_edges(c::Circuit, flow, kept::AbstractVector{Bool})
    kept = kept .& (c.weight .> 0)
    for u in 1:num_units(c)
        c.kind[u] == PRODUCT && (view(kept, edges(c, u)) .= true)
        c.kind[u] == SUM && !any(view(kept, edges(c, u))) && (kept[largest(c, flow, u)] = true)
        pause(10 + length(edges(c, u)))
    end
    reached = reachable(c, c.heads, kept)
    b, new = Builder(c.num_vars, num_units(c), num_edges(c), length(c.leaf)), zeros(Int32, num_units(c))
    for group in ordered_groups(c)[3]
        units = filter(u -> reached[u], group.units)
        isempty(units) && continue
        if isinput(group.kind)
            new[units] = copy_inputs!(b, c, units)
        else
            for u in units
                new[u] = group.kind == PRODUCT ? add_product!(b, (new[v] for v in children(c, u))) : add_pruned_sum!(b, c, u, kept, new)
            end
        end
    end
    return Circuit(b, new[c.heads], c.head_weight)
end

"""
    with_heads(circuit, select) -> Circuit

A new circuit with the heads `select` of the old one, in that order, without the units that none of them reaches. Their prior weights
are scaled to sum to 1.
"""
function with_heads(c::Circuit, select)
    isempty(select) && throw(ArgumentError("heads: found none, wanted at least 1"))
    all(h -> 1 <= h <= num_heads(c), select) ||
        throw(ArgumentError("heads: found $(extrema(select) .- 1), the circuit has heads 0..$(num_heads(c) - 1)"))
    shares = c.head_weight[select]
    shares = sum(shares) > 0 ? shares ./ sum(shares) : equal_shares(length(select))
    chosen = Circuit(c.num_vars, c.kind, c.variable, c.categories, c.param_start, c.param_stride, c.success, c.child_start,
                     all_children(c), c.weight, c.leaf, c.heads[select], shares)
    return keep_edges(chosen, zeros(num_edges(c)), trues(num_edges(c)))
end

"The edge of sum `u` with the largest flow; of equals, the largest weight."
function largest(c::Circuit, flow, u)
    best = first(edges(c, u))
    for e in edges(c, u)
        (flow[e], c.weight[e]) > (flow[best], c.weight[best]) && (best = e)
    end
    return best
end

"Which units can be reached from `starts` over the edges that are `kept`."
function reachable(c::Circuit, starts, kept)
    reached = fill(false, num_units(c))
    reached[starts] .= true
    for u in reverse(1:num_units(c))
        reached[u] || continue
        for e in edges(c, u)
            kept[e] && (reached[child(c, u, e)] = true)
        end
        pause(10 + 2 * length(edges(c, u)))
    end
    return reached
end

function add_pruned_sum!(b::Builder, c::Circuit, u, kept, new)
    total, lost = 0.0, false
    for e in edges(c, u)
        kept[e] ? (total += c.weight[e]) : (lost |= c.weight[e] > 0)
    end
    lost || (total = 1.0)  # nothing to make up for: the weights stay what they are, bit for bit
    for e in edges(c, u)
        kept[e] || continue
        push!(b.child, new[child(c, u, e)])
        push!(b.weight, c.weight[e] / total)
    end
    pause(10 * length(edges(c, u)))
    return add_unit!(b, SUM)
end
