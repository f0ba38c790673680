# The discretised logistic (Salimans et al. 2017, of one component): a distribution over ordered categories 0..C-1 that is said by a location
# and a scale. A category has the logistic's mass within half a level of it, the first and the last one all that is beyond: they sum to 1.

# Scales, in levels: at the least one, neighbours of a location's category have 1e-7; at the largest, all levels but the ends are alike.
const LEAST_LOGISTIC_SCALE = 2.0^-5
const MOST_LOGISTIC_SCALES = 32.0   # times the number of levels

# A location is at most so many scales beyond the ends: there, an end has all but 1e-17.
const BEYOND_ENDS = 40.0

# No category is impossible: a table's least entry, which single precision multiplies without loss.
const LEAST_OF_LOGISTIC = 1f-30

"Where the parameters of a logistic input lie in the leaf array: its location and its scale, in levels."
logistic_places(c, u) = (entry_place(c, u, c.categories[u]), entry_place(c, u, c.categories[u] + 1))

"Gives logistic input `u` of a circuit or a builder its parameters, and the table that they say."
function set_logistic!(c, u, location::Real, scale::Real)
    at, next = logistic_places(c, u)
    c.leaf[at], c.leaf[next] = location, scale
    fill_logistic!(probabilities(c, u), c.leaf[at], c.leaf[next])
end

function fill_logistic!(table::AbstractVector{Float32}, location::Float32, scale::Float32)
    C, m, s = length(table), Float64(location), Float64(scale)
    for x in 0:C - 1
        upper = (x + 0.5 - m) / s
        table[x + 1] = max(LEAST_OF_LOGISTIC, x == 0 ? (C == 1 ? 1.0 : sigmoid(upper)) : x == C - 1 ? sigmoid((m - x + 0.5) / s) :
                                              mass_between(upper - 1 / s, upper))
    end
    return table
end

sigmoid(z::Float64) = z >= 0 ? 1 / (1 + exp(-z)) : exp(z) / (1 + exp(z))

"sigmoid(b) - sigmoid(a)"
mass_between(a::Float64, b::Float64) = sigmoid(b) * sigmoid(-a) * -expm1(a - b)

function check_logistic(c::Circuit, u)
    location, scale = (c.leaf[place] for place in logistic_places(c, u))
    isfinite(location) && 0 < scale < Inf || invalid(u, "a logistic of location $location and scale $scale")
    table = fill_logistic!(Vector{Float32}(undef, c.categories[u]), location, scale)
    for (p, wanted) in zip(probabilities(c, u), table)
        abs(p - wanted) <= 1e-5 || invalid(u, "its probabilities are not those of a logistic of location $location and scale $scale")
    end
    pause(100 * Int(c.categories[u]))
end

"""
    fit_logistic(shares, location, scale) -> (location, scale)

The location and the scale, in levels, that make the sum over categories of `shares` times the logarithm of their probabilities the largest;
the search begins at those that are given, and ends no lower.

With the boundaries t between levels, a = scale^-1 and b = location / scale, the mass below a boundary is sigmoid(a t - b), and that of an inner
level is sigmoid(a t' - b) sigmoid(b - a t) (1 - exp(-a)): the sum is a logistic regression on the boundaries, and a term in a alone; it is concave
in (a, b), and Newton's steps find its top.
"""
function fit_logistic(shares::AbstractVector{Float64}, location::Real, scale::Real)
    C = length(shares)
    C == 1 && return Float64(location), Float64(scale)
    centre, half = (C - 1) / 2, (C - 1) / 2     # levels on [-1, 1]
    steepest, flattest = half / LEAST_LOGISTIC_SCALE, half / (MOST_LOGISTIC_SCALES * (C - 1))
    within(a, b) = (a = clamp(a, flattest, steepest); (a, clamp(b, a * (1 - C / 2) / half - BEYOND_ENDS, a * (C / 2 - 1) / half + BEYOND_ENDS)))
    a, b = within(half / scale, (location - centre) / scale)
    value, (da, db), (aa, ab, bb) = logistic_terms(shares, a, b)
    location, scale = logistic_of_moments(shares)
    near = within(half / scale, (location - centre) / scale)
    found = logistic_terms(shares, near...)
    found[1] > value && (((a, b), (value, (da, db), (aa, ab, bb))) = (near, found))  # far from all samples nothing leads back to them
    for _ in 1:MOST_NEWTON_STEPS
        ridge = 1e-9 * (aa + bb) + 1e-12
        determinant = (aa + ridge) * (bb + ridge) - ab^2
        step_a, step_b = ((bb + ridge) * da - ab * db) / determinant, ((aa + ridge) * db - ab * da) / determinant
        part, better = 1.0, false
        for _ in 1:MOST_HALVINGS
            new = within(a + part * step_a, b + part * step_b)
            found = logistic_terms(shares, new...)
            gain = found[1] - value
            if gain > 0
                (a, b), (value, (da, db), (aa, ab, bb)) = new, found
                better = gain > LEAST_GAIN
                break
            end
            part /= 2
        end
        better || break
    end
    return centre + half * b / a, half / a
