# The device engine: the verbs of backends.jl on arrays of any kind, whole batches of samples at once, level by level.

"""
    Device(array = Array)

Arrays that `array` makes of Julia's own: `Device(Array)` is the CPU by other code, `Device(CuArray)` would be a GPU. All that is
computed is a launch of a kernel or a matrix product ([`launch!`](@ref), [`matrix_product!`](@ref)); numbers that are looked at one by one
come to the host first. Samples whose arithmetic did not hold are done exactly on the CPU. No soft evidence, sampling or max-product.
"""
struct Device{A} <: Backend
    array::A
end

Device() = Device(Array)

# Values and flows of a pass take so many numbers each, whatever the circuit.
const PASS_NUMBERS = 2^25

"""
A circuit on a device. Its parameters are taken when it is made, and the circuit's own are brought up to date by [`settle!`](@ref). Flows
are summed in single precision, and every few thousand samples in double precision in `counts`, on the host.
"""
mutable struct DeviceEngine{A} <: Engine
    schedule::Schedule
    device::Device{A}
    rows::Int                   # samples of a pass
    first::Vector{Int32}        # of each group: its first column, less 1
    levels::Vector{Level}
    blocks::Dict{Tuple{Int,Int},DeviceBlock}  # the sparse ones, by group and number
    inputs::Tuple               # column, variable, start, stride of all input units
    learned::Tuple              # start, stride, categories of the categorical ones
    learns_on_host::Bool        # whether others are learned, too: from counts
    sums::Tuple                 # of every sum unit: its first edge, and how many
    binomials::Tuple            # groups, first, width
    heads::Tuple                # of each unit that is a head: its column, and its group
    head_place::Vector{Int}     # of each head: its place among these
    weight::AbstractVector{Float32}       # parameters, and zeros beyond them, so that every block is a matrix
    leaf::AbstractVector{Float32}
    weight_flow::AbstractVector{Float32}  # statistics; none before there is need of them
    leaf_flow::AbstractVector{Float32}
    values::AbstractMatrix{Float32}       # (rows, columns)
    flows::AbstractMatrix{Float32}
    scratch::Tuple                        # (rows, widest), twice
    exponents::AbstractMatrix{Int32}      # (rows, groups)
    lost::AbstractMatrix{Float32}
    x::AbstractMatrix{Int32}              # (rows, variables): categories of the pass under way, -1 where hidden
    ahead::Bool                 # whether the parameters here are newer than the circuit's
    accumulated::Int            # samples in the statistics
    exact::Union{Nothing,Statistics}  # flows of samples that were done exactly
    counts::Union{Nothing,ExpectedCounts}
end

function engine(schedule::Schedule, device::Device; soft::Bool=false, batch_size::Int=0)
    soft && throw(ArgumentError("soft evidence is for the backend CPU() alone"))
    any_numbers(schedule.circuit) &&
        throw(ArgumentError("Poisson and Gaussian inputs are for the backend CPU() alone"))
    c, groups = schedule.circuit, length(schedule.groups)
    place(x) = device.array(x)
    room(T, sizes...) = place(zeros(T, sizes...))
    first, columns = first_columns(schedule)
    rows = clamp(PASS_NUMBERS ÷ max(columns, 1), TILE, SINGLE_PRECISION_SAMPLES)
    batch_size > 0 && (rows = min(rows, batch_size))
    head_units = unique(c.heads)
    own = [findfirst(==(u), c.heads) for u in head_units]  # of each such unit, one head
    head_columns = Int32[first[schedule.head_group[h]] + schedule.head_place[h] for h in own]
    sum_units = Int[u for u in 1:num_units(c) if c.kind[u] == SUM]
    inputs, _ = input_table(schedule, first)
    learned, categories = input_table(schedule, first, ==(CATEGORICAL))
    beyond = zeros(Float32, schedule.widest * maximum(g -> length(g.blocks) + 1, schedule.groups))
    return DeviceEngine(schedule, device, rows, first, levels_of(place, schedule, first), device_blocks(place, schedule), place.(inputs),
                        place.((learned[3], learned[4], categories)),
                        any(g -> g.kind != CATEGORICAL && num_input_params(g.kind, g.categories) > 0, schedule.groups),
                        place.((c.child_start[sum_units], Int32[length(edges(c, u)) for u in sum_units])),
                        place.(binomial_groups(schedule, first)), place.((head_columns, schedule.head_group[own])),
                        Int[findfirst(==(u), head_units) for u in c.heads], place(vcat(c.weight, beyond)), place(copy(c.leaf)),
                        room(Float32, 0), room(Float32, 0), room(Float32, rows, columns), room(Float32, 0, 0),
                        (room(Float32, rows, schedule.widest), room(Float32, rows, schedule.widest)), room(Int32, rows, groups),
                        room(Float32, rows, groups), room(Int32, 0, 0), false, 0, nothing, nothing)
