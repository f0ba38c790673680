# Sums over all pairs of units of two groups, as in einsum layers: sum_k = sum over i, j of w[j, i, k] slow_i fast_j. No product has a
# column: each pass is the one matrix product that it must be, with the pairs made on the way, in registers or a few at a time.

multiply_pairs_code(vectors, columns) = block_code(vectors, columns, 1, :stride) do v, k
    at, own = place(:out, 4 * TILE, v, k), :(load_lanes($(place(:slow, 0, v, k))))
    :(store_lanes($at, accumulate ? muladd_lanes($own, $(accumulator(v, k)), load_lanes($at)) : mul($own, $(accumulator(v, k)))))
end

# What each of a slow unit's pairs passes on goes to both of its units.
pair_flows_code(vectors, columns) = block_code(vectors, columns, :stride, 1) do v, j
    at, both, total = place(:fast_flow, 4 * TILE, v, j), place(:slow_flow, 0, v, j), vector(:total, v)
    quote
        y = mul(mul(load_lanes($(place(:slow, 0, v, j))), load_lanes($(place(:fast, 4 * TILE, v, j)))), $(accumulator(v, j)))
        store_lanes($at, add(load_lanes($at), y))
        $total = $(j == 1 ? :y : :(add($total, y)))
        $(j == columns ? :(store_lanes($both, add(load_lanes($both), $total))) : nothing)
    end
end

for vectors in (1, VECTORS), columns in 1:BLOCK
    @eval function multiply_pairs_block!(::Val{$vectors}, ::Val{$columns}, out::Ptr{Float32}, slow::Ptr{Float32}, a::Ptr{Float32},
                                         b::Ptr{Float32}, stride::Int, count::Int, accumulate::Bool)
        a_step = 4 * TILE
        $(multiply_pairs_code(vectors, columns))
    end
    @eval function pair_flows_block!(::Val{$vectors}, ::Val{$columns}, slow_flow::Ptr{Float32}, fast_flow::Ptr{Float32},
                                     slow::Ptr{Float32}, fast::Ptr{Float32}, a::Ptr{Float32}, b::Ptr{Float32}, stride::Int, count::Int)
        a_step = 4 * TILE
        $(pair_flows_code(vectors, columns))
    end
end

"out[:, k] = sum over i, j of slow[:, i] fast[:, j] w[j, i, k], for (fast units, slow units, outputs) weights, the outputs at a stride."
multiply_pairs!(out::Ptr{Float32}, slow::Ptr{Float32}, fast::Ptr{Float32}, w::Ptr{Float32}, stride::Int, sizes::NTuple{2,Int}, outputs::Int) =
    WIDE[] ? multiply_pairs!(Val(VECTORS), out, slow, fast, w, stride, sizes, outputs) :
             multiply_pairs!(Val(1), out, slow, fast, w, stride, sizes, outputs)

function multiply_pairs!(vectors::Val{V}, out, slow, fast, w, stride, (slow_units, fast_units), outputs) where {V}
    for k in 0:BLOCK:outputs - 1, v in 0:V:VECTORS - 1, i in 0:slow_units - 1
        n = min(BLOCK, outputs - k)
        @unrolled(n, multiply_pairs_block!, vectors, column(out, k) + 64 * v, column(slow, i) + 64 * v, fast + 64 * v,
                  w + 4 * (k * stride + i * fast_units), stride, fast_units, i > 0)
    end
end

"""
The flows that such a sum, of ratios r, sends down: with f[:, i, j] = slow[:, i] fast[:, j] times the sum over k of w[j, i, k] r[:, k],
slow_flow[:, i] += sum over j of f[:, i, j] and fast_flow[:, j] += sum over i of f[:, i, j].
"""
pair_flows!(flows::NTuple{2,Ptr{Float32}}, values::NTuple{2,Ptr{Float32}}, r::Ptr{Float32}, w::Ptr{Float32}, stride::Int,
            sizes::NTuple{2,Int}, outputs::Int) =
    WIDE[] ? pair_flows!(Val(VECTORS), flows, values, r, w, stride, sizes, outputs) :
             pair_flows!(Val(1), flows, values, r, w, stride, sizes, outputs)

function pair_flows!(vectors::Val{V}, (slow_flow, fast_flow), (slow, fast), r, w, stride, (slow_units, fast_units), outputs) where {V}
    for i in 0:slow_units - 1, j in 0:BLOCK:fast_units - 1, v in 0:V:VECTORS - 1
        n = min(BLOCK, fast_units - j)
        @unrolled(n, pair_flows_block!, vectors, column(slow_flow, i) + 64 * v, column(fast_flow, j) + 64 * v, column(slow, i) + 64 * v,
                  column(fast, j) + 64 * v, r + 64 * v, w + 4 * (i * fast_units + j), stride, outputs)
    end
end

# So many pairs are turned at a time, whole blocks of vectors: they stay in the cache.
const PAIRS_AT_ONCE = 2 * VECTORS * LANES

