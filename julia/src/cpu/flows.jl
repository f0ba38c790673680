# Flows of a tile of samples, from the heads down to the inputs.

"""
Adds the flows of the tile in `ws` to `stat` and returns their weighted log-likelihood; only the first `count` lanes carry flow. Lanes
whose arithmetic did not hold have none: they are not `live`. `at_inputs(group)` is to add the flows of each group of inputs.
"""
function flows!(at_inputs::F, stat::Statistics, ws::Workspace, plan::Plan, X::Data, sources::Starts, count::Int) where {F}
    total = 0.0
    fill!(ws.live, true)
    for s in 1:count
        own = 0.0
        for (head, weight) in starts(sources, ws.samples[s])
            weight > 0 && (own += weight * head_log_value(ws, plan, X, head, s))
        end
        ws.live[s] = isfinite(own)
        ws.live[s] && (total += own)
    end
    start_flows!(ws, plan, sources, count)
    backward!(at_inputs, stat, ws, plan)
    return total
end

function input_flows!(inputs::BatchInputs, ws::Workspace, plan::Plan, gi::Int, position::Int, count::Int)
    g = plan.groups[gi]
    g.kind == CATEGORICAL || return
    keep_flows!(flow_row(inputs, gi, padded(g), position), flow_columns(ws, plan, gi), width(g), padded(g), count)
    any_hidden(pointer(ws.x, (g.variable - 1) * TILE + 1)) || return
    for s in 1:count
        ws.x[(g.variable - 1) * TILE + s] < 0 && drop_flows!(inputs, gi, padded(g), position + s - 1)  # nothing was seen
    end
end

"Puts the flows that samples start with into the heads, where the lane is live."
function start_flows!(ws::Workspace, plan::Plan, sources::Starts, count::Int)
    for gi in eachindex(plan.groups)
        starts_flow(plan.columns[gi]) && clear_flow!(ws, plan, gi)
    end
    for s in 1:count
        ws.live[s] || continue
        for (head, weight) in starts(sources, ws.samples[s])
            at = plan.columns[plan.schedule.head_group[head]]
            ws.flows[TILE * (at.flow + plan.schedule.head_place[head] - 1) + s] += weight
        end
    end
end

"""
Flows of all units for the tile in `ws`, from those that were started in the heads down to the inputs: `at_inputs` is called with
each group of them, when its flow is there. The edges' flows are added to `stat`.

Subnormal numbers, which are slow, count as zero on the way down: where a value is one, the way up has noted what it may lack
(losses.jl), and a smaller flow is none. Of the `groups`, a range, only: the way down may be gone in parts, from the last group to the first.
"""
function backward!(at_inputs::F, stat::Statistics, ws::Workspace, plan::Plan, groups=eachindex(plan.groups)) where {F}
    flushing_subnormals() do
        flow_down!(at_inputs, stat, ws, plan, groups)
    end
end

function flow_down!(at_inputs::F, stat::Statistics, ws::Workspace, plan::Plan, groups) where {F}
    for gi in reverse(groups)
        g = plan.groups[gi]
        if g.kind == SUM
            sum_flows!(stat, ws, plan, gi)
        elseif g.kind == PRODUCT
            for f in (g.pairs === nothing ? g.factors : Factor[])
                at = plan.columns[f.child]
                at.shares_flow && continue
                at.first_sender == gi && clear_flow!(ws, plan, f.child)
                scatter_units!(flow_columns(ws, plan, f.child), flow_columns(ws, plan, gi), width(g), f)
            end
        else
            at_inputs(gi)
        end
    end
end

function clear_flow!(ws::Workspace, plan::Plan, gi)
    at, count = plan.columns[gi], kept_width(plan.groups[gi])
    fill!(view(ws.flows, TILE * at.flow + 1:TILE * (at.flow + count)), 0f0)
end

function sum_flows!(stat, ws, plan, gi)
    g, c = plan.groups[gi], plan.circuit
    r = value_columns(ws, plan, gi)  # the values are not needed again: the ratios take their place
    several, unscaled = length(g.blocks) > 1, exponents(ws, plan, g.blocks[1].child)
    if several
        scaled, unscaled = pointer(ws.scratch) + 4 * TILE * plan.schedule.widest, Ptr{Int32}(pointer(ws.scratch))
        scales = block_scales!(ws, plan, g, unscaled)
    end
    scale_between!(pointer(ws.factor), unscaled, exponents(ws, plan, gi))
    ratios!(r, flow_columns(ws, plan, gi), width(g), pointer(ws.factor))
    clear_pairs!(ws, plan, gi)
    for b in eachindex(g.blocks)
        block, ratio = g.blocks[b], r
        if several
            scale_units!(scaled, r, width(g), column(scales, b - 1), false)
            ratio = scaled
        end
        child = plan.groups[block.child]
        child.pairs === nothing || (Base.invokelatest(pair_flows!, stat, ws, plan, g, block, child.pairs, ratio); continue)
        value, flow = value_columns(ws, plan, block.child), flow_columns(ws, plan, block.child)
        adds = plan.columns[block.child].first_sender != gi
        if isdense(block)
            edge_flows!(pointer(stat.weight, block.first), value, ratio, block.stride, width(child), width(g), pointer(ws.turned),
                        length(stat.weight) - block.first + 1)
            flow_down!(flow, value, ratio, pointer(c.weight, block.first), block.stride, width(child), width(g), adds)
        else
            flow_down_sparse!(flow, value, ratio, pointer(c.weight, block.first), pointer(stat.weight, block.first),
                              block.of_children, adds, ws.waiting)
        end
    end
end

function input_statistics!(stat::Statistics, ws::Workspace, plan::Plan, gi::Int, X::Union{AbstractMatrix,Masked})
    g = plan.groups[gi]
    has_table(g.kind) || return Base.invokelatest(number_statistics!, stat, ws, plan, gi, X)
    input_flows!(pointer(stat.leaf, g.param_start), flow_columns(ws, plan, gi), g.param_stride, width(g),
                 pointer(ws.x) + 4 * TILE * (g.variable - 1), has_room(plan.circuit, g))
end

function input_statistics!(stat::Statistics, ws::Workspace, plan::Plan, gi::Int, X::SoftEvidence)
    g = plan.groups[gi]
    K, count = g.categories, width(g)
    value, flow = value_columns(ws, plan, gi), flow_columns(ws, plan, gi)
    for k in 0:count - 1, v in 0:VECTORS - 1  # inputs are not normalised: flow / value needs no factor
        p = column(value, k) + 64 * v
        store_lanes(p, ratio(load_lanes(column(flow, k) + 64 * v), load_lanes(p)))
    end
    num_input_params(g.kind, K) > 0 || return
    evidence, posterior = gather_evidence!(ws, X, g.variable), Matrix{Float32}(undef, count, K)
    gemm!('T', 'T', 1f0, matrix(value, TILE, count), evidence, 0f0, posterior)
    theta = table(plan.circuit, g)
    target = view(matrix(pointer(stat.leaf, g.param_start), g.param_stride, K), 1:count, :)
    target .+= theta .* posterior
end
