# What underflow may have taken from a tile's values. A unit far below its group's largest one underflows to zero or loses
# digits; that counts only if all larger ones vanish further up. So each unit of a group and each sample has a bound on what its
# value may lack, in the group's scale: none as long as nothing of the group underflows; raised where a product of positive factors
# falls below the smallest normal number; carried up as the values are, by the same weights; dropped where the value dwarfs it. A
# head's value that does not dwarf its bound is uncertain, and its sample is evaluated exactly (wide.jl). What carries no
# digit of the head's value carries no digit of the flows either.

const LOSS = 2f0^-126       # at most lost by one product that underflows
const DWARFED = 2f0^-24     # of a value: lost without a trace in Float32

# Bounds are kept times 2^100, and one that is not 0 as no less than LOSS: so they do not underflow themselves.
const RAISED = 2f0^100
const LEAST_BOUND = LOSS * RAISED

@inline at_least(bound::Float32) = ifelse(bound < LEAST_BOUND, LEAST_BOUND, bound)

"Where the column of unit `k` of group `gi` begins, less 1, in the buffers of values and of bounds."
@inline column_at(plan::Plan, gi::Int, k::Int) = @inbounds TILE * (plan.columns[gi].value + k - 1)

@inline lost_columns(ws::Workspace, plan::Plan, gi) = pointer(ws.lost) + 4 * TILE * plan.columns[gi].value

"Whether `value` of unit `k` of group `gi` in lane `s` has all its digits."
@inline dwarfs_loss(ws::Workspace, plan::Plan, gi::Int, k::Int, s::Int, value::Float32) =
    @inbounds !ws.losing[gi] || value * (DWARFED * RAISED) > ws.lost[column_at(plan, gi, k) + s]

"Group `gi` has bounds from now on."
function begin_losing!(ws::Workspace, plan::Plan, gi::Int)
    ws.losing[gi] && return
    isempty(ws.lost) && resize!(ws.lost, TILE * plan.value_columns)
    first = column_at(plan, gi, 1)
    @inbounds @simd for i in first + 1:first + TILE * kept_width(plan.groups[gi])
        ws.lost[i] = 0f0
    end
    ws.losing[gi] = true
end

# The largest value of a group: inputs are probabilities, sums are normalised, products are every so many factors.
const LARGEST_SUM = sqrt(2f0)
const LARGEST_FACTOR = LARGEST_SUM^FACTORS_BETWEEN_SCALING

largest_value(g::Group) = isinput(g.kind) ? 1f0 : g.kind == SUM ? LARGEST_SUM : LARGEST_FACTOR

"The bounds of product group `gi`, whose values were copied from the units of `f`."
function copy_losses!(ws::Workspace, plan::Plan, gi::Int, f::Factor)
    begin_losing!(ws, plan, gi)
    for k in 1:width(plan.groups[gi])
        copyto!(ws.lost, column_at(plan, gi, k) + 1, ws.lost, column_at(plan, f.child, place(f, k)) + 1, TILE)
    end
end

@inline place(f::Factor, k::Int) = f.identity ? k : Int(f.index[k])

"The bounds of product group `gi`, before its values are multiplied by those of `f`: (a + da) (b + db) - a b = a db + (b + db) da."
function multiply_losses!(ws::Workspace, plan::Plan, gi::Int, f::Factor)
    begin_losing!(ws, plan, gi)
    lost, values, losing = ws.lost, ws.values, ws.losing[f.child]
    for k in 1:width(plan.groups[gi])
        own, other = column_at(plan, gi, k), column_at(plan, f.child, place(f, k))
        @inbounds @simd for s in 1:TILE
            a, b, da, db = values[own + s], values[other + s], lost[own + s], losing ? lost[other + s] : 0f0
            lost[own + s] = product_loss(a, b, da, db)
        end
    end
end

