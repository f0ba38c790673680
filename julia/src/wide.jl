# The evaluation of samples whose values do not fit the groups' scales (losses.jl): every unit has a scale of its own, so that
# nothing underflows, whatever the units beside it. Unit by unit through the circuit's own arrays, 16 samples in the lanes.

"One thread's buffers for 16 samples: each unit's value is `mantissa` 2^`exponent`, with a mantissa in [sqrt(1/2), sqrt(2)) or 0."
struct WideWorkspace
    mantissa::Vector{Float32}   # (LANES, units)
    exponent::Vector{Int32}     # (LANES, units)
    flow::Vector{Float32}       # (LANES, units)
    samples::Vector{Int}        # of each lane; lanes beyond the data repeat the last sample
    inputs::Union{Nothing,BatchInputs}
    group_of::Vector{Int32}     # of each unit, where there are `inputs`
end

function WideWorkspace(plan::Plan; flows::Bool, inputs::Union{Nothing,BatchInputs}=nothing)
    units, group_of = num_units(plan.circuit), zeros(Int32, inputs === nothing ? 0 : num_units(plan.circuit))
    for (gi, g) in enumerate(inputs === nothing ? Group[] : plan.groups)
        group_of[g.units] .= gi
    end
    return WideWorkspace(zeros(Float32, LANES * units), zeros(Int32, LANES * units), zeros(Float32, flows ? LANES * units : 0),
                         zeros(Int, LANES), inputs, group_of)
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
    for s in 1:LANES
        ws.samples[s] = samples[first + min(s, count) - 1]
    end
    return count
end

function forward!(ws::WideWorkspace, plan::Plan, X::Data)
    c = plan.circuit
    GC.@preserve ws for u in 1:num_units(c)
        if isinput(c.kind[u])
            input_value!(ws, plan, u, X)
            continue
        end
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

"The value of sum `u`, in the scale of its largest term."
@inline function wide_sum(ws::WideWorkspace, c::Circuit, u)
    top = LEAST_EXPONENT
    for i in edges(c, u)
        top = max_lanes(top, wide_term(ws, c, u, i)[2])
    end
    total = splat(0f0)
    for i in edges(c, u)
        m, e = wide_term(ws, c, u, i)
        total = muladd_lanes(m, power_of_two(add(e, negate(top))), total)
    end
    return total, top
end

function input_value!(ws::WideWorkspace, plan::Plan, u, X::Union{AbstractMatrix,Masked})
    c, inputs = plan.circuit, ws.inputs
    i, start, stride, plain = c.variable[u], c.param_start[u], c.param_stride[u], inputs === nothing || c.kind[u] != CATEGORICAL
    values = ntuple(Val(LANES)) do s
        category = @inbounds category_of(X, i, ws.samples[s])
        e = start + category * stride
        VecElement(category < 0 ? 1f0 : plain ? (@inbounds c.leaf[e]) : probability(inputs, plan, Int(ws.group_of[u]), u, e))
    end
    m, e = scaled(values, NO_EXPONENT)
    store_lanes(mantissa(ws, u), m)
    store_lanes(exponent(ws, u), e)
end

"A sample's category of variable `i`, -1 where it is marginalised."
@inline category_of(X::AbstractMatrix, i, n) = Int(X[i, n])
@inline category_of(X::Masked, i, n) = X.mask[i, n] ? -1 : Int(X.values[i, n])

function input_value!(ws::WideWorkspace, plan::Plan, u, X::SoftEvidence)
    c = plan.circuit
    for s in 1:LANES
        total = 0.0  # of numbers whose products may be smaller than any Float32
        for k in 0:c.categories[u] - 1
            total += Float64(c.leaf[c.param_start[u] + k * c.param_stride[u]]) * X.likelihood[k + 1, c.variable[u], ws.samples[s]]
        end
        value, e = frexp(total)
        ws.mantissa[LANES * (u - 1) + s] = value
        ws.exponent[LANES * (u - 1) + s] = value == 0 ? -2^28 : e
    end
