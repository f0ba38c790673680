# Evaluation of a circuit, tile by tile: values upward, flows downward; likelihoods of whole data sets on all threads.

"One thread's buffers for one tile of samples."
struct Workspace
    values::Vector{Float32}
    flows::Vector{Float32}
    exponents::Vector{Int32}    # (TILE, groups that are scaled, after one for the inputs)
    factor::Vector{Float32}     # (TILE): what the last normalisation multiplied values by
    least::Vector{Float32}      # (TILE): the smallest value of each sample after it
    x::Vector{Int32}            # (TILE, variables): categories, -1 where marginalised
    evidence::Vector{Float32}   # (categories, TILE) of one variable
    waiting::WaitingEdges
    scratch::Vector{Float32}    # (TILE, widest) twice, and a factor for each block: for sums over several groups
    samples::Vector{Int}        # of each lane; lanes beyond the data repeat the last sample
    live::Vector{Bool}          # whether the tile's arithmetic held for the lane
    losing::Vector{Bool}        # of each group: whether underflow may have taken anything (losses.jl)
    lost::Vector{Float32}       # (TILE, groups), empty before it ever has: at most how much of each value
    underflows::Vector{Float32} # (TILE): the lanes in which the last product underflowed
    pointers::Vector{Ptr{Int32}}
    wide::Vector{WideWorkspace}  # of the samples that underflow, as soon as there is one
    inputs::Union{Nothing,BatchInputs}
end

function Workspace(plan::Plan; flows::Bool, inputs::Union{Nothing,BatchInputs}=nothing)
    groups = length(plan.groups)
    most_blocks = maximum(length(g.blocks) for g in plan.groups)
    categories, sparse = plan.soft ? maximum(plan.limits) : 0, any(g -> !all(isdense, g.blocks), plan.groups)
    return Workspace(zeros(Float32, TILE * plan.value_columns), zeros(Float32, flows ? TILE * plan.flow_columns : 0),
                     zeros(Int32, TILE * (1 + maximum(g.exponent for g in plan.groups))), zeros(Float32, TILE), zeros(Float32, TILE),
                     zeros(Int32, TILE * plan.circuit.num_vars), zeros(Float32, TILE * categories),
                     WaitingEdges(flows & sparse), zeros(Float32, most_blocks > 1 ? TILE * (2 * plan.widest + most_blocks) : 0), zeros(Int, TILE),
                     fill(true, TILE), fill(false, groups), Float32[], zeros(Float32, TILE),
                     Vector{Ptr{Int32}}(undef, most_blocks), WideWorkspace[], inputs)
end

@inline value_columns(ws::Workspace, g::Group) = pointer(ws.values) + 4 * TILE * g.value
@inline flow_columns(ws::Workspace, g::Group) = pointer(ws.flows) + 4 * TILE * g.flow
@inline exponents(ws::Workspace, g::Group) = pointer(ws.exponents) + 4 * TILE * g.exponent

"Puts samples `order[first], order[first + 1], ...` (at most a tile, up to `last`) in the lanes; returns how many."
function load_samples!(ws::Workspace, order, first::Int, last::Int)
    count = min(TILE, last - first + 1)
    for s in 1:TILE
        ws.samples[s] = order[first + min(s, count) - 1]
    end
    return count
end

load_tile!(ws::Union{Workspace,WideWorkspace}, X::SoftEvidence) = nothing

load_tile!(ws::Union{Workspace,WideWorkspace}, X::Masked) = load_tile!(ws, X.values, X.mask)

function load_tile!(ws::Union{Workspace,WideWorkspace}, X::AbstractMatrix, mask=nothing)
    V = size(X, 1)
    @inbounds for s in 1:TILE
        n = ws.samples[s]
        for i in 1:V
            ws.x[(i - 1) * TILE + s] = hidden(mask, i, n) ? Int32(-1) : X[i, n] % Int32
        end
    end
end