@inline function product_loss(a::Float32, b::Float32, da::Float32, db::Float32)
    most = b + db / RAISED
    others, owns = !(db == 0) & ((a > 0) | !(da == 0)), !(da == 0) & !(most == 0)
    return ifelse(others | owns, at_least(ifelse(others, a * db, 0f0) + ifelse(owns, most * da, 0f0)), 0f0)
end

"Raises the bounds of product group `gi` where a product may have underflowed: in the lanes of `ws.underflows`."
function underflown_losses!(ws::Workspace, plan::Plan, gi::Int)
    begin_losing!(ws, plan, gi)
    lost, values, underflows = ws.lost, ws.values, ws.underflows
    for k in 1:width(plan.groups[gi])
        own = column_at(plan, gi, k)
        @inbounds @simd for s in 1:TILE
            lost[own + s] += ifelse((underflows[s] > 0) & (values[own + s] < LOSS), LEAST_BOUND, 0f0)
        end
    end
end

"Scales the bounds as `normalise!` scaled the group's values."
function scale_losses!(ws::Workspace, plan::Plan, gi::Int)
    lost, factors = ws.lost, ws.factor
    for k in 1:width(plan.groups[gi])
        own = column_at(plan, gi, k)
        @inbounds @simd for s in 1:TILE
            bound, factor = lost[own + s], factors[s]
            # Values that were all zero give no scale to judge the loss by.
            lost[own + s] = ifelse(bound == 0, 0f0, ifelse(factor > 1 / LOSS, Inf32, at_least(bound * factor)))
        end
    end
end

"The bounds of sum group `gi` become at least those that its values have from block `b`, by the weights, times `scale` (null for 1)."
function carry_losses!(ws::Workspace, plan::Plan, gi::Int, b::Block, scale::Ptr{Float32})
    begin_losing!(ws, plan, gi)
    g, c, lost, uniform = plan.groups[gi], plan.circuit, ws.lost, plan.groups[b.child].pairs !== nothing
    length(ws.carried) < TILE * plan.schedule.widest && resize!(ws.carried, max(4096, TILE * plan.schedule.widest))
    carried, from = ws.carried, lost_columns(ws, plan, b.child)
    if !uniform
        isdense(b) ? multiply!(pointer(carried), from, pointer(c.weight, b.first), b.stride, width(plan.groups[b.child]), width(g)) :
                     multiply_sparse!(pointer(carried), from, pointer(c.weight, b.first), b.of_sums)
    end
    for k in 1:width(g)
        own, other = column_at(plan, gi, k), TILE * (k - 1)
        @inbounds @simd for s in 1:TILE
            bound = uniform ? ws.lost_pairs[TILE * (b.child - 1) + s] : carried[other + s]
            bound = ifelse(bound == 0, 0f0, at_least(scale == C_NULL ? bound : bound * unsafe_load(scale, s)))
            lost[own + s] += bound
        end
    end
end

"""
The bound of a product group of pairs, whose values are not kept: one for all of its units. `underflowed`: in the lanes of
`ws.underflows`.
"""
function pair_losses!(ws::Workspace, plan::Plan, gi::Int, pairs::Pairs, underflowed::Bool)
    isempty(ws.lost_pairs) && resize!(ws.lost_pairs, TILE * length(ws.losing))
    ws.losing[gi] = true
    a, b = largest_value(plan.groups[pairs.slow_group]), largest_value(plan.groups[pairs.fast_group])
    @inbounds for s in 1:TILE
        bound = product_loss(a, b, largest_loss(ws, plan, pairs.slow_group, pairs.slow, s), largest_loss(ws, plan, pairs.fast_group, pairs.fast, s))
        ws.lost_pairs[TILE * (gi - 1) + s] = bound + ifelse(underflowed & (ws.underflows[s] > 0), LEAST_BOUND, 0f0)
    end
end

