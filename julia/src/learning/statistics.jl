# What flows start from, and what they add up to.

# Single-precision sums over more samples than this would lose digits that EM on the whole data set needs.
const SINGLE_PRECISION_SAMPLES = 2^13

"""
What the flow of each sample starts from: its head (from 1), and its weight, which multiplies all its flows. The weights are
`scale * weight_of`, where the largest `weight_of` is about 1: flows of weights of any size fit single precision, and a constant
that all weights are multiplied by changes nothing.
"""
struct Sources
    head_of::Vector{Int32}
    weight_of::Vector{Float32}
    scale::Float64              # a power of two
end

"Of weight 1 each."
Sources(head_of::AbstractVector) = Sources(Vector{Int32}(head_of), ones(Float32, length(head_of)), 1.0)

function Sources(c::Circuit, head_of, weights, N::Int)
    length(head_of) == N || throw(ArgumentError("heads has $(length(head_of)) entries for $N samples"))
    all(h -> 1 <= h <= num_heads(c), head_of) ||
        throw(ArgumentError("heads: found $(extrema(head_of) .- 1), the circuit has heads 0..$(num_heads(c) - 1)"))
    length(weights) == N || throw(ArgumentError("weights has $(length(weights)) entries for $N samples"))
    all(w -> 0 <= w < Inf, weights) || throw(ArgumentError("weights: found $(extrema(weights)), wanted finite numbers >= 0"))
    largest = isempty(weights) ? 0 : maximum(weights)
    largest > 0 || throw(ArgumentError("weights: all are 0"))
    scale = exp2(Base.exponent(Float64(largest)))
    return Sources(Vector{Int32}(head_of), Float32.(Float64.(weights) ./ scale), scale)
end

"The weight of all samples."
total_weight(sources::Sources) = sources.scale * sum(Float64, sources.weight_of)

"""
What the flows of each sample start from, where they start from several heads at once: `weight`, Float32 `(heads, samples)`, from 0
to 1.
"""
struct Responsibilities
    weight::Matrix{Float32}
end

"(head, weight) of the heads from which sample `n` has flow."
@inline starts(sources::Sources, n::Int) = ((Int(sources.head_of[n]), sources.weight_of[n]),)
starts(sources::Responsibilities, n::Int) =
    ((head, sources.weight[head, n]) for head in axes(sources.weight, 1) if sources.weight[head, n] > 0)

const Starts = Union{Sources,Responsibilities}

"""
    ExpectedCounts(circuit)

The statistics of EM, additive over samples: `weight`, the flow of each edge of a sum, and `leaf`, the flow of each category of
each input, Float64, in the layout of the circuit's parameters. Those of two parts of a data set add up to the whole's, whatever
backend, process or machine they come from.
"""
struct ExpectedCounts
    weight::Vector{Float64}
    leaf::Vector{Float64}
end

ExpectedCounts(c::Circuit) = ExpectedCounts(zeros(length(c.weight)), zeros(length(c.leaf)))

"Adds the counts of another part of the data, times `scale`."
function add!(counts::ExpectedCounts, others::ExpectedCounts, scale::Float64=1.0)
    counts.weight .+= scale .* others.weight
    counts.leaf .+= scale .* others.leaf
    return counts
end

"Throws an `ArgumentError` unless these are counts of the circuit: as many as it has parameters, finite, none below 0."
function check_counts(c::Circuit, counts::ExpectedCounts)
    for (name, found, wanted) in (("edge", counts.weight, c.weight), ("category", counts.leaf, c.leaf))
        length(found) == length(wanted) ||
            throw(ArgumentError("statistics: found $(length(found)) $name flows, the circuit has $(length(wanted)) such parameters"))
        all(x -> 0 <= x < Inf, found) || throw(ArgumentError("statistics: an $name flow is no finite number >= 0"))
    end
end

# A unit learns from its flow, pseudocount included, if it has at least this much, where the largest weight of a sample is about 1.
# Less is noise of single precision, and its reciprocal may overflow. The smallest pseudocount (`check_pseudocount`) is more.
const LEAST_FLOW = Float32(2.0^-100)

"Whether a unit with so much flow, pseudocount included, learns: the one rule for inputs and sums, and batches of any size."
@inline has_flow(total::Real, least::Real=LEAST_FLOW) = least <= total < Inf

"Throws an `ArgumentError` unless single precision can divide by the pseudocount, and multiply it (pyjuice_lvd/checks.py)."
check_pseudocount(value::Real, name="pseudocount") =
    value == 0 || 1e-30 <= value <= 1e20 || throw(ArgumentError("$name = $value: want 0, or 1e-30 to 1e20"))

"A pseudocount beside weights that were divided by `scale`, held in the range that single precision can work with."
scaled_pseudocount(value::Real, scale::Real) = value == 0 ? 0.0 : clamp(value / scale, 1e-30, 1e30)

"""
    Ties(numbers)

Which edges of a circuit's sums are tied: those with one number above 0 share their expected counts, so that parameters that are equal stay
so. 0: a parameter of its own.
"""
struct Ties
    numbers::Vector{Int32}
end

"The tied edges, tie by tie: (start of each, edges)."
function tied_edges(ties::Ties)
    start = zeros(Int32, reduce(max, ties.numbers; init=Int32(0)) + 1)
    start[1] = 1
    for t in ties.numbers
        t > 0 && (start[t + 1] += 1)
    end
    cumsum!(start, start)
    next, edge = copy(start), Vector{Int32}(undef, last(start) - 1)
    for (e, t) in enumerate(ties.numbers)
        t > 0 || continue
        edge[next[t]] = e
        next[t] += 1
    end
    return start, edge
end

"Gives each tied edge the counts of all that it is tied to."
function tie!(counts::ExpectedCounts, ties::Ties)
    sums = zeros(reduce(max, ties.numbers; init=Int32(0)))
    for (e, t) in enumerate(ties.numbers)
        t > 0 && (sums[t] += counts.weight[e])
    end
    for (e, t) in enumerate(ties.numbers)
        t > 0 && (counts.weight[e] = sums[t])
    end
    return counts
end