"Gathers one variable's evidence for the tile into `ws.evidence`."
function gather_evidence!(ws::Workspace, X::SoftEvidence, i::Int)
    K = size(X.likelihood, 1)
    for s in 1:TILE
        copyto!(ws.evidence, (s - 1) * K + 1, X.likelihood, ((ws.samples[s] - 1) * size(X.likelihood, 2) + i - 1) * K + 1, K)
    end
    return matrix(pointer(ws.evidence), K, TILE)
end

"Whether a vector may begin at any of a group's parameters: all but the last table of a circuit are followed by others."
has_room(c::Circuit, g::Group) =
    g.param_start + (g.categories - 1) * g.param_stride + width(g) - 1 + LANES - 1 <= length(c.leaf)

table(plan::Plan, g::Group) = view(matrix(pointer(plan.circuit.leaf, g.param_start), g.param_stride, g.categories), 1:width(g), :)

function input_values!(ws::Workspace, plan::Plan, gi::Int, X::Union{AbstractMatrix,Masked})
    g = plan.groups[gi]
    look_up!(value_columns(ws, g), pointer(ws.x), plan, gi, ws.inputs)
    g.kind == BINOMIAL && input_losses!(ws, g, gi, LOSS)  # what is smaller has lost digits, or all, in its table
end

"Puts the values of input group `gi` for the tile of categories `x` into `out`."
function look_up!(out::Ptr{Float32}, x::Ptr{Int32}, plan::Plan, gi::Int, inputs::Union{Nothing,BatchInputs})
    g = plan.groups[gi]
    inputs === nothing || g.kind != CATEGORICAL ? look_up!(out, x, plan, g, nothing) :
                                                  look_up!(out, x, plan, g, linear_map(inputs, gi))
end

look_up!(out::Ptr{Float32}, x::Ptr{Int32}, plan::Plan, g::Group, map) =
    look_up!(out, pointer(plan.circuit.leaf, g.param_start), g.param_stride, width(g), x + 4 * TILE * (g.variable - 1),
             has_room(plan.circuit, g), map)

function input_values!(ws::Workspace, plan::Plan, gi::Int, X::SoftEvidence)
    g = plan.groups[gi]
    evidence_values!(ws, plan, g, X)
    # These are sums over the categories. They are small only where no category that the evidence allows is likely: what the
    # terms lost is not looked into.
    input_losses!(ws, g, gi, SMALL)
end

function evidence_values!(ws::Workspace, plan::Plan, g::Group, X::SoftEvidence)
    evidence = gather_evidence!(ws, X, g.variable)
    gemm!('T', 'T', 1f0, evidence, table(plan, g), 0f0, matrix(value_columns(ws, g), TILE, width(g)))
end

# A product over more groups than this is normalised on the way: its units' children may peak in different places.
const FACTORS_BETWEEN_SCALING = 8

function product_values!(ws::Workspace, plan::Plan, gi::Int)
    g = plan.groups[gi]
    out, exponent = value_columns(ws, g), exponents(ws, g)
    started = any(f -> plan.groups[f.child].shares_value, g.factors)
    factors_in, nested, largest = started ? 1 : 0, false, 1f0
    for f in g.factors
        child = plan.groups[f.child]
        child.shares_value && continue
        nested |= child.kind == PRODUCT
        if factors_in == 0
            copy_units!(out, value_columns(ws, child), width(g), f)
            ws.losing[f.child] && carry_loss!(ws, gi, f.child)
        else
            underflowed = multiply_units!(out, value_columns(ws, child), width(g), f, pointer(ws.underflows))
            underflowed | ws.losing[gi] | ws.losing[f.child] && multiply_losses!(ws, plan, gi, f.child, largest, underflowed)
        end
        factors_in += 1
        largest *= largest_value(child)
        child_exponent = exponents(ws, child)
        for v in 0:VECTORS - 1
            store_lanes(exponent + 64 * v, add(load_lanes(exponent + 64 * v), load_lanes(child_exponent + 64 * v)))
        end
        factors_in % FACTORS_BETWEEN_SCALING == 0 && (normalise_product!(ws, plan, gi); largest = LARGEST_SUM)
    end
    # Products of products, each over no more than a few groups, would drift to infinity together.
    nested && normalise_product!(ws, plan, gi)
end

