# The evaluation of samples whose values do not fit the groups' scales (losses.jl): every unit has a scale of its own, so that
# nothing underflows, whatever the units beside it. 16 samples in the lanes; inputs group by group, as in a tile, all other units one
# by one through the circuit's own arrays.

"One thread's buffers for 16 samples: each unit's value is `mantissa` 2^`exponent`, with a mantissa in [sqrt(1/2), sqrt(2)) or 0."
struct WideWorkspace
    mantissa::Vector{Float32}   # (LANES, units)
    exponent::Vector{Int32}     # (LANES, units)
    flow::Vector{Float32}       # (LANES, units)
    samples::Vector{Int}        # (TILE): of each lane; lanes beyond the data and the 16 repeat the last sample
    x::Vector{Int32}            # (TILE, variables): their categories, as a tile has them
    looked_up::Vector{Float32}  # (TILE, widest): the values of one group of inputs
    inputs::Union{Nothing,BatchInputs}
    group_of::Vector{Int32}     # of each unit, where there are `inputs`
end

function WideWorkspace(schedule::Schedule; flows::Bool, inputs::Union{Nothing,BatchInputs}=nothing)
    units, group_of = num_units(schedule.circuit), zeros(Int32, inputs === nothing ? 0 : num_units(schedule.circuit))
    for (gi, g) in enumerate(inputs === nothing ? Group[] : schedule.groups)
        group_of[g.units] .= gi
    end
    widest = maximum(width(g) for g in schedule.groups if isinput(g.kind))
    return WideWorkspace(zeros(Float32, LANES * units), zeros(Int32, LANES * units), zeros(Float32, flows ? LANES * units : 0),
                         zeros(Int, TILE), zeros(Int32, TILE * schedule.circuit.num_vars), zeros(Float32, TILE * widest), inputs, group_of)
end

@inline mantissa(ws::WideWorkspace, u) = pointer(ws.mantissa) + 64 * (u - 1)
@inline exponent(ws::WideWorkspace, u) = pointer(ws.exponent) + 64 * (u - 1)
@inline flow(ws::WideWorkspace, u) = pointer(ws.flow) + 64 * (u - 1)

# The exponents of zeros fall without end as zeros are multiplied; below any real one they are all the same.
const LEAST_EXPONENT = ntuple(_ -> VecElement(Int32(-2^28)), Val(LANES))

const NO_EXPONENT = ntuple(_ -> VecElement(Int32(0)), Val(LANES))

"x 2^e as a mantissa and an exponent."
@inline function scaled(x::Lanes, e::IntLanes)
    d = exponent_lanes(x)
    return mul(x, power_of_two(negate(d))), max_lanes(add(e, d), LEAST_EXPONENT)
end

"Puts samples `samples[first], samples[first + 1], ...` in the lanes; returns how many."
function load_samples!(ws::WideWorkspace, samples, first::Int)
    count = min(LANES, length(samples) - first + 1)
    for s in 1:TILE
        ws.samples[s] = samples[first + min(s, count) - 1]
    end
    return count
end

function forward!(ws::WideWorkspace, schedule::Schedule, X::Data)
    c = schedule.circuit
    load_tile!(ws, X)
    GC.@preserve ws schedule for gi in eachindex(schedule.groups)
        isinput(schedule.groups[gi].kind) && input_values!(ws, schedule, gi, X)
    end
    GC.@preserve ws for u in 1:num_units(c)
        isinput(c.kind[u]) && continue
        if c.kind[u] == PRODUCT
            m, e = splat(1f0), NO_EXPONENT
            for i in edges(c, u)
                v = child(c, u, i)
                m, e = scaled(mul(m, load_lanes(mantissa(ws, v))), add(e, load_lanes(exponent(ws, v))))
            end
        else
            m, e = scaled(wide_sum(ws, c, u)...)
        end
        store_lanes(mantissa(ws, u), m)
        store_lanes(exponent(ws, u), e)
    end