function largest_loss(ws::Workspace, plan::Plan, gi::Int, units, s::Int)
    most = 0f0
    ws.losing[gi] || return most
    for k in units
        most = max(most, ws.lost[column_at(plan, gi, k) + s])
    end
    return most
end

"The bounds of sum group `gi`, once its values are normalised, any of which are `small`; before, they are what its children carried to them."
function sum_losses!(ws::Workspace, plan::Plan, gi::Int, small::Bool)
    small && term_losses!(ws, plan, gi)
    ws.losing[gi] && scale_losses!(ws, plan, gi)
    small_divisors!(ws, plan, gi)
    ws.losing[gi] && drop_losses!(ws, plan, gi)
end

"Raises the bounds of small sums: any of their terms may have underflowed. Larger ones dwarf that."
function term_losses!(ws::Workspace, plan::Plan, gi::Int)
    g, values, factors = plan.groups[gi], ws.values, ws.factor
    for k in 1:width(g)
        own = column_at(plan, gi, k)
        # Terms were added before the values were normalised: that is their scale.
        mark_lanes!(s -> @inbounds(values[own + s] < SMALL * factors[s]), ws) &&
            add_losses!(ws, plan, gi, k, LARGEST_FACTOR * LEAST_BOUND * num_terms(plan, g, k))
    end
end

num_terms(plan::Plan, g::Group, k::Int) = sum(num_terms(plan, b, k) for b in g.blocks)
num_terms(plan::Plan, b::Block, k::Int) = isdense(b) ? width(plan.groups[b.child]) : Int(b.of_sums.start[k + 1] - b.of_sums.start[k])

"Adds `bound` to those of unit `k` of group `gi`, in the lanes of `ws.underflows`."
function add_losses!(ws::Workspace, plan::Plan, gi::Int, k::Int, bound::Float32)
    begin_losing!(ws, plan, gi)
    own, lost, underflows = column_at(plan, gi, k), ws.lost, ws.underflows
    @inbounds @simd for s in 1:TILE
        lost[own + s] += ifelse(underflows[s] > 0, bound, 0f0)
    end
end

"Sets the bounds that values dwarf to 0."
function drop_losses!(ws::Workspace, plan::Plan, gi::Int)
    lost, values, left = ws.lost, ws.values, 0
    for k in 1:width(plan.groups[gi])
        own = column_at(plan, gi, k)
        @inbounds @simd for s in 1:TILE
            dwarfed = lost[own + s] <= values[own + s] * (DWARFED * RAISED)
            lost[own + s] = ifelse(dwarfed, 0f0, lost[own + s])
            left += !dwarfed
        end
    end
    ws.losing[gi] = left > 0
end

"Raises the bounds of positive values of group `gi` that are too small to divide flows by (`ratio`)."
function small_divisors!(ws::Workspace, plan::Plan, gi::Int)
    minimum(ws.least) < SMALLEST_DIVISOR || return
    values, least = ws.values, Float32(SMALLEST_DIVISOR)
    for k in 1:width(plan.groups[gi])
        own = column_at(plan, gi, k)
        mark_lanes!(s -> @inbounds(0 < values[own + s] < least), ws) && add_losses!(ws, plan, gi, k, least * RAISED)
    end
end

"Units of input group `gi` may lack as much as `least` where their value is smaller than that."
function input_losses!(ws::Workspace, plan::Plan, gi::Int, least::Float32)
    values = ws.values
    for k in 1:width(plan.groups[gi])
        own = column_at(plan, gi, k)
        mark_lanes!(s -> @inbounds(values[own + s] < least), ws) && add_losses!(ws, plan, gi, k, least * RAISED)
    end
end

"Marks in `ws.underflows` the lanes that `holds` for; says whether there are any."
@inline function mark_lanes!(holds::F, ws::Workspace) where {F}
    underflows, count = ws.underflows, 0
    @inbounds @simd for s in 1:TILE
        marked = holds(s)
        underflows[s] = marked
        count += marked
    end
    return count > 0
end