function normalise_product!(ws::Workspace, plan::Plan, gi::Int)
    g = plan.groups[gi]
    normalise!(value_columns(ws, g), width(g), exponents(ws, g), pointer(ws.factor), pointer(ws.least))
    ws.losing[gi] && scale_losses!(ws, gi)
end

function sum_values!(ws::Workspace, plan::Plan, gi::Int)
    g = plan.groups[gi]
    out = value_columns(ws, g)
    if length(g.blocks) == 1
        child = g.blocks[1].child
        block_values!(out, ws, plan, g, g.blocks[1])
        copyto!(ws.exponents, TILE * g.exponent + 1, ws.exponents, TILE * plan.groups[child].exponent + 1, TILE)
    else
        scratch, scales = pointer(ws.scratch), block_scales!(ws, plan, g, exponents(ws, g))
        for b in eachindex(g.blocks)
            block_values!(scratch, ws, plan, g, g.blocks[b])
            scale_units!(out, scratch, width(g), column(scales, b - 1), b > 1)
        end
    end
    for b in eachindex(g.blocks)
        child = g.blocks[b].child
        ws.losing[child] && carry_loss!(ws, gi, child, block_scale(ws, plan, g, b))
    end
    small = normalise!(out, width(g), exponents(ws, g), pointer(ws.factor), pointer(ws.least))
    small | ws.losing[gi] && sum_losses!(ws, plan, gi)
end

function block_values!(out, ws, plan, g, b::Block)
    c, child = plan.circuit, plan.groups[b.child]
    in = value_columns(ws, child)
    isdense(b) ? multiply!(out, in, pointer(c.weight, b.first), b.stride, width(child), width(g)) :
                 multiply_sparse!(out, in, pointer(c.weight, b.first), b.of_sums)
end

"The factors that bring the child groups of a sum group to one scale, whose exponent goes to `common`."
function block_scales!(ws, plan, g, common::Ptr{Int32})
    scales = pointer(ws.scratch) + 4 * TILE * 2 * plan.widest
    for b in eachindex(g.blocks)
        ws.pointers[b] = exponents(ws, plan.groups[g.blocks[b].child])
    end
    common_scale!(common, scales, ws.pointers, length(g.blocks))
    return scales
end

"The factors that `block_scales!` left for block `b`, or null for the only one, whose values are taken as they are."
block_scale(ws, plan, g, b) =
    length(g.blocks) == 1 ? Ptr{Float32}(0) : column(pointer(ws.scratch) + 4 * TILE * 2 * plan.widest, b - 1)

"Values of all units for the tile in `ws`."
function forward!(ws::Workspace, plan::Plan, X::Data)
    load_tile!(ws, X)
    fill!(ws.exponents, 0)
    fill!(ws.losing, false)
    for gi in eachindex(plan.groups)
        kind = plan.groups[gi].kind
        if isinput(kind)
            input_values!(ws, plan, gi, X)
        elseif kind == PRODUCT
            product_values!(ws, plan, gi)
        else
            sum_values!(ws, plan, gi)
        end
    end
end

"log p(x | head) of lane `s`, in nats; NaN where underflow leaves it uncertain, so that it must be evaluated exactly."
@inline function head_log_value(ws::Workspace, plan::Plan, X::Data, head::Int, s::Int)
    gi = Int(plan.head_group[head])
    value = ws.values[TILE * (plan.groups[gi].value + plan.head_place[head] - 1) + s]
    value > 0 && dwarfs_loss(ws, gi, s, value) || return NaN
    return log(Float64(value)) + ws.exponents[TILE * plan.groups[gi].exponent + s] * log(2.0) + offset(X, ws.samples[s])
end

"""
    log_likelihood(plan, X; heads = 1:num_heads) -> Matrix{Float64}

log p(x | head) in nats, `(heads, samples)`. `X`: integers `(variables, samples)`, [`Masked`](@ref) or [`SoftEvidence`](@ref).
Samples that underflow are evaluated again, with a scale for each unit.
"""
function log_likelihood(plan::Plan, X::Data; heads=1:num_heads(plan.circuit))
    out = Matrix{Float64}(undef, length(heads), num_samples(X))
    return log_likelihood!(out, plan, X, heads)
