# The device engine: the verbs of backends.jl on arrays of any kind, whole batches of samples at once, level by level.

"""
    Device(array = Array)

Arrays that `array` makes of Julia's own: `Device(Array)` is the CPU by other code, `Device(CuArray)` would be a GPU. All that is
computed is a launch of a kernel or a matrix product ([`launch!`](@ref), [`matrix_product!`](@ref)); numbers that are looked at one by one
come to the host first. Samples whose arithmetic did not hold are done exactly on the CPU. No sampling or max-product.
"""
struct Device{A} <: Backend
    array::A
end

Device() = Device(Array)

"""
    backend(name) -> Backend

By its name: `"cpu"`, `"array"`, which is `Device(Array)`, the device engine on the CPU, and what extensions add: `"cuda"`. Throws an `ArgumentError`
where there is none of this name, or it does not work here.
"""
backend(name::AbstractString) = backend(Val(Symbol(name)))
backend(::Val{:cpu}) = CPU()
backend(::Val{:array}) = Device()
backend(::Val{name}) where {name} = throw(ArgumentError("device: found $name, which no loaded extension knows"))

"Whether an error says that a device's memory is full; extensions add their own."
is_full(error) = error isa OutOfMemoryError

# Values and flows of a pass take so many numbers each, whatever the circuit.
const PASS_NUMBERS = 2^25

"""
A circuit on a device. Its parameters are taken when it is made, stay there, and the circuit's own are brought up to date by [`settle!`](@ref).
Flows are summed in single precision, and every few thousand samples in double precision in `wide`. The room for a pass is made when it is
first needed.
"""
mutable struct DeviceEngine{A} <: Engine
    schedule::Schedule
    device::Device{A}
    soft::Bool
    most::Int                   # samples of a pass at most
    rows::Int                   # those that there is room for now
    first::Vector{Int32}        # of each group: its first column, less 1
    levels::Vector{Level}
    evidence_batches::Vector{EvidenceBatch}  # of the inputs, where evidence is soft
    inputs::Tuple               # column, variable, start, stride of all input units
    learned::Tuple              # variable, start, stride, categories of the categorical ones
    learns_on_host::Bool        # whether others are learned, too: from counts
    sums::Tuple                 # of every sum unit: its first edge, and how many
    small::Tuple                # of input groups whose small values have lost digits: groups, first, width
    heads::Tuple                # of each unit that is a head: its column, and its group
    head_place::Vector{Int}     # of each head: its place among these
    weight::AbstractVector{Float32}       # parameters, and zeros beyond them, so that every block is a matrix
    leaf::AbstractVector{Float32}
    weight_flow::AbstractVector{Float32}  # statistics, less the weight; none before there is need of them
    leaf_flow::AbstractVector{Float32}    # of soft evidence, less the parameter
    wide::Tuple                           # both, in double precision, the latter with the parameter; none before there is need of them
    values::AbstractMatrix{Float32}       # (rows, columns)
    flows::AbstractMatrix{Float32}
    scratch::Tuple                        # (rows, sums of the largest batch), (rows, units or pairs of its child groups)
    exponents::AbstractMatrix{Int32}      # (rows, groups)
    lost::AbstractMatrix{Float32}
    x::AbstractMatrix{Int32}              # (rows, variables): categories of the pass under way, -1 where hidden
    evidence::AbstractArray{Float32,3}    # (rows, categories, variables), in their place where it is soft
    ahead::Bool                 # whether the parameters here are newer than the circuit's
    accumulated::Int            # samples in the statistics
    exact::Union{Nothing,Statistics}  # flows of samples that were done exactly, on the host
    ties::Tuple                 # those that were applied last, and their edges, tie by tie, as lists
end