end

"log p(x | head) of lane `s`, in nats (without a soft evidence's offset)."
function head_log_value(ws::WideWorkspace, c::Circuit, head::Integer, s::Int)
    at = LANES * (c.heads[head] - 1) + s
    return log(Float64(ws.mantissa[at])) + ws.exponent[at] * log(2.0)
end

"Evaluates `samples` again for `out`, (heads, samples), on all threads."
function redo!(out::AbstractMatrix{<:AbstractFloat}, plan::Plan, X::Data, heads, samples::Vector{Int})
    isempty(samples) && return
    c, threads = plan.circuit, min(Threads.nthreads(), cld(length(samples), LANES))
    Threads.@threads for t in 1:threads
        ws = WideWorkspace(plan; flows=false)
        for first in 1 + (t - 1) * LANES:threads * LANES:length(samples)
            count = load_samples!(ws, samples, first)
            forward!(ws, plan, X)
            for s in 1:count, (i, head) in enumerate(heads)
                out[i, ws.samples[s]] = head_log_value(ws, c, head, s) + offset(X, ws.samples[s])
            end
        end
    end
end

"""
Adds the flows of `samples`, which are at `positions` of the batch, to the statistics and returns their weighted log-likelihood. A
sample of probability zero has no flow.
"""
function add_flows!(stat::Statistics, ws::WideWorkspace, plan::Plan, X::Data, sources::Starts, samples::Vector{Int},
                    positions::Vector{Int})
    c, total = plan.circuit, 0.0
    for first in 1:LANES:length(samples)
        count = load_samples!(ws, samples, first)
        forward!(ws, plan, X)
        fill!(ws.flow, 0f0)
        for s in 1:count
            n = ws.samples[s]
            for (head, weight) in starts(sources, n)
                value = head_log_value(ws, c, head, s)
                weight > 0 && (total += weight * (value + offset(X, n)))  # 0 times -Inf is NaN
                value > -Inf && (ws.flow[LANES * (c.heads[head] - 1) + s] += weight)
            end
        end
        backward!(stat, ws, plan, X, view(positions, first:min(first + LANES - 1, length(positions))))
    end
    return total
end

function backward!(stat::Statistics, ws::WideWorkspace, plan::Plan, X::Data, positions)
    c = plan.circuit
    GC.@preserve ws for u in reverse(1:num_units(c))
        f = load_lanes(flow(ws, u))
        horizontal_sum(f) > 0 || continue
        if isinput(c.kind[u])
            for (s, position) in enumerate(positions)
                f[s].value > 0 || continue
                ws.inputs === nothing ? add_input_flow!(stat, c, u, X, ws.samples[s], f[s].value) :
                c.kind[u] == CATEGORICAL && set_flow!(ws.inputs, plan, Int(ws.group_of[u]), u, position, f[s].value)
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
                # Statistics leave out the weight (evaluate.jl).
                c.weight[i] > 0 && (stat.weight[i] += horizontal_sum(part) / c.weight[i])
            end
        end
    end
end

add_input_flow!(stat, c, u, X::AbstractMatrix, n, flow) =
    (stat.leaf[c.param_start[u] + X[c.variable[u], n] * c.param_stride[u]] += flow)

add_input_flow!(stat, c, u, X::Masked, n, flow) =
    X.mask[c.variable[u], n] || add_input_flow!(stat, c, u, X.values, n, flow)

function add_input_flow!(stat, c, u, X::SoftEvidence, n, flow)
    total = exp(log_input(c, u, X, n))
    for k in 0:c.categories[u] - 1
        e = c.param_start[u] + k * c.param_stride[u]
        stat.leaf[e] += flow * c.leaf[e] * X.likelihood[k + 1, c.variable[u], n] / total
    end
end
