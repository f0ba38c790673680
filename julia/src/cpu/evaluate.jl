# Evaluation of a tile of samples, from the inputs up to the heads.

"Whether a vector may begin at any of a group's parameters: all but the last table of a circuit are followed by others."
has_room(c::Circuit, g::Group) =
    g.param_start + (g.categories - 1) * g.param_stride + width(g) - 1 + LANES - 1 <= length(c.leaf)

table(c::Circuit, g::Group) = view(matrix(pointer(c.leaf, g.param_start), g.param_stride, g.categories), 1:width(g), :)

function input_values!(ws::Workspace, plan::Plan, gi::Int, X::Union{AbstractMatrix,Masked})
    # (What few circuits have is called by its name, looked up now, so that it is compiled for those alone.)
    has_table(plan.groups[gi].kind) || return Base.invokelatest(number_values!, ws, plan, gi, X)
    look_up!(value_columns(ws, plan, gi), pointer(ws.x), plan.schedule, gi, ws.inputs)
    plan.groups[gi].kind == BINOMIAL && input_losses!(ws, plan, gi, LOSS)  # what is smaller has lost digits, or all, in its table
end

"Puts the values of input group `gi` for the tile of categories `x` into `out`."
function look_up!(out::Ptr{Float32}, x::Ptr{Int32}, schedule::Schedule, gi::Int, inputs::Union{Nothing,BatchInputs})
    g, c = schedule.groups[gi], schedule.circuit
    inputs === nothing || g.kind != CATEGORICAL ? look_up!(out, x, c, g, nothing) : look_up!(out, x, c, g, linear_map(inputs, gi))
end

look_up!(out::Ptr{Float32}, x::Ptr{Int32}, c::Circuit, g::Group, map) =
    look_up!(out, pointer(c.leaf, g.param_start), g.param_stride, width(g), x + 4 * TILE * (g.variable - 1), has_room(c, g), map)

function input_values!(ws::Workspace, plan::Plan, gi::Int, X::SoftEvidence)
    evidence_values!(ws, plan, gi, X)
    # These are sums over the categories. They are small only where no category that the evidence allows is likely: what the
    # terms lost is not looked into.
    input_losses!(ws, plan, gi, SMALL)
end

function evidence_values!(ws::Workspace, plan::Plan, gi::Int, X::SoftEvidence)
    g = plan.groups[gi]
    evidence, out = gather_evidence!(ws, X, g.variable), matrix(value_columns(ws, plan, gi), TILE, width(g))
    selects(plan.circuit, g) ? transpose!(out, evidence) : gemm!('T', 'T', 1f0, evidence, table(plan.circuit, g), 0f0, out)
end

"Whether the units of an input group are the indicators of its categories, in order: its table is then the identity."
function selects(c::Circuit, g::Group)
    g.kind == INDICATOR && width(g) == g.categories || return false
    return all(k -> c.leaf[g.param_start + (k - 1) * (g.param_stride + 1)] == 1, 1:width(g))
end

# A product over more groups than this is normalised on the way: its units' children may peak in different places.
const FACTORS_BETWEEN_SCALING = 8

function product_values!(ws::Workspace, plan::Plan, gi::Int)
    g = plan.groups[gi]
    out, exponent = value_columns(ws, plan, gi), exponents(ws, plan, gi)
    started = any(f -> plan.columns[f.child].shares_value, g.factors)
    ws.small[gi] = any(f -> ws.small[f.child], g.factors)
    factors_in = started ? 1 : 0
    for f in g.factors
        plan.columns[f.child].shares_value && continue
        if factors_in == 0
            copy_units!(out, value_columns(ws, plan, f.child), width(g), f)
            ws.losing[f.child] && copy_losses!(ws, plan, gi, f)
        else
            ws.losing[gi] | ws.losing[f.child] && multiply_losses!(ws, plan, gi, f)
            underflowed = multiply_units!(out, value_columns(ws, plan, f.child), width(g), f, pointer(ws.underflows))
            underflowed && underflown_losses!(ws, plan, gi)
        end
        factors_in += 1
        child_exponent = exponents(ws, plan, f.child)
        for v in 0:VECTORS - 1
            store_lanes(exponent + 64 * v, add(load_lanes(exponent + 64 * v), load_lanes(child_exponent + 64 * v)))
        end
        factors_in % FACTORS_BETWEEN_SCALING == 0 && normalise_product!(ws, plan, gi)
    end
    # Products of products, each over no more than a few groups, would drift to infinity, or to zero, together.
    g.nested && factors_in % FACTORS_BETWEEN_SCALING != 0 && normalise_product!(ws, plan, gi)
