# What underflow may have taken from a tile's values. A unit far below its group's largest one underflows to zero or loses
# digits; that counts only if all larger ones vanish further up. So each group and sample carries a bound on what any of its
# values may lack, in the group's scale: 0 as long as nothing underflows; raised where a product of positive factors falls
# below the smallest normal number; scaled with the values; dropped where it is far below the smallest value of its group. A
# head's value that does not dwarf its bound is uncertain, and its sample is evaluated exactly (exact.jl). What carries no
# digit of the head's value carries no digit of the flows either.

const LOSS = 2f0^-126       # at most lost by one product that underflows
const DWARFED = 2f0^-24     # of a value: lost without a trace in Float32

@inline lost(ws::Workspace, gi::Int, s::Int) = @inbounds ws.lost[bounds_at(gi) + s]

"Where the bounds of group `gi` begin, less 1."
@inline bounds_at(gi::Int) = TILE * (gi - 1)

"Whether `value` of group `gi` in lane `s` has all its digits."
@inline dwarfs_loss(ws::Workspace, gi::Int, s::Int, value::Float32) = !ws.losing[gi] || value * DWARFED > lost(ws, gi, s)

"Group `gi` has a bound from now on."
function begin_losing!(ws::Workspace, gi::Int)
    isempty(ws.lost) && resize!(ws.lost, TILE * length(ws.losing))
    ws.losing[gi] = true
end

"Group `gi`'s bound becomes at least that of `child`, whose values it takes up times `scale` (of each lane; null for 1)."
function carry_loss!(ws::Workspace, gi::Int, child::Int, scale::Ptr{Float32}=Ptr{Float32}(0))
    losing = ws.losing[gi]
    begin_losing!(ws, gi)
    lost, own, other, scaled = ws.lost, bounds_at(gi), bounds_at(child), scale != C_NULL
    @inbounds @simd for s in 1:TILE
        bound, before = lost[other + s], ifelse(losing, lost[own + s], 0f0)
        # Where all was lost, Inf, no scale makes it small.
        bound = ifelse(scaled & (bound < Inf32), bound * (scaled ? unsafe_load(scale, s) : 1f0), bound)
        lost[own + s] = ifelse(before > bound, before, bound)
    end
end

# The largest value of a group: inputs are probabilities, sums are normalised, products are every so many factors.
const LARGEST_SUM = sqrt(2f0)
const LARGEST_FACTOR = LARGEST_SUM^FACTORS_BETWEEN_SCALING

largest_value(g::Group) = isinput(g.kind) ? 1f0 : g.kind == SUM ? LARGEST_SUM : LARGEST_FACTOR

"""
The bound of product group `gi`, whose values were at most `largest`, after it was multiplied by `child`, and underflowed in the
lanes of `ws.underflows`: (a + da) (b + db) - a b = a db + (b + db) da.
"""
function multiply_losses!(ws::Workspace, plan::Plan, gi::Int, child::Int, largest::Float32, underflowed::Bool)
    b, losing, other_losing = largest_value(plan.groups[child]), ws.losing[gi], ws.losing[child]
    begin_losing!(ws, gi)
    lost, own, other, underflows = ws.lost, bounds_at(gi), bounds_at(child), ws.underflows
    @inbounds @simd for s in 1:TILE
        da, db = ifelse(losing, lost[own + s], 0f0), ifelse(other_losing, lost[other + s], 0f0)
        bound = ifelse(underflowed & (underflows[s] > 0), LOSS, 0f0) + largest * db
        lost[own + s] = bound + ifelse(da > 0, (b + db) * da, 0f0)
    end
end

"Scales the bound as `normalise!` scaled the group's values."
function scale_losses!(ws::Workspace, gi::Int)
    lost, own, factors = ws.lost, bounds_at(gi), ws.factor
    @inbounds @simd for s in 1:TILE
        bound, factor = lost[own + s], factors[s]
        # Values that were all zero give no scale to judge the loss by.
        lost[own + s] = ifelse(bound > 0, ifelse(factor > 1 / LOSS, Inf32, bound * factor), bound)
    end
end

"The bound of sum group `gi`, once its values are normalised; before, it has what its children carried to it."
function sum_losses!(ws::Workspace, plan::Plan, gi::Int)
    if any_small(ws, pointer(ws.least))
        for k in 1:width(plan.groups[gi])
            terms = sum_underflows!(ws, plan, gi, k)
            terms > 0 && add_losses!(ws, gi, LARGEST_FACTOR * LOSS * terms)
        end
    end
    ws.losing[gi] && scale_losses!(ws, gi)
    small_divisors!(ws, plan, gi) && add_losses!(ws, gi, Float32(SMALLEST_DIVISOR))
    ws.losing[gi] && drop_losses!(ws, gi)
end

"Adds `bound` to group `gi`'s in the lanes of `ws.underflows`."
function add_losses!(ws::Workspace, gi::Int, bound::Float32)
    losing = ws.losing[gi]
    begin_losing!(ws, gi)
    lost, own, underflows = ws.lost, bounds_at(gi), ws.underflows
    @inbounds @simd for s in 1:TILE
        lost[own + s] = ifelse(losing, lost[own + s], 0f0) + ifelse(underflows[s] > 0, bound, 0f0)
    end