end

"The logistic with the mean and the variance of the shares; not too narrow to search from."
function logistic_of_moments(shares)
    total = mean = variance = 0.0
    for (k, share) in enumerate(shares)
        total += share
        mean += (k - 1) * share
    end
    mean /= total
    for (k, share) in enumerate(shares)
        variance += (k - 1 - mean)^2 * share
    end
    return mean, scale_of_deviation(sqrt(variance / total))
end

"The scale of a logistic with this standard deviation, in levels, but at least a quarter of one."
scale_of_deviation(deviation) = max(deviation * sqrt(3) / pi, 0.25)

const MOST_NEWTON_STEPS = 20
const MOST_HALVINGS = 20
const LEAST_GAIN = 1e-9     # in nats a sample

"The sum that [`fit_logistic`](@ref) makes the largest, its gradient in (a, b), and minus its second derivatives (aa, ab, bb)."
function logistic_terms(shares::AbstractVector{Float64}, a::Float64, b::Float64)
    C = length(shares)
    half = (C - 1) / 2
    value = da = db = aa = ab = bb = inner = 0.0
    @inbounds for j in 1:C - 1  # boundaries
        below, above = shares[j], shares[j + 1]
        both = below + above
        j > 1 && (inner += below)
        both > 0 || continue
        t = (j - C / 2) / half
        z = a * t - b
        e = exp(-abs(z))
        p, spread = z >= 0 ? 1 / (1 + e) : e / (1 + e), both * e / (1 + e)^2
        value += below * min(z, 0.0) + above * min(-z, 0.0) - both * log1p(e)
        excess = both * p - below
        da -= t * excess
        db += excess
        aa += t * t * spread
        ab -= t * spread
        bb += spread
    end
    if inner > 0
        rate = 1 / expm1(a / half)
        value += inner * log(-expm1(-a / half))
        da += inner * rate / half
        aa += inner * rate * (1 + rate) / half^2
    end
    return value, (da, db), (aa, ab, bb)
end

"The location and the scale become those that fit (1 - step) p + step (F + pseudocount / C) / (sum F + pseudocount) best: what a categorical becomes."
function learn_logistic!(c::Circuit, u, flow::Vector, range, step::Real, pseudocount::Real, least::Real)
    total, C = pseudocount, length(range)
    for e in range
        total += flow[e]
    end
    has_flow(total, least) && C > 1 || return
    shares = Vector{Float64}(undef, C)
    for (k, e) in enumerate(range)
        shares[k] = (1 - Float64(step)) * c.leaf[e] + step * (Float64(flow[e]) + pseudocount / C) / total
    end
    at, next = logistic_places(c, u)
    set_logistic!(c, u, fit_logistic(shares, c.leaf[at], c.leaf[next])...)
end

"One logistic input of `variable` over `C` categories for each location and scale, in levels."
function add_logistics!(b::Builder, variable, C, locations, scales)
    units = add_table!(b, variable, length(locations), C; kind=LOGISTIC)
    for (u, location, scale) in zip(units, locations, scales)
        set_logistic!(b, u, location, scale)
    end
    return units
end