end

"An array where kernels are."
place(e::DeviceEngine, x) = e.device.array(x)

circuit(e::DeviceEngine) = e.schedule.circuit
schedule(e::DeviceEngine) = e.schedule
is_soft(::DeviceEngine) = false
samples_at_once(e::DeviceEngine) = e.rows
steps_at_once(::DeviceEngine, ::Int) = 1

"Launches a kernel for every sample and each of `items`."
over!(f::F, e::DeviceEngine, items::Int, args::Vararg{Any,K}) where {F,K} = launch!(f, e.values, e.rows * items, args...)

"The columns of a group, as a matrix."
group_columns(e::DeviceEngine, array, gi::Int) = view(array, :, e.first[gi] + 1:e.first[gi] + width(e.schedule.groups[gi]))

"What a dense block's weights are of `array`, in their layout: (units of the child group, sums)."
function block_matrix(array, g::Group, b::Block, inputs::Int)
    return view(reshape(view(array, b.first:b.first + b.stride * width(g) - 1), b.stride, width(g)), 1:inputs, :)
end

"Puts the categories of samples `order[range]` where kernels are; the last one again where a pass is not full. -1 is hidden."
function load_pass!(e::DeviceEngine, X::Data, order, range::UnitRange)
    x, values, mask = Matrix{Int32}(undef, e.rows, circuit(e).num_vars), X isa Masked ? X.values : X, X isa Masked ? X.mask : nothing
    for n in 1:e.rows
        sample = order[min(first(range) + n - 1, last(range))]
        for i in axes(x, 2)
            x[n, i] = hidden(mask, i, sample) ? Int32(-1) : category(values[i, sample])
        end
    end
    e.x = place(e, x)
    return nothing
end

"Values of all units for the samples of `load_pass!`, and what underflow may have taken from them."
function forward!(e::DeviceEngine)
    fill!(e.lost, 0f0)
    fill!(e.exponents, Int32(0))
    over!(input_value!, e, count_of(e.inputs), e.values, e.rows, e.x, e.leaf, e.inputs...)
    over!(binomial_bound!, e, count_of(e.binomials), e.lost, e.values, e.rows, e.binomials...)
    for level in e.levels
        over!(product_values!, e, count_of(level.products), e.values, e.exponents, e.lost, e.rows, level.products...)
        groups, _, _, blocks, child, _ = level.sums
        over!(common_exponent!, e, length(groups), e.exponents, e.rows, groups, blocks, child)
        for gi in level.members
            group_sums!(e, gi)
        end
        over!(finish_sums!, e, length(groups), e.values, e.exponents, e.lost, e.rows, level.sums...)
    end
end

function group_sums!(e::DeviceEngine, gi::Int)
    g = e.schedule.groups[gi]
    out, alone = group_columns(e, e.values, gi), length(g.blocks) == 1
    for (b, block) in enumerate(g.blocks)
        part = alone ? out : view(e.scratch[1], :, 1:width(g))
        if isdense(block)
            inputs = width(e.schedule.groups[block.child])
            matrix_product!(part, group_columns(e, e.values, block.child), block_matrix(e.weight, g, block, inputs), 0f0)
        else
            over!(sparse_sums!, e, width(g), part, e.values, e.weight, e.rows, e.first[block.child], block.first, e.blocks[gi, b].of_sums...)
        end
        alone || over!(add_block!, e, width(g), e.values, part, e.exponents, e.rows, e.first[gi], gi, block.child, b > 1)
    end