function engine(schedule::Schedule, device::Device; soft::Bool=false, batch_size::Int=0)
    c = schedule.circuit
    any_numbers(c) && throw(ArgumentError("device: found Poisson or Gaussian inputs in the circuit, which are for the CPU alone"))
    place(x) = device.array(x)
    none(T, dimensions=1) = zeros_at(device.array, T, ntuple(_ -> 0, dimensions)...)
    first, columns = first_columns(schedule)
    limit = max(columns, widest_in_scratch(schedule))
    numbers = limit + (soft ? 2 * c.num_vars * Int(maximum(schedule.limits)) : 0)
    rows = clamp(PASS_NUMBERS ÷ max(numbers, 1), TILE, SINGLE_PRECISION_SAMPLES)
    batch_size > 0 && (rows = min(rows, batch_size))
    head_units = unique(c.heads)
    own = [findfirst(==(u), c.heads) for u in head_units]  # of each such unit, one head
    head_columns = Int32[first[schedule.head_group[h]] + schedule.head_place[h] for h in own]
    sum_units = Int[u for u in 1:num_units(c) if c.kind[u] == SUM]
    inputs, _ = input_table(schedule, first)
    learned, categories = input_table(schedule, first, ==(CATEGORICAL))
    beyond = zeros(Float32, widest_in_scratch(schedule) * maximum(g -> length(g.blocks) + 1, schedule.groups))
    return DeviceEngine(schedule, device, soft, rows, rows, first, levels_of(place, schedule, first, limit),
                        soft ? evidence_batches(place, schedule, first) : EvidenceBatch[], place.(inputs), place.((learned[2:end]..., categories)),
                        any(g -> g.kind != CATEGORICAL && num_input_params(g.kind, g.categories) > 0, schedule.groups),
                        place.((c.child_start[sum_units], Int32[length(edges(c, u)) for u in sum_units])),
                        place.(small_inputs(schedule, first, soft)), place.((head_columns, schedule.head_group[own])),
                        Int[findfirst(==(u), head_units) for u in c.heads], place(vcat(c.weight, beyond)),
                        place(vcat(c.leaf, zeros(Float32, widest_stride(schedule)))), none(Float32), none(Float32),
                        (none(Float64), none(Float64)), none(Float32, 2), none(Float32, 2), (none(Float32, 2), none(Float32, 2)),
                        none(Int32, 2), none(Float32, 2), none(Int32, 2), none(Float32, 3), false, 0, nothing, (nothing,))
end

"Units of the widest group, or pairs of units where those are more."
widest_in_scratch(schedule::Schedule) = max(schedule.widest, maximum(g -> g.pairs === nothing ? 0 : width(g), schedule.groups))

"Room beyond the inputs' tables, so that each is a matrix, (units, categories), of whole columns."
widest_stride(schedule::Schedule) = maximum(g -> isinput(g.kind) ? g.param_stride : 0, schedule.groups)

"An array where kernels are."
place(e::DeviceEngine, x) = e.device.array(x)
zeros_at(e::DeviceEngine, T, sizes::Int...) = zeros_at(e.device.array, T, sizes...)

circuit(e::DeviceEngine) = e.schedule.circuit
schedule(e::DeviceEngine) = e.schedule
is_soft(e::DeviceEngine) = e.soft
samples_at_once(e::DeviceEngine) = e.most
steps_at_once(::DeviceEngine, ::Int) = 1

"Launches a kernel for every sample and each of `items`."
over!(f::F, e::DeviceEngine, items::Int, args::Vararg{Any,K}) where {F,K} = launch!(f, e.values, e.rows * items, args...)

"The columns of a group, as a matrix."
group_columns(e::DeviceEngine, array, gi::Int) = view(array, :, e.first[gi] + 1:e.first[gi] + width(e.schedule.groups[gi]))

"What a dense block's weights are of `array`, in their layout: (units of the child group, sums)."
block_matrix(array, g::Group, b::Block, inputs::Int) = upper_rows(array, b.first, b.stride, inputs, width(g))

"The table of a group of inputs, (units, categories), of `array`, in the parameters' layout."
table_matrix(array, g::Group) = upper_rows(array, g.param_start, Int(g.param_stride), width(g), Int(g.categories))

"The first `rows` rows of a matrix whose columns lie `stride` apart, from `start` on: all of it where there are no others."
function upper_rows(array, start, stride, rows, columns)
    whole = reshape(view(array, start:start + stride * columns - 1), stride, columns)
    return rows == stride ? whole : view(whole, 1:rows, :)
