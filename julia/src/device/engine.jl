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
A circuit on a device. Its parameters are taken when it is made, and the circuit's own are brought up to date by [`settle!`](@ref). Flows
are summed in single precision, and every few thousand samples in double precision in `counts`, on the host. The room for a pass is made
when it is first needed.
"""
mutable struct DeviceEngine{A} <: Engine
    schedule::Schedule
    device::Device{A}
    soft::Bool
    rows::Int                   # samples of a pass
    first::Vector{Int32}        # of each group: its first column, less 1
    levels::Vector{Level}
    evidence_batches::Vector{EvidenceBatch}  # of the inputs, where evidence is soft
    inputs::Tuple               # column, variable, start, stride of all input units
    learned::Tuple              # start, stride, categories of the categorical ones
    learns_on_host::Bool        # whether others are learned, too: from counts
    sums::Tuple                 # of every sum unit: its first edge, and how many
    small::Tuple                # of input groups whose small values have lost digits: groups, first, width
    heads::Tuple                # of each unit that is a head: its column, and its group
    head_place::Vector{Int}     # of each head: its place among these
    weight::AbstractVector{Float32}       # parameters, and zeros beyond them, so that every block is a matrix
    leaf::AbstractVector{Float32}
    weight_flow::AbstractVector{Float32}  # statistics, less the weight; none before there is need of them
    leaf_flow::AbstractVector{Float32}    # of soft evidence, less the parameter
    values::AbstractMatrix{Float32}       # (rows, columns)
    flows::AbstractMatrix{Float32}
    scratch::Tuple                        # (rows, sums of the largest batch), (rows, units or pairs of its child groups)
    exponents::AbstractMatrix{Int32}      # (rows, groups)
    lost::AbstractMatrix{Float32}
    x::AbstractMatrix{Int32}              # (rows, variables): categories of the pass under way, -1 where hidden
    evidence::AbstractArray{Float32,3}    # (rows, categories, variables), in their place where it is soft
    ahead::Bool                 # whether the parameters here are newer than the circuit's
    accumulated::Int            # samples in the statistics
    exact::Union{Nothing,Statistics}  # flows of samples that were done exactly
    counts::Union{Nothing,ExpectedCounts}
end

function engine(schedule::Schedule, device::Device; soft::Bool=false, batch_size::Int=0)
    c = schedule.circuit
    any_numbers(c) && throw(ArgumentError("Poisson and Gaussian inputs are for the backend CPU() alone"))
    place(x) = device.array(x)
    none(T, dimensions=1) = place(zeros(T, ntuple(_ -> 0, dimensions)))
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
    return DeviceEngine(schedule, device, soft, rows, first, levels_of(place, schedule, first, limit),
                        soft ? evidence_batches(place, schedule, first) : EvidenceBatch[], place.(inputs), place.((learned[3], learned[4], categories)),
                        any(g -> g.kind != CATEGORICAL && num_input_params(g.kind, g.categories) > 0, schedule.groups),
                        place.((c.child_start[sum_units], Int32[length(edges(c, u)) for u in sum_units])),
                        place.(small_inputs(schedule, first, soft)), place.((head_columns, schedule.head_group[own])),
                        Int[findfirst(==(u), head_units) for u in c.heads], place(vcat(c.weight, beyond)),
                        place(vcat(c.leaf, zeros(Float32, widest_stride(schedule)))), none(Float32), none(Float32), none(Float32, 2),
                        none(Float32, 2), (none(Float32, 2), none(Float32, 2)), none(Int32, 2), none(Float32, 2), none(Int32, 2),
                        none(Float32, 3), false, 0, nothing, nothing)
end

"Units of the widest group, or pairs of units where those are more."
widest_in_scratch(schedule::Schedule) = max(schedule.widest, maximum(g -> g.pairs === nothing ? 0 : width(g), schedule.groups))

"Room beyond the inputs' tables, so that each is a matrix, (units, categories), of whole columns."
widest_stride(schedule::Schedule) = maximum(g -> isinput(g.kind) ? g.param_stride : 0, schedule.groups)

"An array where kernels are."
place(e::DeviceEngine, x) = e.device.array(x)

circuit(e::DeviceEngine) = e.schedule.circuit
schedule(e::DeviceEngine) = e.schedule
is_soft(e::DeviceEngine) = e.soft
samples_at_once(e::DeviceEngine) = e.rows
steps_at_once(::DeviceEngine, ::Int) = 1

"Launches a kernel for every sample and each of `items`."
over!(f::F, e::DeviceEngine, items::Int, args::Vararg{Any,K}) where {F,K} = launch!(f, e.values, e.rows * items, args...)

"The columns of a group, as a matrix."
group_columns(e::DeviceEngine, array, gi::Int) = view(array, :, e.first[gi] + 1:e.first[gi] + width(e.schedule.groups[gi]))

"What a dense block's weights are of `array`, in their layout: (units of the child group, sums)."
function block_matrix(array, g::Group, b::Block, inputs::Int)
    return upper_rows(array, b.first, b.stride, inputs, width(g))
end

"The table of a group of inputs, (units, categories), of `array`, in the parameters' layout."
function table_matrix(array, g::Group)
    return upper_rows(array, g.param_start, Int(g.param_stride), width(g), Int(g.categories))
end

"The first `rows` rows of a matrix whose columns lie `stride` apart, from `start` on: all of it where there are no others."
function upper_rows(array, start, stride, rows, columns)
    whole = reshape(view(array, start:start + stride * columns - 1), stride, columns)
    return rows == stride ? whole : view(whole, 1:rows, :)
end

"""
Makes the room for the values and flows of a pass, where there is none; where the device's memory has not as much, passes have fewer samples from
now on.
"""
function make_room!(e::DeviceEngine)
    isempty(e.values) || return
    while true
        try
            room(T, columns) = place(e, zeros(T, e.rows, columns))
            groups, columns = length(e.schedule.groups), sum(kept_width, e.schedule.groups)
            e.values, e.flows = room(Float32, columns), room(Float32, columns)
            e.scratch = map(size -> room(Float32, maximum(Int[1; [size(batch) for level in e.levels for batch in level.batches]])),
                            (sums_of, children_of))
            e.exponents, e.lost = room(Int32, groups), room(Float32, groups)
            return
        catch error
            drop_room!(e)
            is_full(error) && e.rows > 1 || rethrow()
            e.rows ÷= 2
        end
    end
end

"Gives back what `make_room!` and `load_pass!` took."
function drop_room!(e::DeviceEngine)
    none = place(e, zeros(Float32, 0, 0))
    e.values, e.flows, e.scratch, e.lost = none, none, (none, none), none
    e.exponents, e.x, e.evidence = place(e, zeros(Int32, 0, 0)), place(e, zeros(Int32, 0, 0)), place(e, zeros(Float32, 0, 0, 0))
    return nothing
end

"The sample at `row` of a pass over `order[range]`: the last one again where the pass is not full."
sample_at(order, range::UnitRange, row::Int) = Int(order[min(first(range) + row - 1, last(range))])

"Puts what is known of samples `order[range]` where kernels are: their categories, -1 where one is hidden, or the evidence."
function load_pass!(e::DeviceEngine, X::Union{AbstractMatrix,Masked}, order, range::UnitRange)
    x, values, mask = Matrix{Int32}(undef, e.rows, circuit(e).num_vars), X isa Masked ? X.values : X, X isa Masked ? X.mask : nothing
    for n in 1:e.rows
        sample = sample_at(order, range, n)
        for i in axes(x, 2)
            x[n, i] = hidden(mask, i, sample) ? Int32(-1) : category(values[i, sample])
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

"Values of all units for the samples of `load_pass!`, and what underflow may have taken from them."
function forward!(e::DeviceEngine)
    fill!(e.lost, 0f0)
    fill!(e.exponents, Int32(0))
    e.soft ? evidence_values!(e) : over!(input_value!, e, count_of(e.inputs), e.values, e.rows, e.x, e.leaf, e.inputs...)
    over!(small_input!, e, count_of(e.small), e.lost, e.values, e.rows, e.soft ? SMALL : LOSS, e.small...)
    for level in e.levels
        over!(product_values!, e, count_of(level.products), e.values, e.exponents, e.lost, e.rows, level.products...)
        over!(pair_scale!, e, count_of(level.pairs), e.values, e.exponents, e.lost, e.rows, level.pairs...)
        groups, _, _, blocks, child, _ = level.sums
        over!(common_exponent!, e, length(groups), e.exponents, e.rows, groups, blocks, child)
        for batch in level.batches
            batch_values!(e, batch)
        end
        over!(finish_sums!, e, length(groups), e.values, e.exponents, e.lost, e.rows, level.sums...)
    end
end

"leaf_h = sum over k of theta_{h,k} p(x_i | k), for all groups of inputs."
function evidence_values!(e::DeviceEngine)
    for batch in e.evidence_batches
        matrix_products!(e.values, unit_matrices(e, batch), evidence_matrices(e, e.evidence, batch), table_matrices(e, e.leaf, batch), 0f0, false, true)
    end
end

unit_matrices(e::DeviceEngine, batch::EvidenceBatch) = [group_columns(e, e.values, gi) for gi in batch.groups]

"Of each group of the batch: its variable's numbers, `(rows, categories)`, of an array by variables."
evidence_matrices(e::DeviceEngine, array, batch::EvidenceBatch) = [view(array, :, :, e.schedule.groups[gi].variable) for gi in batch.groups]
table_matrices(e::DeviceEngine, array, batch::EvidenceBatch) = [table_matrix(array, e.schedule.groups[gi]) for gi in batch.groups]

"How many columns of scratch the sums of a batch take, and what they sum over."
sums_of(batch) = count_of(batch.sums)
children_of(batch::DenseBatch) = length(batch.members) * batch.inputs
children_of(batch::SparseBatch) = count_of(batch.of_children)

function batch_values!(e::DeviceEngine, batch::DenseBatch)
    parts = batch.alone ? [group_columns(e, e.values, gi) for (gi, _) in batch.members] : scratch_parts(e, 1, batch, batch.width)
    matrix_products!(e.values, parts, batch_inputs(e, batch), block_matrices(e, e.weight, batch), 0f0)
    batch.alone || over!(add_block!, e, sums_of(batch), e.values, e.scratch[1], e.exponents, e.rows, batch.adds, batch.sums...)
end

function batch_values!(e::DeviceEngine, batch::SparseBatch)
    out = batch.alone ? e.values : e.scratch[1]
    over!(sparse_sums!, e, sums_of(batch), out, e.values, e.weight, e.rows, batch.place..., batch.of_sums...)
    batch.alone || over!(add_block!, e, sums_of(batch), e.values, e.scratch[1], e.exponents, e.rows, batch.adds, batch.sums...)
end

"`columns` columns of scratch for each block of the batch, as matrices."
scratch_parts(e::DeviceEngine, which::Int, batch::DenseBatch, columns::Int) =
    [view(e.scratch[which], :, (k - 1) * columns + 1:k * columns) for k in eachindex(batch.members)]

block_matrices(e::DeviceEngine, array, batch::DenseBatch) =
    [block_matrix(array, e.schedule.groups[gi], block, batch.inputs) for (gi, block) in batch.members]

"What the blocks multiply their weights with, `(rows, units)`: the values of their child groups, or of pairs, made here."
function batch_inputs(e::DeviceEngine, batch::DenseBatch)
    batch.pairs === nothing && return [group_columns(e, e.values, block.child) for (_, block) in batch.members]
    over!(pair_product!, e, children_of(batch), e.scratch[2], e.values, e.rows, batch.pairs..., batch.children...)
    return scratch_parts(e, 2, batch, batch.inputs)
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
    make_room!(e)
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
                out[i, n] = log_value(value[row, h], exponent[row, h]) + offset(X, n)
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
            scale[n] = top * log(2.0) + offset(X, n)
            any(h -> isnan(value[row, h]), places) && push!(uncertain, n)
        end
    end
    settle!(e)
    return uncertain
end

# --------------------------------------------------------------------------------------------------------------------- flows

"Makes the room to accumulate in, where there is none."
function prepare!(e::DeviceEngine)
    isempty(e.weight_flow) || return
    e.weight_flow, e.leaf_flow = place(e, zeros(Float32, length(e.weight))), place(e, zeros(Float32, length(e.leaf)))
    return nothing
end

function release!(e::DeviceEngine)
    drop_room!(e)
    e.weight_flow, e.leaf_flow = place(e, zeros(Float32, 0)), place(e, zeros(Float32, 0))
    e.accumulated, e.exact, e.counts = 0, nothing, nothing
    return nothing
end

accumulate!(e::DeviceEngine, X::Data, sources::Starts, order, range::UnitRange) =
    accumulate!((pass, certain) -> nothing, e, X, sources, order, range)

"As above; `after(pass, certain)` is called with the places in `order` of each pass when its flows are there, and which rows have any."
function accumulate!(after::F, e::DeviceEngine, X::Data, sources::Starts, order, range::UnitRange) where {F}
    prepare!(e)
    begin_accumulating!(e, length(range))
    total, uncertain = 0.0, Int[]
    make_room!(e)
    for pass in pieces(range, e.rows)
        load_pass!(e, X, order, pass)
        forward!(e)
        own, started, certain = begin_flows(e, X, sources, order, pass)
        total += own
        append!(uncertain, pass[.!certain])
        backward!(e, started)
        after(pass, certain)
    end
    return total, uncertain
end

"""
The weighted log-likelihood of a pass; what its flows start with, `(rows, units that are heads)`; and for which of its samples the arithmetic
held: the others have no flow.
"""
function begin_flows(e::DeviceEngine, X::Data, sources::Starts, order, pass)
    value, exponent = head_values(e)
    started, total, certain = zeros(Float32, size(value)), 0.0, fill(true, length(pass))
    for (row, place) in enumerate(pass)
        own, n = 0.0, Int(order[place])
        for (head, weight) in starts(sources, n)
            h = e.head_place[head]
            weight > 0 && (own += weight * (log_value(value[row, h], exponent[row, h]) + offset(X, n)))
            started[row, h] += weight
        end
        certain[row] = isfinite(own)
        certain[row] ? (total += own) : (started[row, :] .= 0f0)
    end
    return total, started, certain
end

function backward!(e::DeviceEngine, started::Matrix{Float32})
    fill!(e.flows, 0f0)
    over!(start_flow!, e, size(started, 2), e.flows, e.rows, place(e, started), e.heads[1])
    for level in reverse(e.levels)
        over!(gather_flow!, e, count_of(level.gather), e.flows, e.rows, level.gather...)
        for batch in level.batches
            batch_flows!(e, batch)
        end
    end
    e.soft ? evidence_flows!(e) : launch!(input_flow!, e.values, count_of(e.inputs), e.leaf_flow, e.flows, e.rows, e.x, e.inputs...)
end

"Adds the flows of all categories, less their parameters, to the inputs' statistics; the inputs' values make place for flow / value."
function evidence_flows!(e::DeviceEngine)
    for batch in e.evidence_batches
        over!(input_ratio!, e, count_of(batch.units), e.values, e.flows, e.rows, batch.units...)
        batch.learns || continue
        matrix_products!(e.values, table_matrices(e, e.leaf_flow, batch), unit_matrices(e, batch), evidence_matrices(e, e.evidence, batch), 1f0, true)
    end
end

"p(x_i = k | evidence) of the samples of a pass, up to a factor for each, from what [`evidence_flows!`](@ref) leaves: on the host."
function evidence_posterior(e::DeviceEngine)
    posterior = place(e, zeros(Float32, size(e.evidence)))
    for batch in e.evidence_batches
        matrix_products!(e.values, evidence_matrices(e, posterior, batch), unit_matrices(e, batch), table_matrices(e, e.leaf, batch),
                         batch.again ? 1f0 : 0f0)
    end
    launch!(multiply_by!, posterior, length(posterior), posterior, e.evidence)
    return Array(posterior)
end

"[`accumulate_posterior!`](@ref)"
function accumulate_posterior!(posterior::Array{Float32,3}, e::DeviceEngine, X::SoftEvidence, head_of::Vector{Int32})
    N, sources = num_samples(X), Sources(head_of)
    total, uncertain = accumulate!(e, X, sources, 1:N, 1:N) do pass, certain
        found = evidence_posterior(e)
        for (row, n) in enumerate(pass)
            certain[row] || continue
            for i in axes(posterior, 2), k in axes(posterior, 1)
                posterior[k, i, n] = found[row, k, i]
            end
            finish_marginals!(posterior, circuit(e), X, n, head_of)
        end
    end
    isempty(uncertain) && return total
    settle!(e)
    return total + exact_posterior!(posterior, e, X, head_of, uncertain)
end

"What the sums of a batch, flow / value, send down: to scratch."
function batch_ratios!(e::DeviceEngine, batch)
    over!(flow_ratio!, e, sums_of(batch), e.scratch[1], e.flows, e.values, e.exponents, e.rows, batch.sums...)
end

function batch_flows!(e::DeviceEngine, batch::DenseBatch)
    batch_ratios!(e, batch)
    ratios, parts = scratch_parts(e, 1, batch, batch.width), scratch_parts(e, 2, batch, batch.inputs)
    matrix_products!(e.values, block_matrices(e, e.weight_flow, batch), batch_inputs(e, batch), ratios, 1f0, true)
    matrix_products!(e.values, parts, ratios, block_matrices(e, e.weight, batch), 0f0, false, true)
    if batch.pairs === nothing
        over!(send_flow!, e, children_of(batch), e.flows, e.values, e.scratch[2], e.rows, batch.children...)
    else
        (slow, fast), (m, n), blocks = batch.children, batch.pairs, length(batch.members)
        over!(send_pair_flow!, e, blocks * m, e.flows, e.values, e.scratch[2], e.rows, m, n, n, 1, slow, fast)
        over!(send_pair_flow!, e, blocks * n, e.flows, e.values, e.scratch[2], e.rows, n, 1, m, n, fast, slow)
    end
end

function batch_flows!(e::DeviceEngine, batch::SparseBatch)
    batch_ratios!(e, batch)
    children = children_of(batch)
    launch!(sparse_edges!, e.values, children, e.weight_flow, e.values, e.scratch[1], e.rows, batch.of_children...)
    over!(sparse_flow!, e, children, e.flows, e.values, e.scratch[1], e.weight, e.rows, batch.of_children...)
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
        multiply_in!(e)
        own = Statistics(Array(e.weight_flow)[1:length(c.weight)], Array(e.leaf_flow)[1:length(c.leaf)])
        take_counts!(counts, c, own, scale)
        fill!(e.weight_flow, 0f0)
        fill!(e.leaf_flow, 0f0)
    end
    e.exact === nothing || take_counts!(counts, c, e.exact, scale)
    e.exact, e.accumulated = nothing, 0
    return counts
end

"Makes the inputs' statistics flows, where they leave the parameters out."
multiply_in!(e::DeviceEngine) = e.soft && launch!(multiply_by!, e.leaf, length(e.leaf), e.leaf_flow, e.leaf)

function apply!(e::DeviceEngine, step::Real, pseudocount::Real)
    prepare!(e)
    if e.counts !== nothing || e.exact !== nothing || e.learns_on_host
        return apply!(e, counts!(ExpectedCounts(circuit(e)), e), step, pseudocount, 1.0)
    end
    s, a = Float32(step), Float32(pseudocount)
    multiply_in!(e)
    launch!(sum_step!, e.weight, length(e.sums[1]), e.weight, e.weight_flow, s, a, e.sums...)
    launch!(categorical_step!, e.leaf, length(e.learned[1]), e.leaf, e.leaf_flow, s, a, e.learned...)
    fill!(e.leaf_flow, 0f0)  # of inputs that have nothing to learn
    e.ahead, e.accumulated = true, 0
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