"""
stat[j, i, k] += sum over the tile of slow[:, i] fast[:, j] r[:, k]. `turned` is room for some of the pairs
(`turned_length(PAIRS_AT_ONCE)`); `room`: as `edge_flows!` has it.
"""
function pair_edge_flows!(stat::Ptr{Float32}, values::NTuple{2,Ptr{Float32}}, r::Ptr{Float32}, stride::Int, (slow_units, fast_units),
                          outputs::Int, turned::Ptr{Float32}, room::Int)
    pairs = slow_units * fast_units
    for first in 0:PAIRS_AT_ONCE:pairs - 1
        count = min(PAIRS_AT_ONCE, pairs - first)
        turn_pairs!(turned, values, fast_units, first, count)
        turned_edge_flows!(stat + 4 * first, turned, r, stride, count, outputs, room - first)
    end
end

"turned[p, :] = slow[:, i] fast[:, j] for `count` pairs (i, j) from the one numbered `first`, i fast_units + j, on; 0 beyond the last."
function turn_pairs!(turned::Ptr{Float32}, (slow, fast), fast_units::Int, first::Int, count::Int)
    rows = LANES * cld(count, LANES)
    for p in 0:LANES:rows - 1
        own = ntuple(l -> pair_of(slow, fast, fast_units, first + min(p + l, count) - 1), Val(LANES))
        for v in 0:VECTORS - 1
            lanes = ntuple(l -> p + l <= count ? mul(load_lanes(own[l][1] + 64 * v), load_lanes(own[l][2] + 64 * v)) : splat(0f0), Val(LANES))
            store_rows!(turned + 4 * (LANES * v * rows + p), 4 * rows, transpose16(lanes))
        end
    end
end

@inline function pair_of(slow, fast, fast_units, p)
    i, j = divrem(p, fast_units)
    return column(slow, i), column(fast, j)
end

# ------------------------------------------------------------------------------------------------------------ in a tile of a plan

pair_sizes(pairs::Pairs) = (length(pairs.slow), length(pairs.fast))

"The first columns of the values of the slow units and of the fast ones; and of their flows."
@inline pair_columns(ws::Workspace, plan::Plan, pairs::Pairs) = (column(value_columns(ws, plan, pairs.slow_group), first(pairs.slow) - 1),
                                                                 column(value_columns(ws, plan, pairs.fast_group), first(pairs.fast) - 1))
@inline pair_flow_columns(ws::Workspace, plan::Plan, pairs::Pairs) =
    (column(flow_columns(ws, plan, pairs.slow_group), first(pairs.slow) - 1),
     column(flow_columns(ws, plan, pairs.fast_group), first(pairs.fast) - 1))

"What the scale of product group `gi` is, and what its values would lack: all there is of a group whose values are not kept."
function pair_scale!(ws::Workspace, plan::Plan, gi::Int, pairs::Pairs)
    slow, fast, out = exponents(ws, plan, pairs.slow_group), exponents(ws, plan, pairs.fast_group), exponents(ws, plan, gi)
    for v in 0:VECTORS - 1
        store_lanes(out + 64 * v, add(load_lanes(slow + 64 * v), load_lanes(fast + 64 * v)))
    end
    underflowed = pair_underflows!(pointer(ws.underflows), pair_columns(ws, plan, pairs), pair_sizes(pairs))
    ws.small[gi] = ws.small[pairs.slow_group] | ws.small[pairs.fast_group]
    underflowed | ws.losing[pairs.slow_group] | ws.losing[pairs.fast_group] && pair_losses!(ws, plan, gi, pairs, underflowed)
end

"Whether the product of some two positive values underflows; as `multiply_units!` says it. The smallest ones decide."
function pair_underflows!(underflows::Ptr{Float32}, (slow, fast), (slow_units, fast_units))
    worst = ntuple(Val(VECTORS)) do v
        a, b = least_above_zero(slow + 64 * (v - 1), slow_units), least_above_zero(fast + 64 * (v - 1), fast_units)
        underflow(mul(a, b), a, b)
    end
    return store_underflows!(underflows, worst)
end

"The smallest value above 0 of each lane; Inf where there is none."
function least_above_zero(values::Ptr{Float32}, units::Int)
    least = splat(Inf32)
    for k in 0:units - 1
        least = min_above_zero(least, load_lanes(column(values, k)))
    end
    return least
end

function pair_values!(out::Ptr{Float32}, ws::Workspace, plan::Plan, g::Group, b::Block, pairs::Pairs)
    slow, fast = pair_columns(ws, plan, pairs)
    multiply_pairs!(out, slow, fast, pointer(plan.circuit.weight, b.first), b.stride, pair_sizes(pairs), width(g))
end

"Clears the flows that the pairs of sum group `gi` are the first to send to: these are added to, by several blocks perhaps."
function clear_pairs!(ws::Workspace, plan::Plan, gi::Int)
    for b in plan.groups[gi].blocks
        pairs = plan.groups[b.child].pairs
        pairs === nothing && continue
        for child in (pairs.slow_group, pairs.fast_group)
            plan.columns[child].first_sender == gi && clear_flow!(ws, plan, child)
        end
    end
end

function pair_flows!(stat::Statistics, ws::Workspace, plan::Plan, g::Group, b::Block, pairs::Pairs, ratio::Ptr{Float32})
    values, sizes = pair_columns(ws, plan, pairs), pair_sizes(pairs)
    pair_edge_flows!(pointer(stat.weight, b.first), values, ratio, b.stride, sizes, width(g), pointer(ws.turned),
                     length(stat.weight) - b.first + 1)
    pair_flows!(pair_flow_columns(ws, plan, pairs), values, ratio, pointer(plan.circuit.weight, b.first), b.stride, sizes, width(g))
end
