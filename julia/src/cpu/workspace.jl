# The buffers of one thread for one tile of samples.

"One thread's buffers for one tile of samples, laid out as a plan says."
struct Workspace
    values::Vector{Float32}
    flows::Vector{Float32}
    exponents::Vector{Int32}    # (TILE, groups that are scaled, after one for the inputs)
    factor::Vector{Float32}     # (TILE): what the last normalisation multiplied values by
    least::Vector{Float32}      # (TILE): the smallest value of each sample after it
    x::Vector{Int32}            # (TILE, variables): categories, -1 where marginalised; of numbers, anything
    evidence::Vector{Float32}   # (categories, TILE) of one variable
    waiting::WaitingEdges
    turned::Vector{Float32}     # the values of the widest child group of a dense block, or of some pairs, those of one sample side by side
    scratch::Vector{Float32}    # (TILE, widest) twice, and a factor for each block: for sums over several groups
    samples::Vector{Int}        # of each lane; lanes beyond the data repeat the last sample
    live::Vector{Bool}          # whether the tile's arithmetic held for the lane
    small::Vector{Bool}         # of each group: whether values are far below the largest of their group, or of a factor's
    losing::Vector{Bool}        # of each group: whether underflow may have taken anything (losses.jl)
    lost::Vector{Float32}       # as the values, empty before it ever has: at most how much of each, times 2^100
    lost_pairs::Vector{Float32} # (TILE, groups), of those of pairs, whose values are not kept
    carried::Vector{Float32}    # (TILE, widest): bounds on their way up
    underflows::Vector{Float32} # (TILE): the lanes in which the last product underflowed
    pointers::Vector{Ptr{Int32}}
    inputs::Union{Nothing,BatchInputs}
    bits::Vector{Float64}       # (TILE, units) of the widest group of inputs without a table: logarithms of their values
    top::Vector{Float64}        # (TILE): the largest of them
end

function Workspace(plan::Plan; flows::Bool, inputs::Union{Nothing,BatchInputs}=nothing)
    groups = length(plan.groups)
    most_blocks = maximum(length(g.blocks) for g in plan.groups)
    categories, sparse = plan.soft ? maximum(plan.schedule.limits) : 0, any(g -> !all(isdense, g.blocks), plan.groups)
    return Workspace(zeros(Float32, TILE * plan.value_columns), zeros(Float32, flows ? TILE * plan.flow_columns : 0),
                     zeros(Int32, TILE * (1 + maximum(at.exponent for at in plan.columns))), zeros(Float32, TILE), zeros(Float32, TILE),
                     zeros(Int32, TILE * plan.circuit.num_vars), zeros(Float32, TILE * categories),
                     WaitingEdges(flows & sparse), zeros(Float32, flows ? turned_length(most_turned(plan)) : 0),
                     zeros(Float32, most_blocks > 1 ? TILE * (2 * plan.schedule.widest + most_blocks) : 0), zeros(Int, TILE),
                     fill(true, TILE), fill(false, groups), fill(false, groups), Float32[], Float32[], Float32[], zeros(Float32, TILE),
                     Vector{Ptr{Int32}}(undef, most_blocks), inputs, zeros(TILE * widest_numbers(plan)), zeros(TILE))
end

widest_numbers(plan::Plan) = mapreduce(g -> isinput(g.kind) && !has_table(g.kind) ? width(g) : 0, max, plan.groups)

"Of how many units, or pairs of them, dense blocks turn the values at a time, at most."
most_turned(plan::Plan) = mapreduce(g -> mapreduce(b -> most_turned(plan.groups[b.child], b), max, g.blocks; init=0), max, plan.groups)
most_turned(child::Group, b::Block) = !isdense(b) ? 0 : child.pairs === nothing ? width(child) : min(width(child), PAIRS_AT_ONCE)

@inline value_columns(ws::Workspace, plan::Plan, gi) = pointer(ws.values) + 4 * TILE * plan.columns[gi].value
@inline flow_columns(ws::Workspace, plan::Plan, gi) = pointer(ws.flows) + 4 * TILE * plan.columns[gi].flow
@inline exponents(ws::Workspace, plan::Plan, gi) = pointer(ws.exponents) + 4 * TILE * plan.columns[gi].exponent

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
            ws.x[(i - 1) * TILE + s] = hidden(mask, i, n) ? Int32(-1) : category(X[i, n])
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