end

"A term of sum `u`: its mantissa and exponent."
@inline function wide_term(ws::WideWorkspace, c::Circuit, u, i)
    v = child(c, u, i)
    return scaled(mul(splat(c.weight[i]), load_lanes(mantissa(ws, v))), load_lanes(exponent(ws, v)))
end

"The value of sum `u`, in about the scale of its largest term: weights and values count by their exponents alone."
@inline function wide_sum(ws::WideWorkspace, c::Circuit, u)
    top = LEAST_EXPONENT
    for i in edges(c, u)
        w = c.weight[i]
        w > 0 && (top = max_lanes(top, add(load_lanes(exponent(ws, child(c, u, i))), splat(exponent_field(w)))))
    end
    total, down = splat(0f0), negate(top)
    for i in edges(c, u)
        w = c.weight[i]
        w > 0 || continue
        v = child(c, u, i)
        # In this order, a small weight makes no subnormal number of what its large scale makes up for.
        term = mul(load_lanes(mantissa(ws, v)), power_of_two(add(load_lanes(exponent(ws, v)), down)))
        total = muladd_lanes(splat(w), term, total)
    end
    return total, top
end

"The exponent of x > 0, that of a subnormal number rounded up."
exponent_field(x::Float32) = (reinterpret(Int32, x) >> 23) - Int32(127)

function input_values!(ws::WideWorkspace, schedule::Schedule, gi::Int, X::Union{AbstractMatrix,Masked})
    has_table(schedule.groups[gi].kind) || return exact_values!(ws, schedule, gi, X)
    look_up!(pointer(ws.looked_up), pointer(ws.x), schedule, gi, ws.inputs)
    for (k, u) in enumerate(schedule.groups[gi].units)
        m, e = scaled(load_lanes(column(pointer(ws.looked_up), k - 1)), NO_EXPONENT)
        store_lanes(mantissa(ws, u), m)
        store_lanes(exponent(ws, u), e)
        schedule.groups[gi].kind == BINOMIAL && underflowed_binomial!(ws, schedule.circuit, u, k)
    end
end

"Values of binomial `u`, the k-th of its group, that its table is too coarse for."
function underflowed_binomial!(ws::WideWorkspace, c::Circuit, u, k)
    for s in 1:LANES
        ws.looked_up[TILE * (k - 1) + s] < floatmin(Float32) || continue
        set_value!(ws, u, s, log_probability(c, u, ws.x[TILE * (c.variable[u] - 1) + s]) / log(2))
    end
end

input_values!(ws::WideWorkspace, schedule::Schedule, gi::Int, X::SoftEvidence) = exact_values!(ws, schedule, gi, X)

function exact_values!(ws::WideWorkspace, schedule::Schedule, gi::Int, X::Data)
    for u in schedule.groups[gi].units, s in 1:LANES
        set_value!(ws, u, s, log_input(schedule.circuit, u, X, ws.samples[s]) / log(2))
    end
end

"Gives input `u` the value 2^bits in lane `s`."
function set_value!(ws::WideWorkspace, u, s, bits)
    at = LANES * (u - 1) + s
    ws.mantissa[at], ws.exponent[at] = bits > -2.0^27 ? (exp2(bits - round(bits)), round(Int, bits)) : (0, -2^28)
end

"log p(x | head) of lane `s`, in nats (without a soft evidence's offset)."
function head_log_value(ws::WideWorkspace, c::Circuit, head::Integer, s::Int)
    at = LANES * (c.heads[head] - 1) + s
    return log(Float64(ws.mantissa[at])) + ws.exponent[at] * log(2.0)
end