end

"""
Makes the room for the values and flows of passes over so many samples, where there is none, or far too much: all of it is worked on in every
pass. Where the device's memory has not as much, passes have fewer samples from now on.
"""
function make_room!(e::DeviceEngine, samples::Int)
    wanted = min(nextpow(2, max(samples, TILE)), e.most)
    isempty(e.values) || !(e.rows ÷ 4 < wanted <= e.rows) || return
    drop_room!(e)
    e.rows = wanted
    while true
        try
            room(T, columns) = zeros_at(e, T, e.rows, columns)
            groups, columns = length(e.schedule.groups), sum(kept_width, e.schedule.groups)
            e.values, e.flows = room(Float32, columns), room(Float32, columns)
            e.scratch = map(columns_of -> room(Float32, maximum(Int[1; [columns_of(batch) for level in e.levels for batch in level.batches]])),
                            (sums_of, children_of))
            e.exponents, e.lost = room(Int32, groups), room(Float32, groups)
            return
        catch error
            drop_room!(e)
            is_full(error) && e.rows > 1 || rethrow()
            e.rows = e.most = e.rows ÷ 2
        end
    end
end

"Gives back what `make_room!` and `load_pass!` took."
function drop_room!(e::DeviceEngine)
    none, no_numbers = zeros_at(e, Float32, 0, 0), zeros_at(e, Int32, 0, 0)
    e.values, e.flows, e.scratch, e.lost = none, none, (none, none), none
    e.exponents, e.x, e.evidence = no_numbers, no_numbers, zeros_at(e, Float32, 0, 0, 0)
    return nothing
end

"The sample at `row` of a pass over `order[range]`: the last one again where the pass is not full."
sample_at(order, range::UnitRange, row::Int) = Int(order[min(first(range) + row - 1, last(range))])

"Puts what is known of samples `order[range]` where kernels are: their categories, -1 where one is hidden, or the evidence."
function load_pass!(e::DeviceEngine, X::Union{AbstractMatrix,Masked}, order, range::UnitRange)
    x, values, mask = Matrix{Int32}(undef, e.rows, circuit(e).num_vars), X isa Masked ? X.values : X, X isa Masked ? X.mask : nothing
    Threads.@threads for i in axes(x, 2)
        for n in 1:size(x, 1)
            sample = sample_at(order, range, n)
            @inbounds x[n, i] = hidden(mask, i, sample) ? Int32(-1) : category(values[i, sample])
        end
    end
    e.x = place(e, x)
    return nothing
end

function load_pass!(e::DeviceEngine, X::SoftEvidence, order, range::UnitRange)
    K, V, _ = size(X.likelihood)
    evidence = Array{Float32,3}(undef, e.rows, K, V)
    for n in 1:e.rows
        sample = sample_at(order, range, n)
        for i in 1:V, k in 1:K
            @inbounds evidence[n, k, i] = X.likelihood[k, i, sample]
        end
    end
    e.evidence = place(e, evidence)
    return nothing
end

"Makes the room to accumulate in, where there is none."
function prepare!(e::DeviceEngine)
    isempty(e.weight_flow) || return
    e.weight_flow, e.leaf_flow = zeros_at(e, Float32, length(e.weight)), zeros_at(e, Float32, length(e.leaf))
    return nothing
end

function release!(e::DeviceEngine)
    drop_room!(e)
    e.weight_flow, e.leaf_flow = zeros_at(e, Float32, 0), zeros_at(e, Float32, 0)
    e.wide = zeros_at(e, Float64, 0), zeros_at(e, Float64, 0)
    e.accumulated, e.exact = 0, nothing
    return nothing
end

"Makes what single precision holds whole: the inputs' flows, where they leave the parameters out, and those of samples that were done exactly."
function complete!(e::DeviceEngine)
    e.soft && launch!(multiply_by!, e.leaf, length(e.leaf), e.leaf_flow, e.leaf)
    e.exact === nothing && return nothing
    for (flow, exact) in ((e.weight_flow, e.exact.weight), (e.leaf_flow, e.exact.leaf))
        launch!(move_into!, flow, length(exact), flow, place(e, exact))
    end
    e.exact = nothing
    return nothing