end

"The heads' values, NaN where they are not certain, and their exponents, of a pass: on the host, `(rows, units that are heads)`."
function head_values(e::DeviceEngine)
    sizes = (e.rows, length(e.heads[1]))
    value, exponent = place(e, zeros(Float32, sizes)), place(e, zeros(Int32, sizes))
    over!(take_head!, e, sizes[2], value, exponent, e.values, e.exponents, e.lost, e.rows, e.heads...)
    return Array(value), Array(exponent)
end

log_value(value::Float32, exponent::Int32) = log(Float64(value)) + exponent * log(2.0)

"Calls `f(range, value, exponent)` with the heads' values of all samples, pass by pass."
function each_pass(f, e::DeviceEngine, X::Data)
    for range in pieces(1:num_samples(X), e.rows)
        load_pass!(e, X, 1:num_samples(X), range)
        forward!(e)
        f(range, head_values(e)...)
    end
end

function log_likelihood!(out::AbstractMatrix{<:AbstractFloat}, e::DeviceEngine, X::Data, heads)
    uncertain = Int[]
    each_pass(e, X) do range, value, exponent
        for (row, n) in enumerate(range)
            for (i, head) in enumerate(heads)
                h = e.head_place[head]
                out[i, n] = log_value(value[row, h], exponent[row, h])
            end
            all(i -> isfinite(out[i, n]), axes(out, 1)) || push!(uncertain, n)
        end
    end
    settle!(e)  # what is redone is redone by the circuit
    return uncertain
end

function head_values!(values::Matrix{Float32}, scale::Vector{Float64}, e::DeviceEngine, X::Data)
    uncertain = Int[]
    each_pass(e, X) do range, value, exponent
        for (row, n) in enumerate(range)
            places = view(e.head_place, axes(values, 1))
            top = maximum(exponent[row, h] for h in places)
            for (head, h) in enumerate(places)
                values[head, n] = ldexp(value[row, h], exponent[row, h] - top)
            end
            scale[n] = top * log(2.0)
            any(h -> isnan(value[row, h]), places) && push!(uncertain, n)
        end
    end
    settle!(e)
    return uncertain
end

# --------------------------------------------------------------------------------------------------------------------- flows

"Makes the room to accumulate in, where there is none."
function prepare!(e::DeviceEngine)
    isempty(e.flows) || return
    e.flows = place(e, zeros(Float32, size(e.values)))
    e.weight_flow, e.leaf_flow = place(e, zeros(Float32, length(e.weight))), place(e, zeros(Float32, length(e.leaf)))
    return nothing
end

function release!(e::DeviceEngine)
    nothing_here = place(e, zeros(Float32, 0))
    e.flows, e.weight_flow, e.leaf_flow = place(e, zeros(Float32, 0, 0)), nothing_here, nothing_here
    e.accumulated, e.exact, e.counts = 0, nothing, nothing
    return nothing
end

function accumulate!(e::DeviceEngine, X::Data, sources::Starts, order, range::UnitRange)
    prepare!(e)
    begin_accumulating!(e, length(range))
    total, uncertain = 0.0, Int[]
    for pass in pieces(range, e.rows)
        load_pass!(e, X, order, pass)
        forward!(e)
        own, started = begin_flows(e, sources, order, pass, uncertain)
        total += own
        backward!(e, started)
    end
    return total, uncertain
end

"What the flows of a pass start with, `(rows, units that are heads)`, and the weighted log-likelihood; samples without go to `uncertain`."
function begin_flows(e::DeviceEngine, sources::Starts, order, pass, uncertain)
    value, exponent = head_values(e)
    started, total = zeros(Float32, size(value)), 0.0
    for (row, place) in enumerate(pass)
        own = 0.0
        for (head, weight) in starts(sources, Int(order[place]))
            h = e.head_place[head]
            weight > 0 && (own += weight * log_value(value[row, h], exponent[row, h]))
            started[row, h] += weight
        end
        if isfinite(own)
            total += own
        else
            started[row, :] .= 0f0
            push!(uncertain, place)
        end
    end
    return total, started