end

function normalise_product!(ws::Workspace, plan::Plan, gi::Int)
    normalise!(value_columns(ws, plan, gi), width(plan.groups[gi]), exponents(ws, plan, gi), pointer(ws.factor), pointer(ws.least))
    ws.losing[gi] && scale_losses!(ws, plan, gi)
end

function sum_values!(ws::Workspace, plan::Plan, gi::Int)
    g = plan.groups[gi]
    out = value_columns(ws, plan, gi)
    if length(g.blocks) == 1
        child = g.blocks[1].child
        flushed_values!(out, ws, plan, g, g.blocks[1])
        copyto!(ws.exponents, TILE * plan.columns[gi].exponent + 1, ws.exponents, TILE * plan.columns[child].exponent + 1, TILE)
    else
        scratch, scales = pointer(ws.scratch), block_scales!(ws, plan, g, exponents(ws, plan, gi))
        for b in eachindex(g.blocks)
            flushed_values!(scratch, ws, plan, g, g.blocks[b])
            scale_units!(out, scratch, width(g), column(scales, b - 1), b > 1)
        end
    end
    for b in eachindex(g.blocks)
        child = g.blocks[b].child
        ws.losing[child] && carry_losses!(ws, plan, gi, g.blocks[b], block_scale(ws, plan, g, b))
    end
    small = normalise!(out, width(g), exponents(ws, plan, gi), pointer(ws.factor), pointer(ws.least))
    ws.small[gi] = small
    small | ws.losing[gi] && sum_losses!(ws, plan, gi, small)
end

"""
As `block_values!`; where values are small, so that sums of terms may be subnormal, which are slow, those count as 0: so does a subnormal
value or weight. That takes less of a sum than its bound has for terms that underflow (`term_losses!`).
"""
function flushed_values!(out, ws, plan, g, b::Block)
    ws.small[b.child] || return block_values!(out, ws, plan, g, b)
    flushing_subnormals() do
        block_values!(out, ws, plan, g, b)
    end
end

function block_values!(out, ws, plan, g, b::Block)
    c, child = plan.circuit, plan.groups[b.child]
    child.pairs === nothing || return Base.invokelatest(pair_values!, out, ws, plan, g, b, child.pairs)
    in = value_columns(ws, plan, b.child)
    isdense(b) ? multiply!(out, in, pointer(c.weight, b.first), b.stride, width(child), width(g)) :
                 multiply_sparse!(out, in, pointer(c.weight, b.first), b.of_sums)
end

"The factors that bring the child groups of a sum group to one scale, whose exponent goes to `common`."
function block_scales!(ws, plan, g, common::Ptr{Int32})
    scales = pointer(ws.scratch) + 4 * TILE * 2 * plan.schedule.widest
    for b in eachindex(g.blocks)
        ws.pointers[b] = exponents(ws, plan, g.blocks[b].child)
    end
    common_scale!(common, scales, ws.pointers, length(g.blocks))
    return scales
end

"The factors that `block_scales!` left for block `b`, or null for the only one, whose values are taken as they are."
block_scale(ws, plan, g, b) =
    length(g.blocks) == 1 ? Ptr{Float32}(0) : column(pointer(ws.scratch) + 4 * TILE * 2 * plan.schedule.widest, b - 1)

"Values of all units for the tile in `ws`."
function forward!(ws::Workspace, plan::Plan, X::Data)
    load_tile!(ws, X)
    fill!(ws.exponents, 0)
    fill!(ws.losing, false)
    fill!(ws.small, false)
    for gi in eachindex(plan.groups)
        kind = plan.groups[gi].kind
        if isinput(kind)
            input_values!(ws, plan, gi, X)
        elseif kind == PRODUCT
            plan.groups[gi].pairs === nothing ? product_values!(ws, plan, gi) : pair_scale!(ws, plan, gi, plan.groups[gi].pairs)
        else
            sum_values!(ws, plan, gi)
        end
    end
end

"log p(x | head) of lane `s`, in nats; NaN where underflow leaves it uncertain, so that it must be evaluated exactly."
@inline function head_log_value(ws::Workspace, plan::Plan, X::Data, head::Int, s::Int)
    gi = Int(plan.schedule.head_group[head])
    value = ws.values[TILE * (plan.columns[gi].value + plan.schedule.head_place[head] - 1) + s]
    value > 0 && dwarfs_loss(ws, plan, gi, Int(plan.schedule.head_place[head]), s, value) || return NaN
    return log(Float64(value)) + ws.exponents[TILE * plan.columns[gi].exponent + s] * log(2.0) + offset(X, ws.samples[s])
end