end

function widen!(e::DeviceEngine)
    complete!(e)
    isempty(e.wide[1]) && (e.wide = (zeros_at(e, Float64, length(e.weight)), zeros_at(e, Float64, length(e.leaf))))
    launch!(move_into!, e.weight, length(e.weight), e.wide[1], e.weight_flow)
    launch!(move_into!, e.leaf, length(e.leaf), e.wide[2], e.leaf_flow)
    return nothing
end

"All flows, those of edges less the weights, where kernels are: in single precision, or in double where there are too many samples."
function all_flows!(e::DeviceEngine)
    prepare!(e)
    e.accumulated = 0
    if isempty(e.wide[1])
        complete!(e)
        return e.weight_flow, e.leaf_flow
    end
    widen!(e)
    return e.wide
end

function counts!(counts::ExpectedCounts, e::DeviceEngine, scale::Real=1)
    flows, c = all_flows!(e), circuit(e)
    settle!(e)
    weight, leaf = map(Array, flows)
    add_flows!(counts, c, weight, view(leaf, 1:length(c.leaf)), Float64(scale))
    foreach(flow -> fill!(flow, 0), flows)
    return counts
end

function apply!(e::DeviceEngine, step::Real, pseudocount::Real)
    e.learns_on_host && return apply!(e, counts!(ExpectedCounts(circuit(e)), e), step, pseudocount, 1.0)
    return take_step!(e, all_flows!(e)..., Float32(step), Float32(pseudocount))
end

function apply_tied!(e::DeviceEngine, ties::Ties, step::Real, pseudocount::Real)
    e.learns_on_host && return invoke(apply_tied!, Tuple{Engine,Ties,Any,Any}, e, ties, step, pseudocount)
    e.ties[1] === ties || (e.ties = (ties, map(list -> place(e, list), tied_edges(ties))...))
    flows = all_flows!(e)
    launch!(tie_edges!, e.weight, length(e.ties[2]) - 1, flows[1], e.weight, e.ties[2:3]...)
    return take_step!(e, flows..., Float32(step), Float32(pseudocount))
end

"The M-step from these flows, which are cleared."
function take_step!(e::DeviceEngine, weight_flow, leaf_flow, step::Float32, pseudocount::Float32)
    launch!(sum_step!, e.weight, length(e.sums[1]), e.weight, weight_flow, step, pseudocount, e.sums...)
    launch!(categorical_step!, e.leaf, length(e.learned[1]), e.leaf, leaf_flow, step, pseudocount, e.learned[2:end]...)
    fill!(leaf_flow, 0)  # of inputs that have nothing to learn
    e.ahead = true
    return nothing
end

function limit_inputs!(e::DeviceEngine, allowed::AbstractMatrix{Bool})
    e.learns_on_host && return invoke(limit_inputs!, Tuple{Engine,AbstractMatrix{Bool}}, e, allowed)
    all(allowed) && return nothing
    launch!(limit_input!, e.leaf, length(e.learned[1]), e.leaf, place(e, allowed), e.learned...)
    e.ahead = true
    return nothing
end

function apply!(e::DeviceEngine, counts::ExpectedCounts, step::Real, pseudocount::Real, scale::Real=scale_of(counts))
    settle!(e)
    m_step!(e.schedule, counts, Float64(step), Float64(pseudocount), pseudocount > 0 ? 0.0 : LEAST_FLOW * Float64(scale))
    refresh!(e)
    return nothing
end

function refresh!(e::DeviceEngine)
    c = circuit(e)
    copyto!(view(e.weight, 1:length(c.weight)), place(e, c.weight))
    copyto!(view(e.leaf, 1:length(c.leaf)), place(e, c.leaf))
    e.ahead = false
    return nothing
end

function settle!(e::DeviceEngine)
    e.ahead || return nothing
    c = circuit(e)
    copyto!(c.weight, 1, Array(e.weight), 1, length(c.weight))
    copyto!(c.leaf, 1, Array(e.leaf), 1, length(c.leaf))
    e.ahead = false
    return nothing
end