end

"Sets the bound to 0 where even the smallest value of the group dwarfs it."
function drop_losses!(ws::Workspace, gi::Int)
    any_left = false
    for v in 0:VECTORS - 1
        low = load_lanes(pointer(ws.least) + 64 * v)
        p = pointer(ws.lost, bounds_at(gi) + 1) + 64 * v
        left = zero_below(load_lanes(p), mul(low, splat(DWARFED)))
        store_lanes(p, left)
        any_left |= any_less(splat(0f0), left)
    end
    ws.losing[gi] = any_left
end

"""
The number of terms of sum k of group `gi` if any of them underflowed in a lane where the sum is small, else 0; which lanes
those are goes to `ws.underflows`.
"""
function sum_underflows!(ws::Workspace, plan::Plan, gi::Int, k::Int)
    any_small(ws, column(value_columns(ws, plan, gi), k - 1)) || return 0
    worst = ntuple(v -> term_underflows(ws, plan, gi, k, v), Val(VECTORS))
    store_underflows!(pointer(ws.underflows), worst) || return 0
    return sum(length(terms(plan, block, k)) for block in plan.groups[gi].blocks)
end

# Terms were added before the values were normalised: that is the scale in which a sum is small beside them.
@inline small(ws::Workspace, v::Int) = mul(splat(SMALL), load_lanes(pointer(ws.factor) + 64 * (v - 1)))

"Whether one of a tile's values is small."
any_small(ws::Workspace, values::Ptr{Float32}) = any(v -> any_less(load_lanes(values + 64 * (v - 1)), small(ws, v)), 1:VECTORS)

function term_underflows(ws::Workspace, plan::Plan, gi::Int, k::Int, v::Int)
    g, found = plan.groups[gi], splat(0f0)
    any_less(load_lanes(column(value_columns(ws, plan, gi), k - 1) + 64 * (v - 1)), small(ws, v)) || return found
    for (b, block) in enumerate(g.blocks)
        scales = block_scale(ws, plan, g, b)
        scale = scales == C_NULL ? splat(1f0) : load_lanes(scales + 64 * (v - 1))
        for i in terms(plan, block, k)
            j, e = term(block, k, i)
            w, x = splat(plan.circuit.weight[e]), term_value(ws, plan, block.child, j, v)
            found = max_lanes(found, underflow(mul(mul(w, x), scale), w, x))
        end
    end
    return found
end

"Vector `v` of what a block multiplies weights of unit j of `child` with; of pairs, the smaller of the fast one's value and the product."
function term_value(ws::Workspace, plan::Plan, child::Int, j::Int, v::Int)
    pairs = plan.groups[child].pairs
    pairs === nothing && return load_lanes(column(value_columns(ws, plan, child), j - 1) + 64 * (v - 1))
    i, j = divrem(j - 1, length(pairs.fast))
    fast = load_lanes(column(pair_columns(ws, plan, pairs)[2], j) + 64 * (v - 1))
    return min_lanes(fast, mul(load_lanes(column(pair_columns(ws, plan, pairs)[1], i) + 64 * (v - 1)), fast))
end

# The terms of sum k that a block has, and each one's unit of the child group and edge.
terms(plan::Plan, b::Block, k::Int) = isdense(b) ? (1:width(plan.groups[b.child])) : Int(b.of_sums.start[k]):Int(b.of_sums.start[k + 1] - 1)
term(b::Block, k::Int, i::Int) =
    isdense(b) ? (i, b.first + i - 1 + (k - 1) * b.stride) : (Int(b.of_sums.index[i]), b.first + b.of_sums.edge[i])

"Whether group `gi` has positive values too small to divide flows by (`ratio`); `ws.underflows` gets the lanes."
function small_divisors!(ws::Workspace, plan::Plan, gi::Int)
    g, step = plan.groups[gi], splat(LOSS / Float32(SMALLEST_DIVISOR))
    minimum(ws.least) < SMALLEST_DIVISOR || return false
    worst = ntuple(_ -> splat(0f0), Val(VECTORS))
    for k in 1:width(g)
        worst = smaller_than(step, column(value_columns(ws, plan, gi), k - 1), worst)
    end
    return store_underflows!(pointer(ws.underflows), worst)
end

@inline smaller_than(step::Lanes, values::Ptr{Float32}, worst::NTuple{VECTORS,Lanes}) = ntuple(Val(VECTORS)) do v
    value = load_lanes(values + 64 * (v - 1))
    max_lanes(worst[v], underflow(mul(value, step), value, value))
end

"Input group `gi` may lack as much as `least` where a value is smaller than that."
function input_losses!(ws::Workspace, plan::Plan, gi::Int, least::Float32)
    g, first = plan.groups[gi], plan.columns[gi].value
    for s in 1:TILE
        low = Inf32
        for k in 1:width(g)
            low = min(low, ws.values[TILE * (first + k - 1) + s])
        end
        ws.underflows[s] = low < least
    end
    any(>(0), ws.underflows) && add_losses!(ws, gi, least)
end
