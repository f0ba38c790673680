# Inputs without a table: a Poisson over counts 0, 1, ... and a Gaussian over real numbers. Their values come from formulas, in logarithms, and
# may exceed 1. Their entries of the leaf array are parameters, and those of the statistics what the M-step needs:
#
#     POISSON    parameters: rate, -                      statistics: sum F, sum F x
#     GAUSSIAN   parameters: mean, deviation, least, -    statistics: sum F, sum F max(z, 0), sum F max(-z, 0), sum F z^2
#
# with z = (x - mean) / deviation of the parameters that the flows are of: single precision adds up small numbers, wherever the values lie.
# `least` is the deviation that learning does not go below: densities have no bound otherwise.

const LEAST_RATE = 1e-6

# Of the spread of a variable's values: what deviations do not go below, where a structure is made.
const LEAST_DEVIATION = 1e-3

# Real values may be so large, either way: their squares, in least deviations, fit single precision.
const LARGEST_REAL = 1e12

"Entry `k`, from 0, of input `u`."
@inline entry_place(c, u, k) = c.param_start[u] + k * c.param_stride[u]
@inline entry(c, u, k) = Float64(c.leaf[entry_place(c, u, k)])

any_numbers(c::Circuit) = any(kind -> isinput(kind) && !has_table(kind), c.kind)

"The log probability, or density, in nats, of value `x` under input `u`, which has no table."
log_number(c::Circuit, u, x::Real) =
    c.kind[u] == POISSON ? log_poisson(x, entry(c, u, 0)) : log_gaussian(Float64(x), entry(c, u, 0), entry(c, u, 1))

log_poisson(x::Real, rate::Float64) = (x == 0 ? 0.0 : x * log(rate)) - rate - log_factorial(Int(x))

log_gaussian(x::Float64, mean::Float64, deviation::Float64) = -((x - mean) / deviation)^2 / 2 - log(deviation) - log(2 * pi) / 2

"Adds the flow of input `u`, which has no table, from a sample with value `x`."
@inline function add_number_flow!(leaf::Vector{Float32}, c::Circuit, u, x::Real, flow::Float32)
    start, stride = c.param_start[u], c.param_stride[u]
    leaf[start] += flow
    if c.kind[u] == POISSON
        leaf[start + stride] += flow * Float32(x)
    else
        z = (Float64(x) - c.leaf[start]) / c.leaf[start + stride]
        leaf[start + (z > 0 ? 1 : 2) * stride] += Float32(flow * abs(z))
        leaf[start + 3 * stride] += Float32(flow * z^2)
    end
end

"""
The M-step of input `u` without a table: what so many samples as the pseudocount that are distributed as the input is now, and the flows say
together. The moments go as far as `step` from the old to the new ones.
"""
function learn_number!(c::Circuit, u, flow::Vector, range, step::Real, pseudocount::Real, least::Real)
    total = Float64(flow[first(range)]) + pseudocount
    has_flow(total, least) || return
    if c.kind[u] == POISSON
        rate = entry(c, u, 0)
        c.leaf[range[1]] = max((1 - step) * rate + step * (flow[range[2]] + pseudocount * rate) / total, LEAST_RATE)
    else
        mean, deviation = entry(c, u, 0), entry(c, u, 1)
        z = step * (Float64(flow[range[2]]) - flow[range[3]]) / total
        square = (1 - step) + step * (flow[range[4]] + pseudocount) / total
        c.leaf[range[1]] = mean + deviation * z
        c.leaf[range[2]] = max(deviation * sqrt(max(square - z^2, 0.0)), entry(c, u, 2))
    end
end

function check_number(c::Circuit, u)
    c.categories[u] == 0 || invalid(u, "$(c.categories[u]) categories of an input over numbers")
    if c.kind[u] == POISSON
        0 < entry(c, u, 0) < Inf || invalid(u, "a Poisson of rate $(entry(c, u, 0))")
    else
        mean, deviation, least = (entry(c, u, k) for k in 0:2)
        isfinite(mean) && 0 < deviation < Inf && 0 < least <= deviation ||
            invalid(u, "a Gaussian of mean $mean and deviation $deviation, at least $least")
    end
end

"The most probable value of input `u`, which has no table."
mode_of_number(c::Circuit, u) = c.kind[u] == POISSON ? floor(entry(c, u, 0)) : entry(c, u, 0)

"The mean and the variance of input `u`, whatever its kind."
function moments(c::Circuit, u)
    c.kind[u] == POISSON && return entry(c, u, 0), entry(c, u, 0)
    c.kind[u] == GAUSSIAN && return entry(c, u, 0), entry(c, u, 1)^2
    mean = sum(k * probability(c, u, k) for k in 0:c.categories[u] - 1)
    return mean, sum((k - mean)^2 * probability(c, u, k) for k in 0:c.categories[u] - 1)
end

"A value of input `u`, which has no table, by chance."
draw_number(rng::SplitMix, c::Circuit, u) =
    c.kind[u] == POISSON ? draw_poisson(rng, entry(c, u, 0)) : entry(c, u, 0) + entry(c, u, 1) * normal!(rng)

"Of a Poisson, by inversion from its mode on, up and down by turns: about as many steps as deviations are long."
function draw_poisson(rng::SplitMix, rate::Float64)
    low = high = floor(Int, rate)
    left = uniform!(rng)
    below = above = exp(log_poisson(low, rate))
    left -= below
    while left > 0 && (below > 0 || above > 0)
        high += 1
        above *= rate / high
        left -= above
        left > 0 || return Float64(high)
        if low > 0
            below *= low / rate
            low -= 1
            left -= below
            left > 0 || return Float64(low)
        else
            below = 0.0
        end
    end
    return floor(rate)
end

"One Poisson input of `variable` for each rate."
function add_poissons!(b::Builder, variable, rates)
    units = add_table!(b, variable, length(rates), 0; kind=POISSON)
    foreach((u, rate) -> set_entries!(b, u, (rate, 0)), units, rates)
    return units
end

"One Gaussian input of `variable` for each mean and deviation; none learns a deviation below `least`."
function add_gaussians!(b::Builder, variable, means, deviations, least=LEAST_DEVIATION)
    units = add_table!(b, variable, length(means), 0; kind=GAUSSIAN)
    foreach((u, mean, deviation) -> set_entries!(b, u, (mean, deviation, least, 0)), units, means, deviations)
    return units
end

function set_entries!(c, u, values)
    for (k, value) in enumerate(values)
        c.leaf[entry_place(c, u, k - 1)] = value
    end
end
