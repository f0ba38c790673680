# EM on a batch of no more samples than its variables have categories, as far as the inputs go. Most entries of their tables then
# belong to categories that no sample of the batch has: there, a step is one linear map for each unit.

# The scale of a unit's parameters falls with each step; before it is this small, the table is brought up to date.
const LEAST_SCALE = 2f0^-40

"""
    BatchInputs(schedule, batch_size)

The categorical inputs of a circuit while EM goes through small batches. `flows`: of each input group, from `width * first *
batch_size` on, the flows of its units for each sample of the batch in turn, `width` apart. Unlike a sum for each category, that
needs no clearing, and less room; threads share it, each with samples of its own. `samples` of `X` are those of the batch, in that order.

Unit k of group g has for category c the probability `scale * leaf + offset`, with `scale[first[g] + k]` and `offset[first[g] + k]`
and its place in `leaf`: a step changes `leaf` for the categories that occur, and scale and offset for all. [`settle!`](@ref)
brings `leaf` up to date.
"""
mutable struct BatchInputs
    batch_size::Int
    first::Vector{Int32}        # of each group; groups begin at whole vectors
    scale::Vector{Float32}
    offset::Vector{Float32}
    flows::Vector{Float32}
    rows::Vector{Int32}         # (batch_size, threads): where in a table a sample's category is
    X::Any
    samples::Vector{Int}        # empty where nothing is accumulated
end

"Whether `BatchInputs` are the way to learn a circuit's inputs in batches of this size."
suit_batch(schedule::Schedule, batch_size::Int) =
    0 < batch_size <= SINGLE_PRECISION_SAMPLES && any(g -> g.kind == CATEGORICAL, schedule.groups) &&
    all(g -> g.kind == CATEGORICAL ? batch_size <= g.categories : num_input_params(g.kind, g.categories) == 0, schedule.groups)

padded(g::Group) = LANES * cld(width(g), LANES)

function BatchInputs(schedule::Schedule, batch_size::Int)
    first, units = zeros(Int32, length(schedule.groups)), 0
    for (gi, g) in enumerate(schedule.groups)
        first[gi] = units
        g.kind == CATEGORICAL && (units += padded(g))
    end
    return BatchInputs(batch_size, first, ones(Float32, units), zeros(Float32, units), zeros(Float32, units * batch_size),
                       zeros(Int32, batch_size * Threads.nthreads()), nothing, Int[])
end

"The samples of `X` whose flows come next."
function begin_batch!(inputs::BatchInputs, X, samples)
    inputs.X = X
    resize!(inputs.samples, length(samples)) .= samples
end

"Adds the flows of the batch, times `scale`, to `counts`, and clears them."
function add_counts!(counts::ExpectedCounts, inputs::BatchInputs, schedule::Schedule, scale::Real)
    isempty(inputs.samples) || add_counts!(counts, inputs, schedule, Float64(scale), inputs.X)
    empty!(inputs.samples)
end

function add_counts!(counts::ExpectedCounts, inputs::BatchInputs, schedule::Schedule, scale::Float64, X)
    for (gi, g) in enumerate(schedule.groups)
        g.kind == CATEGORICAL || continue
        for (i, n) in enumerate(inputs.samples)
            is_known(X, g.variable, n) || continue
            flow, first = flow_row(inputs, gi, padded(g), i - 1), g.param_start + known(X, g.variable, n) * g.param_stride - 1
            for k in 1:width(g)
                counts.leaf[first + k] += scale * unsafe_load(flow, k)
            end
        end
    end
end

@inline linear_map(inputs::BatchInputs, gi::Int) = (pointer(inputs.scale, inputs.first[gi] + 1), pointer(inputs.offset, inputs.first[gi] + 1))

"The flows of group `gi` for the sample at `position` (from 0) of the batch."
@inline flow_row(inputs::BatchInputs, gi::Int, width::Int, position::Int) =
    pointer(inputs.flows, inputs.first[gi] * inputs.batch_size + position * width + 1)

"Clears the flows of group `gi` for the sample at `position`: a missing value teaches its inputs nothing."
drop_flows!(inputs::BatchInputs, gi::Int, width::Int, position::Int) =
    fill!(view(inputs.flows, inputs.first[gi] * inputs.batch_size + position * width .+ (1:width)), 0f0)

place_in_table(schedule, gi, u) = schedule.circuit.param_start[u] - schedule.groups[gi].param_start + 1

"Sets the flow of input `u`, of group `gi`, for the sample at `position`."
set_flow!(inputs::BatchInputs, schedule::Schedule, gi::Int, u, position::Int, flow::Float32) =
    unsafe_store!(flow_row(inputs, gi, padded(schedule.groups[gi]), position), flow, place_in_table(schedule, gi, u))

"""
The M-step of group `gi` (see `m_step!`) from the flows of `samples`. Thread `t` has `shares` to work in, as for `apply_table!`.
"""
function apply_batch!(inputs::BatchInputs, schedule::Schedule, gi::Int, X, samples, t::Int, shares::Matrix{Float32},
                      step::Float32, pseudocount::Float32)
    g, c, first = schedule.groups[gi], schedule.circuit, Int(inputs.first[gi])
    units, lanes, count, settled = width(g), padded(g), length(samples), false
    GC.@preserve inputs c shares begin
        total_flows!(pointer(shares), flow_row(inputs, gi, lanes, 0), lanes, count, pseudocount)
        @inbounds for k in 1:lanes
            total, take, at = shares[k, 1], 0f0, first + k
            if k <= units && has_flow(total)  # else as it was
                take = step / total
                inputs.scale[at] *= 1 - step
                inputs.offset[at] = (1 - step) * inputs.offset[at] + take * (pseudocount / g.categories)
            end
            settled |= inputs.scale[at] < LEAST_SCALE
            shares[k, 1] = take
        end
        settled && settle!(inputs, schedule, gi)
        @inbounds for k in 1:lanes
            shares[k, 1] /= inputs.scale[first + k]
        end
        rows = pointer(inputs.rows, 1 + (t - 1) * inputs.batch_size)
        @inbounds for i in 1:count
            at = is_known(X, g.variable, samples[i]) ? Int(known(X, g.variable, samples[i])) : 0  # a missing value has no flow
            unsafe_store!(rows, at * g.param_stride, i)
        end
        whole = g.param_stride == units ? units * g.categories : 0  # what follows a row is the next one of the same table
        add_rows!(pointer(c.leaf, g.param_start), pointer(shares), flow_row(inputs, gi, lanes, 0), rows, units, whole, lanes, count)
    end
end

"Brings the parameters of group `gi` up to date: afterwards they are what `leaf` holds."
function settle!(inputs::BatchInputs, schedule::Schedule, gi::Int)
    g, leaf, first = schedule.groups[gi], schedule.circuit.leaf, Int(inputs.first[gi])
    range = first + 1:first + width(g)
    scale, offset = view(inputs.scale, range), view(inputs.offset, range)
    for category in 0:g.categories - 1
        row = g.param_start + category * g.param_stride - 1
        @inbounds @simd for k in 1:width(g)
            leaf[row + k] = scale[k] * leaf[row + k] + offset[k]
        end
    end
    scale .= 1
    offset .= 0
end

function settle!(inputs::BatchInputs, schedule::Schedule)
    for (gi, g) in enumerate(schedule.groups)
        g.kind == CATEGORICAL && settle!(inputs, schedule, gi)
    end
end