end

log_likelihood(c::Circuit, X::Data; kwargs...) = log_likelihood(Plan(c; soft=X isa SoftEvidence), X; kwargs...)

function log_likelihood!(out::AbstractMatrix{<:AbstractFloat}, plan::Plan, X::Data, heads)
    check_data(X, plan.limits)
    N = num_samples(X)
    tiles, threads = cld(N, TILE), Threads.nthreads()
    underflows = [Int[] for _ in 1:threads]
    Threads.@threads for t in 1:threads
        ws = Workspace(plan; flows=false)
        GC.@preserve ws plan X for tile in t:threads:tiles
            count = load_samples!(ws, 1:N, (tile - 1) * TILE + 1, N)
            forward!(ws, plan, X)
            for s in 1:count
                n = ws.samples[s]
                for (i, head) in enumerate(heads)
                    out[i, n] = head_log_value(ws, plan, X, head, s)
                end
                any(i -> !isfinite(out[i, n]), axes(out, 1)) && push!(underflows[t], n)
            end
        end
    end
    redo!(out, plan, X, heads, reduce(vcat, underflows))
    return out
end

# Flows, from the heads down. Statistics are flows summed over samples; those of dense and sparse blocks leave out
# the factor theta of every edge, which is the same for all samples, until they are used.

"""
Adds the flows of the tile in `ws` to `stat` and returns their weighted log-likelihood; only the first `count` lanes carry flow.
Samples that underflow are evaluated again, with a scale for each unit. The inputs' flows go to `ws.inputs`, if there are any, where
the tile's first sample is at `position` (from 0).
"""
function flows!(stat::Statistics, ws::Workspace, plan::Plan, X::Data, sources::Starts, count::Int, position::Int=0)
    return flows!(stat, ws, plan, X, sources, count, position) do gi
        ws.inputs === nothing ? input_statistics!(stat, ws, plan, plan.groups[gi], X) :
                                input_flows!(ws.inputs, ws, plan, gi, position, count)
    end
end

"As above; `at_inputs` is to add the flows of each group of inputs to the statistics."
function flows!(at_inputs::F, stat::Statistics, ws::Workspace, plan::Plan, X::Data, sources::Starts, count::Int,
                position::Int) where {F}
    total = 0.0
    fill!(ws.live, true)
    for s in 1:count
        own = 0.0
        for (head, weight) in starts(sources, ws.samples[s])
            own += weight * head_log_value(ws, plan, X, head, s)
        end
        ws.live[s] = isfinite(own)
        ws.live[s] && (total += own)
    end
    start_flows!(ws, plan, sources, count)
    backward!(at_inputs, stat, ws, plan)
    if !all(ws.live)
        isempty(ws.wide) && push!(ws.wide, WideWorkspace(plan; flows=true, inputs=ws.inputs))
        lanes = [s for s in 1:count if !ws.live[s]]
        # (Called by its name, which is looked up now, it is compiled now, and not in a process that never comes here.)
        total += Base.invokelatest(add_flows!, stat, ws.wide[1], plan, X, sources, ws.samples[lanes], lanes .+ (position - 1))::Float64
    end
    return total
end

function input_flows!(inputs::BatchInputs, ws::Workspace, plan::Plan, gi::Int, position::Int, count::Int)
    g = plan.groups[gi]
    g.kind == CATEGORICAL &&
        keep_flows!(flow_row(inputs, gi, padded(g), position), flow_columns(ws, g), width(g), padded(g), count)
end

"Puts the flows that samples start with into the heads, where the lane is live."
function start_flows!(ws::Workspace, plan::Plan, sources::Starts, count::Int)
    for g in plan.groups
        g.clear && clear_flow!(ws, g)
    end
    for s in 1:count
        ws.live[s] || continue
        for (head, weight) in starts(sources, ws.samples[s])
            group = plan.groups[plan.head_group[head]]
            ws.flows[TILE * (group.flow + plan.head_place[head] - 1) + s] += weight
        end
    end
end