end

function backward!(e::DeviceEngine, started::Matrix{Float32})
    fill!(e.flows, 0f0)
    over!(start_flow!, e, size(started, 2), e.flows, e.rows, place(e, started), e.heads[1])
    for level in reverse(e.levels)
        over!(gather_flow!, e, count_of(level.gather), e.flows, e.rows, level.gather...)
        for gi in level.members, (b, block) in enumerate(e.schedule.groups[gi].blocks)
            block_flows!(e, gi, b, block)
        end
    end
    launch!(input_flow!, e.values, count_of(e.inputs), e.leaf_flow, e.flows, e.rows, e.x, e.inputs...)
end

function block_flows!(e::DeviceEngine, gi::Int, b::Int, block::Block)
    g, inputs = e.schedule.groups[gi], width(e.schedule.groups[block.child])
    ratio, first = view(e.scratch[1], :, 1:width(g)), e.first[block.child]
    over!(flow_ratio!, e, width(g), ratio, e.flows, e.values, e.exponents, e.rows, e.first[gi], gi, block.child)
    if isdense(block)
        value, part = group_columns(e, e.values, block.child), view(e.scratch[2], :, 1:inputs)
        matrix_product!(block_matrix(e.weight_flow, g, block, inputs), value, ratio, 1f0, true)
        matrix_product!(part, ratio, block_matrix(e.weight, g, block, inputs), 0f0, false, true)
        over!(send_flow!, e, inputs, e.flows, e.values, part, e.rows, first)
    else
        lists = e.blocks[gi, b].of_children
        launch!(sparse_edges!, e.values, inputs, e.weight_flow, e.values, ratio, e.rows, first, block.first, lists...)
        over!(sparse_flow!, e, inputs, e.flows, e.values, ratio, e.weight, e.rows, first, block.first, lists...)
    end
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

"Adds what single precision holds, times `scale`, to `counts`, and clears it."
function take_counts!(counts::ExpectedCounts, e::DeviceEngine, scale::Float64)
    c = circuit(e)
    if !isempty(e.weight_flow)
        settle!(e)
        own = Statistics(Array(e.weight_flow)[1:length(c.weight)], Array(e.leaf_flow))
        take_counts!(counts, c, own, scale)
        fill!(e.weight_flow, 0f0)
        fill!(e.leaf_flow, 0f0)
    end
    e.exact === nothing || take_counts!(counts, c, e.exact, scale)
    e.exact, e.accumulated = nothing, 0
    return counts
end

function apply!(e::DeviceEngine, step::Real, pseudocount::Real)
    prepare!(e)
    if e.counts !== nothing || e.exact !== nothing || e.learns_on_host
        return apply!(e, counts!(ExpectedCounts(circuit(e)), e), step, pseudocount, 1.0)
    end
    s, a = Float32(step), Float32(pseudocount)
    launch!(sum_step!, e.weight, length(e.sums[1]), e.weight, e.weight_flow, s, a, e.sums...)
    launch!(categorical_step!, e.leaf, length(e.learned[1]), e.leaf, e.leaf_flow, s, a, e.learned...)
    fill!(e.leaf_flow, 0f0)  # of inputs that have nothing to learn
    e.ahead, e.accumulated = true, 0
    return nothing
end

function apply!(e::DeviceEngine, counts::ExpectedCounts, step::Real, pseudocount::Real, scale::Real=scale_of(counts))
    settle!(e)
    m_step!(e.schedule, counts, Float64(step), Float64(pseudocount), pseudocount > 0 ? 0.0 : LEAST_FLOW * Float64(scale))
    c = circuit(e)
    copyto!(view(e.weight, 1:length(c.weight)), place(e, c.weight))
    copyto!(e.leaf, place(e, c.leaf))
    return nothing
end

function settle!(e::DeviceEngine)
    e.ahead || return nothing
    c = circuit(e)
    copyto!(c.weight, 1, Array(e.weight), 1, length(c.weight))
    copyto!(c.leaf, Array(e.leaf))
    e.ahead = false
    return nothing
end
