# The CPU's statistics of EM, and the M-step from them.

"""
Statistics of one thread: `weight` (edge flows divided by the edge's weight) and `leaf` (flows of the categories), in the
layout of the circuit's parameters. The factor theta of every edge is the same for all samples, so flows leave it out until they
are used: only what is in this file knows. `leaf` is empty where `BatchInputs` take its place.
"""
struct Statistics
    weight::Vector{Float32}
    leaf::Vector{Float32}
end

Statistics(c::Circuit; leaf::Bool=true) =
    Statistics(zeros(Float32, length(c.weight)), zeros(Float32, leaf ? length(c.leaf) : 0))

"Adds a flow to those of edge `e` of a sum, whose weight, `theta`, is part of it. An edge of weight 0 has no flow."
@inline add_edge_flow!(stat::Statistics, e, theta::Float32, flow::Float32) = theta > 0 && (stat.weight[e] += flow / theta)

"Adds the statistics, times `scale`, to `counts`, and clears them."
function take_counts!(counts::ExpectedCounts, c::Circuit, stat::Statistics, scale::Float64)
    add_flows!(counts, c, stat.weight, stat.leaf, scale)
    fill!(stat.weight, 0f0)
    fill!(stat.leaf, 0f0)
end

"Adds flows, times `scale`; those of edges leave out the weight."
function add_flows!(counts::ExpectedCounts, c::Circuit, weight, leaf, scale::Float64)
    theta = c.weight
    @inbounds @simd for e in eachindex(theta)
        counts.weight[e] += scale * (Float64(theta[e]) * weight[e])
    end
    @inbounds @simd for e in eachindex(leaf)
        counts.leaf[e] += scale * leaf[e]
    end
end

"""
    m_step!(schedule, stats, step, pseudocount)

The M-step of [`apply!`](@ref) from the threads' statistics, which are added up in order and cleared.
"""
m_step!(schedule::Schedule, stats::Vector{Statistics}, step::Float32, pseudocount::Float32) =
    m_step!(schedule, stats, step, pseudocount) do gi, t, shares, s, a
        g = schedule.groups[gi]
        g.kind == CATEGORICAL ? apply_categoricals!(schedule.circuit, g, stats, shares, s, a) :
                                apply_others!(schedule.circuit, g, stats, s, a)
    end

"`apply_inputs!(group, thread, room to work in, step, pseudocount)` does the step of a group of inputs."
function m_step!(apply_inputs!::F, schedule::Schedule, stats::Vector{Statistics}, s::Float32, a::Float32) where {F}
    threads = Threads.nthreads()
    Threads.@threads for t in 1:threads
        shares = Matrix{Float32}(undef, schedule.widest + LANES - 1, 3)
        for gi in eachindex(schedule.groups)
            g = schedule.groups[gi]
            if isinput(g.kind)
                gi % threads == t - 1 && apply_inputs!(gi, t, shares, s, a)
            elseif g.kind == SUM
                for k in t:threads:width(g)
                    apply_sum!(schedule.circuit, edges(schedule.circuit, g.units[k]), stats, s, a)
                end
            end
        end
    end
end

function apply_sum!(c::Circuit, edges::UnitRange, stats, step::Float32, pseudocount::Float32)
    length(stats) > 1 && merge_statistics!(s -> s.weight, stats, edges)
    flow, theta = stats[1].weight, c.weight
    GC.@preserve flow theta apply_ratios!(pointer(theta, first(edges)), pointer(flow, first(edges)), length(edges), step, pseudocount)
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
    keep, take = has_flow(total) ? (1 - step, step / total) : (1f0, 0f0)
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

"theta <- (1 - step) theta + step * shares of flow over `range`, where there is at least as much as `least`."
@inline function apply_shares!(theta::Vector{Float32}, flow::Vector{T}, range, step::T, pseudocount::T, least::T) where {T}
    total = pseudocount
    @inbounds @simd for e in range
        total += flow[e]
    end
    if has_flow(total, least)
        keep, take, prior = 1 - step, step / total, pseudocount / length(range)
        @inbounds @simd for e in range
            theta[e] = keep * theta[e] + take * (flow[e] + prior)
        end
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
        apply_shares!(c.leaf, stats[1].leaf, range, step, pseudocount, LEAST_FLOW)
        stats[1].leaf[range] .= 0f0
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
        none = !has_flow(shares[k, 1])  # as it was
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

"Inputs that are learned one by one, or not at all."
function apply_others!(c::Circuit, g::Group, stats, step::Float32, pseudocount::Float32)
    for u in g.units
        range = parameter_range(c, u)
        merge_statistics!(s -> s.leaf, stats, range)
        learn_input!(c, u, stats[1].leaf, range, step, pseudocount, LEAST_FLOW)
        stats[1].leaf[range] .= 0f0
    end
end

"""
    m_step!(schedule, counts, step, pseudocount, least)

The M-step of [`apply!`](@ref) from counts, all of it in Float64; a unit with less flow than `least` has none.
"""
function m_step!(schedule::Schedule, counts::ExpectedCounts, step::Float64, pseudocount::Float64, least::Float64)
    c, threads = schedule.circuit, Threads.nthreads()
    Threads.@threads for t in 1:threads
        for (gi, g) in enumerate(schedule.groups)
            if isinput(g.kind)
                gi % threads == t - 1 && apply_inputs!(c, g, counts.leaf, step, pseudocount, least)
            elseif g.kind == SUM
                for k in t:threads:width(g)
                    apply_shares!(c.weight, counts.weight, edges(c, g.units[k]), step, pseudocount, least)
                end
            end
        end
    end
end

function apply_inputs!(c::Circuit, g::Group, flow::Vector{Float64}, step::Float64, pseudocount::Float64, least::Float64)
    for u in g.units
        learn_input!(c, u, flow, parameter_range(c, u), step, pseudocount, least)
    end
end

"The places of what input `u` is learned from: category after category, where it has them."
parameter_range(c::Circuit, u) =
    range(c.param_start[u], step=c.param_stride[u], length=has_table(c.kind[u]) ? c.categories[u] : num_entries(c.kind[u], 0))

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