"""
Flows of all units for the tile in `ws`, from those that were started in the heads down to the inputs: `at_inputs` is called with
each group of them, when its flow is there. The edges' flows are added to `stat`.

Subnormal numbers, which are slow, count as zero on the way down: where a value is one, the way up has noted what it may lack
(losses.jl), and a smaller flow is none.
"""
function backward!(at_inputs::F, stat::Statistics, ws::Workspace, plan::Plan) where {F}
    before = get_zero_subnormals()
    set_zero_subnormals(true)
    try
        flow_down!(at_inputs, stat, ws, plan)
    finally
        set_zero_subnormals(before)
    end
end

function flow_down!(at_inputs::F, stat::Statistics, ws::Workspace, plan::Plan) where {F}
    for gi in reverse(eachindex(plan.groups))
        g = plan.groups[gi]
        if g.kind == SUM
            sum_flows!(stat, ws, plan, gi)
        elseif g.kind == PRODUCT
            for f in g.factors
                child = plan.groups[f.child]
                child.shares_flow && continue
                f.overwrites && clear_flow!(ws, child)
                scatter_units!(flow_columns(ws, child), flow_columns(ws, g), width(g), f)
            end
        else
            at_inputs(gi)
        end
    end
end

clear_flow!(ws::Workspace, g::Group) = fill!(view(ws.flows, TILE * g.flow + 1:TILE * (g.flow + width(g))), 0f0)

function sum_flows!(stat, ws, plan, gi)
    g, c = plan.groups[gi], plan.circuit
    r = value_columns(ws, g)  # the values are not needed again: the ratios take their place
    several, unscaled = length(g.blocks) > 1, exponents(ws, plan.groups[g.blocks[1].child])
    if several
        scaled, unscaled = pointer(ws.scratch) + 4 * TILE * plan.widest, Ptr{Int32}(pointer(ws.scratch))
        scales = block_scales!(ws, plan, g, unscaled)
    end
    scale_between!(pointer(ws.factor), unscaled, exponents(ws, g))
    ratios!(r, flow_columns(ws, g), width(g), pointer(ws.factor))
    for b in eachindex(g.blocks)
        block, ratio = g.blocks[b], r
        if several
            scale_units!(scaled, r, width(g), column(scales, b - 1), false)
            ratio = scaled
        end
        child = plan.groups[block.child]
        value, flow = value_columns(ws, child), flow_columns(ws, child)
        if isdense(block)
            edge_flows!(pointer(stat.weight, block.first), value, ratio, block.stride, width(child), width(g))
            flow_down!(flow, value, ratio, pointer(c.weight, block.first), block.stride, width(child), width(g), !block.overwrites)
        else
            flow_down_sparse!(flow, value, ratio, pointer(c.weight, block.first), pointer(stat.weight, block.first),
                              block.of_children, !block.overwrites, ws.waiting)
        end
    end
end

function input_statistics!(stat::Statistics, ws::Workspace, plan::Plan, g::Group, X::Union{AbstractMatrix,Masked})
    input_flows!(pointer(stat.leaf, g.param_start), flow_columns(ws, g), g.param_stride, width(g),
                 pointer(ws.x) + 4 * TILE * (g.variable - 1), has_room(plan.circuit, g))
end

function input_statistics!(stat::Statistics, ws::Workspace, plan::Plan, g::Group, X::SoftEvidence)
    evidence = gather_evidence!(ws, X, g.variable)
    K, count = g.categories, width(g)
    value, flow = value_columns(ws, g), flow_columns(ws, g)
    for k in 0:count - 1, v in 0:VECTORS - 1  # inputs are not normalised: flow / value needs no factor
        p = column(value, k) + 64 * v
        store_lanes(p, ratio(load_lanes(column(flow, k) + 64 * v), load_lanes(p)))
    end
    posterior = Matrix{Float32}(undef, count, K)
    gemm!('T', 'T', 1f0, matrix(value, TILE, count), evidence, 0f0, posterior)
    theta = table(plan, g)
    target = view(matrix(pointer(stat.leaf, g.param_start), g.param_stride, K), 1:count, :)
    target .+= theta .* posterior
end