"Evaluates `samples` again for `out`, (heads, samples), on all threads."
function redo!(out::AbstractMatrix{<:AbstractFloat}, schedule::Schedule, X::Data, heads, samples::Vector{Int})
    isempty(samples) && return
    c, threads = schedule.circuit, min(Threads.nthreads(), cld(length(samples), LANES))
    Threads.@threads for t in 1:threads
        ws = WideWorkspace(schedule; flows=false)
        for first in 1 + (t - 1) * LANES:threads * LANES:length(samples)
            count = load_samples!(ws, samples, first)
            forward!(ws, schedule, X)
            for s in 1:count, (i, head) in enumerate(heads)
                value = head_log_value(ws, c, head, s)
                # Numbers may be so far from all inputs that no scale has room for it; logarithms do.
                value == -Inf && any_numbers(c) && (value = log_values(c, X, ws.samples[s])[c.heads[head]])
                out[i, ws.samples[s]] = value + offset(X, ws.samples[s])
            end
        end
    end
end

"""
Adds the flows of up to 16 `samples`, which are at `positions` of the batch, from 0, to the statistics. Returns their weighted
log-likelihood and which of them are possible: a sample of probability zero has no flow.
"""
function add_flows!(stat::Statistics, ws::WideWorkspace, schedule::Schedule, X::Data, sources::Starts, samples, positions)
    c, total, possible = schedule.circuit, 0.0, fill(false, length(samples))
    load_samples!(ws, samples, 1)
    forward!(ws, schedule, X)
    fill!(ws.flow, 0f0)
    for s in eachindex(samples)
        for (head, weight) in starts(sources, ws.samples[s])
            value = head_log_value(ws, c, head, s)
            weight > 0 && (total += weight * (value + offset(X, ws.samples[s])))  # 0 times -Inf is NaN
            value > -Inf || continue
            ws.flow[LANES * (c.heads[head] - 1) + s] += weight
            possible[s] = true
        end
    end
    backward!(stat, ws, schedule, X, positions)
    return total, possible
end

function backward!(stat::Statistics, ws::WideWorkspace, schedule::Schedule, X::Data, positions)
    c = schedule.circuit
    GC.@preserve ws for u in reverse(1:num_units(c))
        f = load_lanes(flow(ws, u))
        horizontal_sum(f) > 0 || continue
        if isinput(c.kind[u])
            for (s, position) in enumerate(positions)
                f[s].value > 0 || continue
                ws.inputs === nothing ? add_input_flow!(stat, c, u, X, ws.samples[s], f[s].value) :
                c.kind[u] == CATEGORICAL && is_known(X, c.variable[u], ws.samples[s]) && set_flow!(ws.inputs, schedule, Int(ws.group_of[u]), u, position, f[s].value)
            end
        elseif c.kind[u] == PRODUCT
            for i in edges(c, u)
                p = flow(ws, child(c, u, i))
                store_lanes(p, add(load_lanes(p), f))
            end
        else
            share = ratio(f, load_lanes(mantissa(ws, u)))
            scale = negate(load_lanes(exponent(ws, u)))
            for i in edges(c, u)
                m, e = wide_term(ws, c, u, i)
                part = mul(mul(share, m), power_of_two(add(e, scale)))
                p = flow(ws, child(c, u, i))
                store_lanes(p, add(load_lanes(p), part))
                add_edge_flow!(stat, i, c.weight[i], horizontal_sum(part))
            end
        end
    end
end

function add_input_flow!(stat, c, u, X::AbstractMatrix, n, flow)
    x = X[c.variable[u], n]
    has_table(c.kind[u]) ? (stat.leaf[entry_place(c, u, Int(x))] += flow) : add_number_flow!(stat.leaf, c, u, x, flow)
end

add_input_flow!(stat, c, u, X::Masked, n, flow) =
    X.mask[c.variable[u], n] || add_input_flow!(stat, c, u, X.values, n, flow)

function add_input_flow!(stat, c, u, X::SoftEvidence, n, flow)
    total = log_input(c, u, X, n)
    for k in 0:c.categories[u] - 1
        stat.leaf[c.param_start[u] + k * c.param_stride[u]] += flow * share(c, u, X, k, n, total)
    end
end
